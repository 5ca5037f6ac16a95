"""Evaluating any network: with inputs that fit, with live weights, and with its own rounding error as the yardstick."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.contracts.model.inputs import InputMaker, Inputs, on_batch
from conformance.contracts.result import NotApplicable
from conformance.contracts.tensors import distance, tensors_in
from conformance.weights import synthetic_parameter

SAFETY = 16
"""How many times its measured rounding error two evaluations of a network may be apart, where they may round
differently: the error is a maximum over one input, not over all."""

CEILING = 2.0**-12
"""The largest rounding error that is believed; what is called so beyond it hides a fault."""


class ModelUnderTest:
    """A network object. Checks work on copies in float32 and evaluation mode, with synthetic weights.

    Weights are drawn because freshly made networks often have layers of zeros, behind which nothing can be seen.

    Attributes:
        name: of the class.
        cls: the class.
        inputs: makes the inputs of a call.

    Args:
        model: the network.
        inputs: keyword arguments of one good call; None: found from signature and configuration.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any] | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"{type(model).__name__} is no network: a torch.nn.Module object is needed")
        self.cls = type(model)
        self.name = self.cls.__name__
        self._model = model
        self.inputs = InputMaker(model, inputs)

    @cached_property
    def live(self) -> nn.Module:
        """A copy with synthetic weights, float32, in evaluation mode; checks leave it as it is."""
        model = copy.deepcopy(self._model).float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values = synthetic_parameter(name, tuple(parameter.shape), 0, "torch")
                parameter.copy_(torch.from_numpy(values))
        return model

    def fresh(self) -> nn.Module:
        """A copy of the live network that a check may change."""
        return copy.deepcopy(self.live)

    def config(self) -> dict[str, Any]:
        """The arguments that the network was made with. Raises NotApplicable if it does not keep them."""
        self.require("from_config")
        return {name: value for name, value in dict(self.live.config).items() if not name.startswith("_")}  # type: ignore[call-overload, arg-type]

    # --- evaluating --------------------------------------------------------------------------------------------------

    def make(self, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Inputs:
        """Inputs of a call that is known to work. Raises NotApplicable if there is none."""
        if self.problem is not None:
            raise NotApplicable(f"there is no call that works, see evaluates: {self.problem}")
        return self.inputs.make(batch, seed, dtype, **options)

    @cached_property
    def problem(self) -> str | None:
        """Why a call with inputs as given, or as found, fails; None if it does not."""
        inputs = self.inputs.make(2, 0)
        try:
            self.run(self.live, inputs)
        except Exception as error:  # noqa: BLE001 - any error of the network means that this is no call
            return f"{type(error).__name__}: {error}"
        return None

    def run(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        """The output, batch first; several outputs side by side, as (B, numbers).

        Raises NotApplicable for an output without tensors.
        """
        found = [tensor for tensor in tensors_in(model(**inputs)) if tensor.ndim]
        if not found:
            raise NotApplicable("forward returns no tensor")
        return found[0] if len(found) == 1 else torch.cat([each.reshape(len(each), -1) for each in found], dim=1)

    def rounding(self, inputs: Inputs) -> float:
        """How far two evaluations may be apart that differ in the order of their roundings, relative to the largest
        element: a few times the distance between float32 and float64 on these inputs."""
        single = self.run(self.live, inputs)
        try:
            exact = self.run(self.fresh().double(), in_dtype(inputs, torch.float64))
        except RuntimeError:  # A network with parts in float32 only.
            return CEILING
        return min(SAFETY * max(distance(single.double(), exact.double()), 2.0**-22), CEILING)

    # --- folders -----------------------------------------------------------------------------------------------------

    def require(self, *methods: str) -> None:
        """Raises NotApplicable unless the class has these methods."""
        missing = [name for name in methods if not callable(getattr(self.cls, name, None))]
        if missing:
            raise NotApplicable(f"{self.name} has no {' and no '.join(missing)}")

    @contextmanager
    def saved(self) -> Iterator[Path]:
        """A temporary folder with the live network, as `save_pretrained` writes it."""
        self.require("save_pretrained", "from_pretrained")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "network"
            self.live.save_pretrained(target)  # type: ignore[operator]
            yield target

    def load(self, folder: Path) -> nn.Module:
        """The network in `folder`, by the class's own `from_pretrained`."""
        return self.cls.from_pretrained(folder)  # type: ignore[attr-defined]


def in_dtype(inputs: Inputs, dtype: torch.dtype, *, but: tuple[str, ...] = ()) -> Inputs:
    """The inputs with floating tensors in another dtype, except those named."""
    return {name: value if name in but else _cast(value, dtype) for name, value in inputs.items()}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Mapping):
        return {name: _cast(each, dtype) for name, each in value.items()}
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def rows(inputs: Inputs, batch: int, index: Sequence[int]) -> Inputs:
    """The samples of a batch at these positions; what has no batch stays."""
    return {name: on_batch(value, batch, lambda x: x[list(index)]) for name, value in inputs.items()}
