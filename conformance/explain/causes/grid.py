"""The sampler visits other timesteps than the original: another rule, or the same rule shifted."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import wraps
from typing import Any

import torch

from conformance.explain.alteration import Alteration, after_timesteps, specialise
from conformance.explain.causes.network_time import OFF_BY_ONE
from conformance.explain.state import State
from conformance.explain.trial import Cause, Repair
from conformance.fixture import Subject


class _Given(Alteration):
    """The grid given as the argument `timesteps` of `set_timesteps`."""

    def __init__(self, grid: torch.Tensor) -> None:
        self._grid = [int(t) for t in grid]

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        own = type(scheduler).set_timesteps

        @wraps(own)
        def set_timesteps(this: Any, *arguments: Any, device: Any = None, **options: Any) -> None:
            own(this, device=device, timesteps=self._grid)

        specialise(scheduler, set_timesteps=set_timesteps)


class _Assigned(Alteration):
    """The list `timesteps` overwritten after `set_timesteps`; and the network given `times`, if there are any."""

    def __init__(self, grid: torch.Tensor, times: torch.Tensor | None = None) -> None:
        whole = bool((grid == grid.round()).all())
        self._grid = grid.to(torch.int64 if whole else torch.float32)
        self._times = times

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        def overwrite() -> None:
            scheduler.timesteps = self._grid.to(scheduler.timesteps.device)

        after_timesteps(scheduler, overwrite)

    def time(self, call: int, time: float) -> float:
        return time if self._times is None else float(self._times[call % len(self._times)])


def _constant_shift(state: State) -> float | None:
    """By how much all times differ from the original's, if by the same; else None."""
    times = next((c.observed for c in state.result.comparisons if c.output == "timesteps"), None)
    recorded = state.fixture.tensors.get("times")
    if times is None or recorded is None or times.shape != recorded.shape or not len(times):
        return None
    shift = times.double() - recorded.double()
    return float(shift[0]) if bool((shift == shift[0]).all()) and float(shift[0]) else None


def _shifted(state: State) -> Iterator[Repair]:
    shift = _constant_shift(state)
    if state.at("timesteps") and shift is not None:
        yield from _grids(state, f"every timestep is off by {shift:+g}")


def _ruled(state: State) -> Iterator[Repair]:
    is_pipeline = state.fixture.manifest.kind == "pipeline"
    if is_pipeline or (state.at("timesteps") and _constant_shift(state) is None and not _only_scaled(state)):
        yield from _grids(state, "the timesteps are chosen by another rule")


def _only_scaled(state: State) -> bool:
    """Whether the grid is the original's, and only the scale of the network's time is not."""
    scheduler = state.implementation.scheduler(state.fixture.manifest.subject)
    state.implementation.set_timesteps(scheduler, state.fixture.manifest.subject)
    grid = state.fixture.tensors["times"] / _scale(state)
    return torch.equal(torch.as_tensor(scheduler.timesteps).to("cpu", torch.float64), grid.double())


def _scale(state: State) -> float:
    """What the original multiplies a timestep by before its network gets it."""
    return float((state.fixture.manifest.subject.network or {}).get("time_scale", 1.0))


def _grids(state: State, statement: str) -> Iterator[Repair]:
    recorded = state.fixture.tensors.get("times")
    if recorded is None or not state.at("timesteps", "embedding", "sample", "images"):
        return
    scale = _scale(state)
    grid = recorded / scale
    chooses = getattr(state.scheduler, "set_timesteps", None)
    takes_list = chooses is not None and "timesteps" in inspect.signature(chooses).parameters
    if takes_list and bool((grid == grid.round()).all()):
        change = "the original's timesteps, as an argument"
        yield Repair(statement, change, _Given(grid))
    change = "the original's timesteps, in the scheduler's list"
    yield Repair(statement, change, _Assigned(grid))
    if scale != 1.0:
        statement += f", and the network is not given t · {scale:g}"
        change = f"the original's timesteps, and times of the network · {scale:g}"
        yield Repair(statement, change, _Assigned(grid, recorded))


CAUSES = (Cause(OFF_BY_ONE, _shifted), Cause("grid rule", _ruled))
