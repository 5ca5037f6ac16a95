"""An original's network as the recorders see it: parameters by original name, a call, the outputs of its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from conformance.errors import ConformanceError
from conformance.recorders.checkout import widened
from conformance.sketch import sketch


class Network(Protocol):
    """A network of an original, whatever it is written in; tensors are NCHW torch tensors outside."""

    rule: str  # of the synthetic weights: which layout its parameters have
    last_layer: tuple[str, str]  # names of the last convolution's weight and bias

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Original parameter names and shapes."""
        ...

    def load(self, state: Mapping[str, np.ndarray]) -> None: ...

    def __call__(self, x: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        """Runs in the dtype of `x`: float32, or float64 for the oracle.

        embedding: (B, width) float32, used in place of the network's own sinusoidal embedding of `t`.
        """
        ...

    def observe(
        self, x: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The output, and a sketch of the output of every named module that returns one tensor, in order."""
        ...

    def last_input(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the last convolution is given."""
        ...

    def embedding(self, t: torch.Tensor) -> torch.Tensor:
        """The original's sinusoidal embedding (n, width) of times (n,), computed in their dtype: float32 or float64."""
        ...


class TorchNetwork:
    """An original written in PyTorch, whose first linear layer is given the sinusoidal embedding.

    Args:
        build: makes the original's module.
        lift: entered around float64 runs; lifts the original's float32 casts.
        last_layer: module path of the last convolution.
        embedding: the original's sinusoidal embedding of times (n,), in float32.
        call: how the original is called with (module, x, t); by default module(x, t).
        tapped: of module paths, whether outputs are observed; by default all are.
    """

    rule = "philox-uniform/torch"

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        lift: Callable[[], AbstractContextManager[Any]],
        last_layer: str,
        embedding: Callable[[torch.Tensor], torch.Tensor],
        call: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        tapped: Callable[[str], bool] = bool,
    ) -> None:
        self.module = build().eval()
        self.last_layer = f"{last_layer}.weight", f"{last_layer}.bias"
        self._last, self._lift = last_layer, lift
        self._embedding = embedding
        self._call = call or (lambda module, x, t: module(x, t))
        self._tapped = tapped

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.module.state_dict().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.module.float().load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

    def __call__(self, x: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        with ExitStack() as stack:
            if x.dtype == torch.float64:
                stack.enter_context(self._lift())
            if embedding is not None:
                stack.enter_context(self._given(embedding))
            self.module.to(x.dtype)
            return self._call(self.module, x, t)

    @contextmanager
    def _given(self, embedding: torch.Tensor) -> Iterator[None]:
        """The layer that reads the embedding reads this one."""

        def exchange(module: torch.nn.Module, inputs: Any) -> torch.Tensor:
            if inputs[0].shape != embedding.shape:
                found, wanted = tuple(inputs[0].shape), tuple(embedding.shape)
                raise ConformanceError(f"the first linear layer reads {found}, not the embedding of the times {wanted}")
            return embedding

        reader = next((module for module in self.module.modules() if isinstance(module, torch.nn.Linear)), None)
        if reader is None:
            raise ConformanceError("the network has no linear layer that could read the embedding of the times")
        handle = reader.register_forward_pre_hook(exchange)
        try:
            yield
        finally:
            handle.remove()

    def embedding(self, t: torch.Tensor) -> torch.Tensor:
        with WidenedFloat32() if t.dtype == torch.float64 else nullcontext():
            return self._embedding(t)

    def parameters(self) -> Any:
        """Originals ask a model for the device of its parameters."""
        return self.module.parameters()

    def observe(
        self, x: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sketches: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, torch.Tensor):
                    sketches[name] = sketch(output)

            return hook

        hooks = [m.register_forward_hook(keep(name)) for name, m in self.module.named_modules() if self._tapped(name)]
        try:
            return self(x, t, embedding), sketches
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


class WidenedFloat32(TorchFunctionMode):
    """Inside, whatever asks PyTorch for float32 by `dtype=torch.float32` or `.float()` gets float64."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        if options.get("dtype") is torch.float32:
            options["dtype"] = torch.float64
        return (torch.Tensor.double if function is torch.Tensor.float else function)(*arguments, **options)


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
