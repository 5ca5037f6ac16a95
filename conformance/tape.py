"""The tape: the ordered random draws of a run.

Recording wraps `torch.randn` and `torch.randn_like` while the original runs and keeps every draw; playing back hands
the recorded values out again, in order, in the dtype that the caller asks for. Neither leaves a trace in the global
RNG.

`StreamCheck` tells, without looking into an implementation, whether it consumed a generator as the original did:
after each step the generator's state must equal that of a shadow generator from which the tape's draws were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from conformance.fixture import Draw

TORCH_CPU = "torch-cpu"  # the stream of torch.Generator("cpu")
INITIAL = "initial"
PREPARATION = "preparation"  # what is drawn after x_T and before the first network call


@dataclass
class DrawLog:
    """Draws in order, as CPU tensors, with the number of network calls that preceded each."""

    values: list[torch.Tensor] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    def manifest(self) -> list[Draw]:
        """The draws as the manifest lists them: `initial`, others before the first network call, `noise_<call>`."""
        names = [f"noise_{calls - 1}" if calls else PREPARATION if i else INITIAL for i, calls in enumerate(self.calls)]
        return [
            Draw(name, list(value.shape), str(value.dtype).split(".")[-1])
            for name, value in zip(names, self.values, strict=True)
        ]

    def stacked(self) -> torch.Tensor:
        """(n, ...) all draws, in the widest of their dtypes."""
        widest = torch.float64 if any(value.dtype == torch.float64 for value in self.values) else torch.float32
        return torch.stack([value.to(widest) for value in self.values])


def draws_by_call(draws: Sequence[Draw], values: Sequence[torch.Tensor], calls: int) -> list[list[torch.Tensor]]:
    """For each of the network's calls, the values that the original drew after it and before the next."""
    by_call: list[list[torch.Tensor]] = [[] for _ in range(calls)]
    for draw, value in zip(draws, values, strict=True):
        if draw.name not in (INITIAL, PREPARATION):
            by_call[int(draw.name.removeprefix("noise_"))].append(value)
    return by_call


def preparation(draws: Sequence[Draw], values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The values that the original drew after x_T and before its first network call."""
    return [value for draw, value in zip(draws, values, strict=True) if draw.name == PREPARATION]


def drawn_here(seed: int, draws: Sequence[Draw]) -> list[torch.Tensor]:
    """The tape's draws made anew by this machine's CPU generator."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(tuple(draw.shape), generator=generator, dtype=getattr(torch, draw.dtype)) for draw in draws]


@dataclass(frozen=True)
class MadeDraw:
    """A draw that an original makes by other means than torch.randn, as from a Brownian path.

    Given to torch.randn as its generator, it goes on the tape and comes from there like any other; `make` is called
    only while recording.
    """

    make: Callable[[], torch.Tensor]


@contextmanager
def recorded_draws(seed: int, calls: Callable[[], int]) -> Iterator[DrawLog]:
    """Seed torch's CPU generator and log every draw; the global RNG state is restored afterwards.

    Args:
        calls: how many network calls have been made so far.
    """
    log = DrawLog()

    def draw(shape: Sequence[int], dtype: torch.dtype | None, device: Any, generator: Any = None) -> torch.Tensor:
        if isinstance(generator, MadeDraw):
            with _patched_with(*originals):
                value = generator.make()
        else:
            value = originals[0](tuple(shape), dtype=dtype)
        log.values.append(value.clone() if value.dtype == torch.float64 else value.to(torch.float32, copy=True))
        log.calls.append(calls())
        return value

    originals = torch.randn, torch.randn_like
    state = torch.get_rng_state()
    with _patched(draw):
        torch.manual_seed(seed)
        try:
            yield log
        finally:
            torch.set_rng_state(state)


@contextmanager
def replayed_draws(values: Sequence[torch.Tensor]) -> Iterator[None]:
    """Hand out recorded draws in order instead of random numbers; asking for another shape or for more is an error."""
    remaining = iter(values)

    def draw(shape: Sequence[int], dtype: torch.dtype | None, device: Any, generator: Any = None) -> torch.Tensor:
        value = next(remaining, None)
        held = None if value is None else tuple(value.shape)
        if value is None or held != tuple(shape):
            raise RuntimeError(f"the run asks for a draw of {tuple(shape)}, the tape holds {held or 'no more'}")
        return value.to(device or value.device, dtype or torch.float32, copy=True)

    with _patched(draw):
        yield


@contextmanager
def _patched(draw: Any) -> Iterator[None]:
    def randn(
        *sizes: Any,
        size: Any = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
        generator: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        if size is None:
            size = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        return draw(size, dtype, device, generator)

    def randn_like(
        tensor: torch.Tensor, dtype: torch.dtype | None = None, device: Any = None, **_: Any
    ) -> torch.Tensor:
        return draw(tensor.shape, dtype or tensor.dtype, device or tensor.device)

    with _patched_with(randn, randn_like):
        yield


@contextmanager
def _patched_with(randn: Any, randn_like: Any) -> Iterator[None]:
    before = torch.randn, torch.randn_like
    torch.randn, torch.randn_like = randn, randn_like
    try:
        yield
    finally:
        torch.randn, torch.randn_like = before


class StreamCheck:
    """Follows a generator through a run and compares its state with the tape's after each step.

    Args:
        seed: of the tape.
        draws: the tape's draws; `expect(n)` advances the shadow by the next n of them.
    """

    def __init__(self, seed: int, draws: Sequence[Draw]) -> None:
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self._shadow = torch.Generator("cpu").manual_seed(seed)
        self._draws = iter(draws)

    def expect(self, count: int) -> bool:
        """Whether the generator stands where it must after the next `count` draws of the tape."""
        for _ in range(count):
            draw = next(self._draws)
            torch.randn(tuple(draw.shape), generator=self._shadow, dtype=getattr(torch, draw.dtype))
        return torch.equal(self.generator.get_state(), self._shadow.get_state())
