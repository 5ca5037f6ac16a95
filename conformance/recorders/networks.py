"""An original's network as the recorders see it: parameters by original name, a call, the outputs of its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np
import torch

from conformance.recorders.checkout import widened
from conformance.sketch import sketch


class Network(Protocol):
    """A network of an original, whatever it is written in; tensors are NCHW torch tensors outside."""

    rule: str  # of the synthetic weights: which layout its parameters have
    fractional_times: bool  # whether times need not be integers
    last_layer: tuple[str, str]  # names of the last convolution's weight and bias

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Original parameter names and shapes."""
        ...

    def load(self, state: Mapping[str, np.ndarray]) -> None: ...

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Runs in the dtype of `x`: float32, or float64 for the oracle."""
        ...

    def observe(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The output, and a sketch of the output of every named module that returns one tensor, in order."""
        ...

    def last_input(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the last convolution is given."""
        ...

    def embedding(self, t: torch.Tensor) -> torch.Tensor:
        """The original's sinusoidal embedding of times (n,), float32 (n, width)."""
        ...


class TorchNetwork:
    """An original written in PyTorch.

    Args:
        build: makes the original's module.
        lift: entered around float64 runs; lifts the original's float32 casts.
        last_layer: module path of the last convolution.
        embedding: the original's sinusoidal embedding of times (n,).
        call: how the original is called with (module, x, t); by default module(x, t).
    """

    rule = "philox-uniform/torch"
    fractional_times = True

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        lift: Callable[[], AbstractContextManager[Any]],
        last_layer: str,
        embedding: Callable[[torch.Tensor], torch.Tensor],
        call: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.module = build().eval()
        self.last_layer = f"{last_layer}.weight", f"{last_layer}.bias"
        self._last, self._lift = last_layer, lift
        self.embedding = embedding
        self._call = call or (lambda module, x, t: module(x, t))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.module.state_dict().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.module.float().load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with ExitStack() as stack:
            if x.dtype == torch.float64:
                stack.enter_context(self._lift())
            self.module.to(x.dtype)
            return self._call(self.module, x, t)

    def parameters(self) -> Any:
        """Originals ask a model for the device of its parameters."""
        return self.module.parameters()

    def observe(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sketches: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, torch.Tensor):
                    sketches[name] = sketch(output)

            return hook

        hooks = [m.register_forward_hook(keep(name)) for name, m in self.module.named_modules() if name]
        try:
            return self(x, t), sketches
        finally:
            for hook in hooks:
                hook.remove()

    def last_input(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []
        hook = self.module.get_submodule(self._last).register_forward_pre_hook(
            lambda _, inputs: found.append(inputs[0])
        )
        try:
            self(x, t)
        finally:
            hook.remove()
        return found[0]


IMPROVED_LIFTED = (
    "Tensor.float leaves float64 tensors as they are (GroupNorm32, softmax)",
    "timestep_embedding: its float32 result is handed to the float64 network",
    "UNetModel.inner_dtype is float64",
)


@contextmanager
def lifted_improved(unet: Any) -> Iterator[None]:
    """Lift the float32 casts of improved-diffusion's network, given its module `unet`, for a float64 run."""
    narrow = torch.Tensor.float

    def keep_wide(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.dtype == torch.float64 else narrow(tensor)

    inner_dtype = property(lambda self: torch.float64)
    with (
        patch.object(torch.Tensor, "float", keep_wide),
        widened(unet, "timestep_embedding"),
        patch.object(unet.UNetModel, "inner_dtype", inner_dtype),
    ):
        yield
