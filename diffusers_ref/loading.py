"""From a name to files, and from files to tensors.

Which files are wanted is decided on their names, in the same way for a folder on disk and for a repository on the Hub.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from diffusers_ref.sources import HubRepository, LoadingError, PathOrName, check_entry_name, glob_escape, open_source

__all__ = [
    "NETWORK_WEIGHTS",
    "TRANSFORMERS_WEIGHTS",
    "LoadingError",
    "WeightsError",
    "choose_weights",
    "is_network_weight",
    "is_weight_file",
    "list_variants",
    "load_folder_weights",
    "load_weights",
    "resolve_folder",
]

# Where the weights of a network are: (stem, suffix), the preferred one first.
NETWORK_WEIGHTS = (("diffusion_pytorch_model", ".safetensors"), ("diffusion_pytorch_model", ".bin"))
TRANSFORMERS_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))

# Suffixes of weight files of any framework: such a file is wanted only if it was chosen.
WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".ot"),
    *(".gguf", ".npz", ".index.json"),
)


class WeightsError(ValueError):
    """A weight file that cannot be read safely, or does not fit its network."""


def resolve_folder(
    name_or_path: PathOrName,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: PathOrName | None = None,
    local_files_only: bool | None = None,
    token: str | bool | None = None,
    allow_patterns: Sequence[str] | None = None,
) -> Path:
    """The local folder of a name, or its `subfolder`, with the files that match one of `allow_patterns` (default: all).

    For a Hub repository the files are downloaded into the cache first, unless they are there already; `revision`
    (branch, tag or commit), `cache_dir`, `local_files_only` and `token` are huggingface_hub's. Raises LoadingError.
    """
    source = open_source(
        name_or_path, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    prefix = f"{check_entry_name(subfolder, 'subfolder')}/" if subfolder else ""
    wanted: list[str] = []
    if isinstance(source, HubRepository):
        patterns = [glob_escape(prefix) + pattern for pattern in allow_patterns or ["*"]]
        wanted = [name for name in source.files if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    folder = source.fetch(wanted) / prefix
    if not folder.is_dir():
        raise LoadingError(f"{source} has no subfolder {subfolder!r}")
    return folder


# --- which weight files ----------------------------------------------------------------------------------------------


def choose_weights(
    names: Collection[str], variant: str | None = None, kinds: Sequence[tuple[str, str]] = NETWORK_WEIGHTS
) -> list[str]:
    """The weight files to load out of the names of one folder: [file], or [index, shard, ...]; [] if none fits.

    safetensors is preferred to pickled files, a sharded set to a single file; `variant` (say "fp16") must match.
    """
    dotted = f".{variant}" if variant else ""
    for stem, suffix in kinds:
        for index in (f"{stem}{suffix}.index{dotted}.json", f"{stem}{dotted}{suffix}.index.json"):
            if index in names:
                number = r"-\d{5}-of-\d{5}"
                old, new = re.escape(f"{stem}") + number + re.escape(dotted), re.escape(f"{stem}{dotted}") + number
                shard = re.compile(f"(?:{old}|{new}){re.escape(suffix)}")
                return [index, *sorted(name for name in names if shard.fullmatch(name))]
        if f"{stem}{dotted}{suffix}" in names:
            return [f"{stem}{dotted}{suffix}"]
    return []


def list_variants(names: Collection[str], kinds: Sequence[tuple[str, str]] = NETWORK_WEIGHTS) -> list[str]:
    """The variants of the weights that a folder holds."""
    found = set()
    for stem, suffix in kinds:
        pattern = re.compile(rf"{re.escape(stem)}\.([^.-]+)(?:-\d{{5}}-of-\d{{5}})?{re.escape(suffix)}")
        found |= {match.group(1) for match in map(pattern.fullmatch, names) if match}
    return sorted(found)


def is_network_weight(name: str, variant: str | None) -> bool:
    """Whether a file belongs to the weights of a network, of this variant (None: of none), in any form."""
    match = re.fullmatch(
        r"diffusion_pytorch_model(?:\.([^.-]+))?(?:-\d{5}-of-\d{5})?(?:\.([^.]+))??\.(?:safetensors|bin)(?:\.index(?:\.([^.]+))?\.json)?",
        name,
    )
    return match is not None and next((group for group in match.groups() if group), None) == variant


def is_weight_file(name: str) -> bool:
    """Whether a file holds weights, or is the index of a sharded set."""
    return PurePosixPath(name).name.endswith(WEIGHT_SUFFIXES) or bool(re.search(r"\.index\.[^.]+\.json$", name))


# --- tensors ---------------------------------------------------------------------------------------------------------


def load_weights(file: PathOrName) -> dict[str, torch.Tensor]:
    """The named tensors of a .safetensors file, or of a pickled one (.bin, .pt, .pth, .ckpt) that holds nothing else.

    Pickled files go through `torch.load(weights_only=True)`, which runs no code. Raises WeightsError, LoadingError.
    """
    path = Path(file)
    if not path.is_file():
        raise LoadingError(f"there is no weight file {path}")
    state: Any
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    elif path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises anything from UnpicklingError to RuntimeError on a damaged file.
            raise WeightsError(
                f"{path} is damaged or holds more than tensors, which is never executed: {error}"
            ) from error
    else:
        raise WeightsError(f"{path}: unknown kind of weight file; allowed: .safetensors, .bin, .pt, .pth, .ckpt")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} does not hold a flat mapping from names to tensors")
    return state


def load_folder_weights(folder: Path, variant: str | None = None) -> tuple[dict[str, torch.Tensor], Path]:
    """The weights of a network saved in `folder`, and the file (or index of shards) that they came from."""
    names = [path.name for path in folder.iterdir() if path.is_file()]
    chosen = choose_weights(names, variant)
    if not chosen:
        variants = list_variants(names)
        raise LoadingError(
            f"{folder} holds no network weights{f' of variant {variant!r}' if variant else ''}: expected one of "
            f"{', '.join(f'{stem}{suffix}' for stem, suffix in NETWORK_WEIGHTS)}"
            + (f"; variants present: {', '.join(variants)}" if variants else "")
        )
    first = folder / chosen[0]
    return (_load_shards(first) if first.suffix == ".json" else load_weights(first)), first


def _load_shards(index_file: Path) -> dict[str, torch.Tensor]:
    """The tensors that an index file names, each from the shard it names. Raises WeightsError, LoadingError."""
    try:
        weight_map: dict[str, str] = json.loads(index_file.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({check_entry_name(shard, "shard") for shard in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f'{index_file} is not an index of shards ({{"weight_map": {{key: file}}}}): {error!r}'
        ) from error
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        tensors = load_weights(index_file.parent / shard)
        expected = {key for key, file in weight_map.items() if file == shard}
        if tensors.keys() != expected:
            wrong = sorted(tensors.keys() ^ expected)
            raise WeightsError(f"{index_file.name} and {shard} disagree on {len(wrong)} keys: {', '.join(wrong[:8])}")
        state |= tensors
    return state
