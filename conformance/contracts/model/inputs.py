"""What a network is called with: found from its signature and configuration, or modelled on inputs that were given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from conformance.contracts.result import NotApplicable

TIMES = ("timestep", "timesteps", "t")
TOKENS = "encoder_hidden_states"
LABELS = "class_labels"
MASKS = ("encoder_attention_mask", "encoder_hidden_states_mask")
"""Arguments that say which of the tokens count: (B, tokens), true or 1 for those that do."""

TIME_VALUES = (999, 517, 3, 250)
"""Odd, and too long for the 8 bits of bfloat16, so that a time in another precision is another time."""

TOKEN_COUNT = 5
NO_SHAPE = "name one with inputs={...}, a tensor for each argument, batch first"

Inputs = dict[str, Any]
Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d


class InputMaker:
    """Makes inputs of any batch size and seed, equal in every dtype but for rounding.

    Args:
        model: the network.
        given: keyword arguments of one good call. Tensors whose first size is that of the sample are a batch,
            all else is passed on as it is. None: found from the signature and the configuration.
    """

    def __init__(self, model: nn.Module, given: Mapping[str, Any] | None) -> None:
        self.parameters = inspect.signature(model.forward).parameters
        self.given = dict(given) if given is not None else None
        self.config = getattr(model, "config", {})
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._convolution = next((m for m in model.modules() if isinstance(m, Convolution)), None)
        unknown = [name for name in self.given or () if name not in self.parameters and not self._takes_any]
        if unknown:
            raise TypeError(
                f"forward has no {', '.join(unknown)}; inputs are called by name: {', '.join(self.parameters)}"
            )

    @property
    def _takes_any(self) -> bool:
        return any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    @property
    def sample_name(self) -> str:
        """The argument that is denoised or decoded: the first that is no time."""
        return next((name for name in (self.given or self.parameters) if name not in TIMES), "")

    @property
    def time_name(self) -> str:
        """The argument that is a time. Raises NotApplicable for a network without one."""
        found = next((name for name in (self.given or self.parameters) if name in TIMES), None)
        if found is None:
            raise NotApplicable("forward takes no timestep")
        return found

    @property
    def image_size(self) -> tuple[int, ...]:
        """The size of a sample without batch and channels."""
        if self.given is not None:
            sample = self.given[self.sample_name]
            return tuple(sample.shape[2:]) if isinstance(sample, torch.Tensor) else ()
        size = self._setting("sample_size")
        dims = len(self._require_convolution().kernel_size)
        if isinstance(size, (list, tuple)):
            return tuple(size)
        return (int(size or 16),) * dims

    def make(self, batch: int, seed: int, dtype: torch.dtype = torch.float32, size: tuple[int, ...] = ()) -> Inputs:
        """Keyword arguments of a call. Raises NotApplicable where it is not known what an argument should be.

        size: of the sample, in place of the configuration's.
        """
        if self.given is not None:
            source = torch.Generator().manual_seed(seed)
            length = len(self.given[self.sample_name])
            return {
                name: on_batch(value, length, functools.partial(_like, batch, source, dtype, name in TIMES))
                for name, value in self.given.items()
            }
        made: Inputs = {}
        for index, (name, parameter) in enumerate(self.parameters.items()):
            source = torch.Generator().manual_seed(1000 * seed + index)
            required = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            )
            if name == self.sample_name:
                made[name] = _normal((batch, self._channels(), *(size or self.image_size)), source, dtype)
            elif name in TIMES:
                made[name] = torch.tensor([TIME_VALUES[i % len(TIME_VALUES)] for i in range(batch)])
            elif name == LABELS and self._classes():
                made[name] = torch.arange(seed, seed + batch) % self._classes()
            elif name == TOKENS and (width := self._token_width()):
                made[name] = _normal((batch, TOKEN_COUNT, width), source, dtype)
            elif required:
                raise NotApplicable(f"it is not known what forward's {name} should be: {NO_SHAPE}")
        return {name: value.to(self.device) for name, value in made.items()}

    # --- what the configuration says ---------------------------------------------------------------------------------

    def _setting(self, name: str) -> Any:
        return self.config.get(name) if isinstance(self.config, Mapping) else getattr(self.config, name, None)

    def _require_convolution(self) -> Convolution:
        if self._convolution is None:
            raise NotApplicable(f"the shape of forward's {self.sample_name} is not known (no convolution): {NO_SHAPE}")
        return self._convolution

    def _channels(self) -> int:
        return int(self._setting("in_channels") or self._require_convolution().in_channels)

    def _classes(self) -> int:
        return int(self._setting("num_class_embeds") or self._setting("num_embeds_ada_norm") or 0)

    def _token_width(self) -> int:
        width = self._setting("encoder_hid_dim") or self._setting("cross_attention_dim") or 0
        return int(width[0] if isinstance(width, (list, tuple)) else width)


def _normal(shape: tuple[int, ...], source: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def on_batch(value: Any, batch: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with `change` applied to every tensor in it whose first size is the batch's."""
    if isinstance(value, Mapping):
        return {name: on_batch(each, batch, change) for name, each in value.items()}
    return change(value) if isinstance(value, torch.Tensor) and value.ndim and len(value) == batch else value


def _like(batch: int, source: torch.Generator, dtype: torch.dtype, is_time: bool, value: torch.Tensor) -> torch.Tensor:
    """Random numbers with mean and spread of a floating tensor; the rows of any other tensor, over and over."""
    if is_time or not value.is_floating_point():
        return value[torch.arange(batch) % len(value)]
    spread = value.double().std().cpu() if value.numel() > 1 else torch.tensor(1.0)
    noise = torch.randn((batch, *value.shape[1:]), generator=source, dtype=torch.float64)
    return (noise * spread + value.double().mean().cpu()).to(value.device, dtype)
