"""Networks that are saved to and loaded from folders."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffusers_ref.configuration import ConfigMixin
from diffusers_ref.loading import (
    NETWORK_WEIGHTS,
    WeightsError,
    choose_weights,
    is_network_weight,
    list_variants,
    load_folder_weights,
)
from diffusers_ref.saving import replaced_folder, write_text
from diffusers_ref.sources import LoadingError, PathOrName, check_entry_name, open_source

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ModelMixin", "WeightsError", "listed", "load_state_dict_strictly", "shapes_only"]

_SHOWN_KEYS = 8


class ModelMixin(torch.nn.Module, ConfigMixin):
    """A network with a configuration file (config.json) and weight files (diffusion_pytorch_model.*)."""

    config_name: ClassVar[str] = "config.json"

    @classmethod
    def rename_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring key spellings of older published files to the current one."""
        return state

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the parameters (the first one's)."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """The device of the parameters (the first one's)."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: PathOrName,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: PathOrName | None = None,
        local_files_only: bool | None = None,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Load a network from a folder or a Hub repository; it is in evaluation mode and on the CPU.

        torch_dtype: dtype of the floating weights; by default torch's default dtype (float32), whatever the file holds.
        variant: which weight files, for example "fp16" for diffusion_pytorch_model.fp16.safetensors.
        overrides: options that win over the configuration file.

        The global random state is not touched. Raises LoadingError, ConfigError, WeightsError.
        """
        source = open_source(
            name_or_path, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        prefix = f"{check_entry_name(subfolder, 'subfolder')}/" if subfolder else ""
        names = source.entries(prefix)
        weights = choose_weights(names, variant)
        if variant and not weights:
            raise LoadingError(
                f"{source}: no weights of variant {variant!r}; present: {', '.join(list_variants(names)) or 'none'}"
            )
        folder = source.fetch(prefix + name for name in [cls.config_name, *weights]) / prefix
        config = cls.load_config(folder)
        state, file = load_folder_weights(folder, variant)

        with shapes_only():
            model = cls.from_config(config, **overrides)
        dtype = torch_dtype or torch.get_default_dtype()
        state = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in cls.rename_keys(state).items()
        }
        load_state_dict_strictly(model, state, str(file))
        return model.eval()

    def save_pretrained(
        self, folder: PathOrName, *, variant: str | None = None, max_shard_size: int | str = "10GB"
    ) -> None:
        """Write config.json and the weights (safetensors) into `folder`, completely or not at all.

        Earlier weight files of the same variant are replaced, other files of the folder stay.
        max_shard_size: weights larger than this (bytes, or a text such as "500MB") go into several files with an index.
        """
        stem, suffix = NETWORK_WEIGHTS[0]
        stem = f"{stem}.{check_entry_name(variant, 'variant')}" if variant else stem
        shards = _split_into_shards(self.state_dict(), _number_of_bytes(max_shard_size))

        with replaced_folder(folder, discard=lambda name: is_network_weight(name, variant)) as temporary:
            self.save_config(temporary)
            if len(shards) == 1:
                _save_tensors(shards[0], temporary / f"{stem}{suffix}")
                return
            weight_map: dict[str, str] = {}
            for number, shard in enumerate(shards, start=1):
                name = f"{stem}-{number:05d}-of-{len(shards):05d}{suffix}"
                _save_tensors(shard, temporary / name)
                weight_map |= dict.fromkeys(shard, name)
            size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            index_name = f"{NETWORK_WEIGHTS[0][0]}{suffix}.index{f'.{variant}' if variant else ''}.json"
            write_text(temporary / index_name, json.dumps(index, indent=2, sort_keys=True) + "\n")


class _NoInitialisation(TorchFunctionMode):
    """The functions of torch.nn.init return their tensor as it is."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Networks made in the `with` block have parameter names, shapes and dtypes, but no memory and no values.

    They are on the meta device. Nothing is initialised: torch would load its compiler to draw an embedding's weights
    there, which takes longer than all the rest.
    """
    with torch.device("meta"), _NoInitialisation():
        yield


def load_state_dict_strictly(model: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `model`; every key must be there, with the right shape, and no other.

    Parameters on the meta device are replaced by the tensors of `state`, others keep their device and dtype.
    source: where the weights come from, for the message. Raises WeightsError that lists what does not fit.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} is {tuple(state[key].shape)}, the network needs {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if missing or unexpected or misshapen:
        network = type(model).__name__
        groups = [
            _report(missing, "keys missing"),
            _report(unexpected, "keys unknown to the network"),
            _report(misshapen, "tensors of another shape"),
        ]
        raise WeightsError(f"the weights of {source} do not fit {network} ({len(wanted)} keys):" + "".join(groups))
    model.load_state_dict(state, assign=any(tensor.is_meta for tensor in wanted.values()))
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:  # Only buffers that are registered with persistent=False can be left.
        raise TypeError(
            f"{type(model).__name__}: buffers must be saved with the weights, these are not: {', '.join(left)}"
        )


def _report(entries: Sequence[str], what: str) -> str:
    return f"\n  {what}: {len(entries)}{listed(entries)}" if entries else ""


def listed(entries: Sequence[str]) -> str:
    """The first entries for a message, one a line, and how many more there are."""
    more = [f"... and {len(entries) - _SHOWN_KEYS} more"] if len(entries) > _SHOWN_KEYS else []
    return "".join(f"\n    {entry}" for entry in [*entries[:_SHOWN_KEYS], *more])


def _save_tensors(state: Mapping[str, Tensor], file: Path) -> None:
    save_file({key: value.detach().contiguous() for key, value in state.items()}, file, metadata={"format": "pt"})
    file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read.


def _split_into_shards(state: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Consecutive tensors together as long as they fit into `limit` bytes; a larger one alone."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    return shards


def _number_of_bytes(size: int | str) -> int:
    """10**9 for "1GB"; integers are bytes."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?)B?", str(size).strip().upper())
    if match is None or int(match.group(1)) == 0:
        raise ValueError(f"max_shard_size must be a positive number of bytes, or a text such as '500MB'; got {size!r}")
    return int(match.group(1)) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match.group(2)]
