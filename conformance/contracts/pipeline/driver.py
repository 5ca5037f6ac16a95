"""Calling any pipeline: with the arguments that its signature asks for, watching what its network receives."""

from __future__ import annotations

import copy
import inspect
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.contracts.model.driver import in_dtype
from conformance.contracts.model.inputs import TIMES, on_batch
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.tensors import distance, tensors_in

STEPS = 4
"""The fewest that every published sampler can do."""

MORE_STEPS = 6
SAFETY = 8
"""How many times the measured effect of rounding two calls may be apart, where they may round differently."""

PROMPT = "a photograph of a cat"
OPTION_RECORD = re.compile(r"Unpack\[(\w+)\]")


@dataclass
class NetworkCall:
    """What a network received: its arguments by name, tensors as copies, and whether gradients were on."""

    arguments: dict[str, Any]
    with_gradients: bool

    @property
    def sample(self) -> torch.Tensor:
        """The argument that is denoised."""
        tensors = (value for name, value in self.arguments.items() if name not in TIMES)
        return next(value for value in tensors if isinstance(value, torch.Tensor))

    @property
    def times(self) -> list[float]:
        """The time, as numbers."""
        value = next(value for name, value in self.arguments.items() if name in TIMES)
        return torch.as_tensor(value).double().reshape(-1).tolist()


class PipelineUnderTest:
    """A pipeline object with small components. Checks work on deep copies, with the progress bar off.

    Attributes:
        name: of the class.
        cls: the class.
        options: names of the arguments of a call.

    Args:
        pipeline: the pipeline.
        call: arguments of one good call for one image, besides `generator`, `output_type` and `num_inference_steps`;
            tensors of a first size 1 and texts are repeated for more images.
    """

    def __init__(self, pipeline: Any, call: Mapping[str, Any] | None = None) -> None:
        self.cls = type(pipeline)
        self.name = self.cls.__name__
        if not callable(pipeline) or not isinstance(getattr(pipeline, "components", None), Mapping):
            raise TypeError(f"{self.name} is no pipeline: it can be called and has a mapping `components`")
        self._pipeline = pipeline
        self.call = dict(call or {})
        self.options = _option_names(self.cls)
        unknown = [name for name in self.call if name not in self.options]
        if unknown:
            raise TypeError(f"{self.name} takes no {', '.join(unknown)}; it takes {', '.join(self.options)}")

    # --- making ------------------------------------------------------------------------------------------------------

    def fresh(self) -> Any:
        """A copy that a check may change, in float32."""
        pipeline = copy.deepcopy(self._pipeline)
        for network in networks(pipeline):
            network.float()
        return quiet(pipeline)

    def fresh_in(self, dtype: torch.dtype) -> Any:
        """A copy brought to `dtype` by its own `to`. Raises NotApplicable for a pipeline without it."""
        pipeline = self.fresh()
        if not hasattr(pipeline, "to"):
            raise NotApplicable(f"{self.name} has no to")
        pipeline.to(dtype)
        return pipeline

    def arguments_of(self, pipeline: Any) -> dict[str, Any]:
        """The arguments that its constructor would make this pipeline of: components, and options it remembers."""
        config = dict(getattr(pipeline, "config", {}))
        names = [name for name in inspect.signature(self.cls.__init__).parameters if name != "self"]
        components = pipeline.components
        return {
            name: components[name] if name in components else config[name]
            for name in names
            if name in components or name in config
        }

    def rebuilt(self, pipeline: Any, **changes: Any) -> Any:
        """Another pipeline object of the same components, except for the changes."""
        return quiet(self.cls(**{**self.arguments_of(pipeline), **changes}))

    @contextmanager
    def saved(self) -> Iterator[Path]:
        """A temporary folder with the pipeline, as `save_pretrained` writes it."""
        missing = [name for name in ("save_pretrained", "from_pretrained") if not hasattr(self.cls, name)]
        if missing:
            raise NotApplicable(f"{self.name} has no {' and no '.join(missing)}")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "pipeline"
            self.fresh().save_pretrained(target)
            yield target

    # --- calling -----------------------------------------------------------------------------------------------------

    def takes(self, option: str) -> bool:
        """Whether a call takes this argument."""
        return option in self.options

    def require(self, option: str) -> None:
        """Raises NotApplicable unless a call takes this argument."""
        if not self.takes(option):
            raise NotApplicable(f"a call takes no {option}")

    def arguments(self, batch: int = 1, seed: Any = 0, steps: int = STEPS) -> dict[str, Any]:
        """Arguments of a call for `batch` images.

        seed: of one generator, or a list of seeds, one a generator.
        Raises NotApplicable where it is not known what a required argument should be.
        """
        made = {name: _repeated(value, batch) for name, value in self.call.items()}
        if self.takes("batch_size") and "batch_size" not in made:
            made["batch_size"] = batch
        elif self.takes("prompt") and not {"prompt", "prompt_embeds"} & made.keys():
            made["prompt"] = [PROMPT] * batch
        elif "class_labels" in self._required and "class_labels" not in made:
            made["class_labels"] = [1] * batch
        for name, value in {"num_inference_steps": steps, "generator": generators(seed), "output_type": "np"}.items():
            if self.takes(name):
                made.setdefault(name, value)
        missing = [name for name in self._required if name not in made]
        if missing:
            raise NotApplicable(f"it is not known what {', '.join(missing)} should be: name it with call={{...}}")
        return made

    @property
    def _required(self) -> list[str]:
        parameters = inspect.signature(self.cls.__call__).parameters
        return [
            name
            for name, p in parameters.items()
            if name != "self" and p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]

    @cached_property
    def problem(self) -> str | None:
        """Why a call for two images fails, or None."""
        arguments = self.arguments(batch=2)
        try:
            as_tensor(self.fresh()(**arguments))
        except Exception as error:  # noqa: BLE001 - any error means that this is no call
            return f"{type(error).__name__}: {error}"
        return None

    def run(self, pipeline: Any, batch: int = 1, seed: Any = 0, steps: int = STEPS, **options: Any) -> torch.Tensor:
        """The images of a call, as a tensor of whatever layout the pipeline returns.

        Raises NotApplicable if there is no call that works.
        """
        return as_tensor(self.raw(pipeline, batch, seed, steps, **options))

    def raw(self, pipeline: Any, batch: int = 1, seed: Any = 0, steps: int = STEPS, **options: Any) -> Any:
        """What a call returns. Raises NotApplicable if there is no call that works."""
        if self.problem is not None:
            raise NotApplicable(f"there is no call that works, see call_works: {self.problem}")
        dtype = next((p.dtype for network in networks(pipeline) for p in network.parameters()), torch.float32)
        return pipeline(**{**in_dtype(self.arguments(batch, seed, steps), dtype), **options})

    # --- watching ----------------------------------------------------------------------------------------------------

    def scheduler(self, pipeline: Any) -> Any:
        """The component that makes the timesteps. Raises NotApplicable for a pipeline without one."""
        found = next((each for each in pipeline.components.values() if hasattr(each, "set_timesteps")), None)
        if found is None:
            raise NotApplicable("no component is a scheduler")
        return found

    @contextmanager
    def watched(self, pipeline: Any) -> Iterator[list[NetworkCall]]:
        """The calls of every component that takes a time, while the block runs, in order."""
        calls: list[NetworkCall] = []
        hooks = []
        for network in networks(pipeline):
            signature = inspect.signature(network.forward)
            if not any(name in TIMES for name in signature.parameters):
                continue

            def record(module: nn.Module, args: Any, kwargs: Any, signature: inspect.Signature = signature) -> None:
                bound = signature.bind_partial(*args, **kwargs).arguments
                kept = {n: v.detach().clone() if isinstance(v, torch.Tensor) else v for n, v in bound.items()}
                calls.append(NetworkCall(kept, torch.is_grad_enabled()))

            hooks.append(network.register_forward_pre_hook(record, with_kwargs=True))
        if not hooks:
            raise NotApplicable("no component is a network that takes a time")
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()

    def rounding(self, seed: Any = 0) -> float:
        """How far two calls may be apart that round differently, relative to the largest element: a few times what
        moving every network output by some units in the last place does to the images."""
        wanted = self.run(self.fresh(), seed=seed)
        pipeline = self.fresh()
        source = torch.Generator().manual_seed(0)

        def disturb(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in tensors_in(output):
                if tensor.is_floating_point():
                    tensor.mul_(1 + 2.0**-20 * torch.randn(tensor.shape, generator=source).to(tensor))

        for network in networks(pipeline):
            network.register_forward_hook(disturb)
        return SAFETY * max(distance(self.run(pipeline, seed=seed), wanted), 2.0**-20)


# --- helpers ---------------------------------------------------------------------------------------------------------


def quiet(pipeline: Any) -> Any:
    """The pipeline with its progress bar off, where it can be."""
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


def networks(pipeline: Any) -> list[nn.Module]:
    """The components that are networks."""
    return [component for component in pipeline.components.values() if isinstance(component, nn.Module)]


def generators(seed: Any) -> Any:
    """A CPU generator of a seed, or one for each of several."""
    if isinstance(seed, (list, tuple)):
        return [generators(each) for each in seed]
    return torch.Generator("cpu").manual_seed(seed)


def as_tensor(output: Any) -> torch.Tensor:
    """The images of an output record or tuple: tensor, array, or PIL images as (B, H, W, C) integers."""
    first = output
    if isinstance(output, (Mapping, tuple)) or hasattr(output, "__dataclass_fields__"):
        first = output[0] if isinstance(output, tuple) else next(iter(_fields(output)))
    if isinstance(first, torch.Tensor):
        return first.detach().cpu()
    if isinstance(first, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(first))
    if isinstance(first, list) and first:
        return torch.stack([torch.as_tensor(np.array(each)) for each in first])
    raise Violation(f"a call returned {type(first).__name__}: neither tensor, nor array, nor images")


def _fields(record: Any) -> Iterator[Any]:
    if isinstance(record, Mapping):
        yield from record.values()
    else:
        yield from (getattr(record, name) for name in record.__dataclass_fields__)


def _repeated(value: Any, batch: int) -> Any:
    """An argument for one image, for several."""
    if isinstance(value, str):
        return [value] * batch
    return on_batch(value, 1, lambda x: x.repeat(batch, *[1] * (x.ndim - 1)))


def _option_names(cls: type) -> list[str]:
    """The arguments of `cls.__call__` by name, with those of a `**options: Unpack[Record]`."""
    function = inspect.unwrap(cls.__call__)
    names: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            match = OPTION_RECORD.search(str(parameter.annotation))
            record = function.__globals__.get(match[1]) if match else None
            names += list(getattr(record, "__annotations__", {}))
        elif parameter.kind is not parameter.VAR_POSITIONAL and name != "self":
            names.append(name)
    return names
