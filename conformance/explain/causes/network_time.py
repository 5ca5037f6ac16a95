"""The network is given another time than the original gives it, while the sampler is where it should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from conformance.explain.alteration import Alteration
from conformance.explain.state import State
from conformance.explain.trial import Cause, Repair

OFF_BY_ONE = "timestep off by one"
FRACTIONAL = "integer against fractional network time"


class _Time(Alteration):
    """Every time of the network mapped."""

    def __init__(self, change: Callable[[int, float], float]) -> None:
        self._change = change

    def time(self, call: int, time: float) -> float:
        return self._change(call, time)


def _shifts(state: State) -> Iterator[Repair]:
    if not state.at("timesteps", "embedding", "sample", "images") or not _same_length(state):
        return
    for wrong, shift in (("too large", -1.0), ("too small", 1.0)):
        yield _repair(
            state, f"the network's time is {wrong} by 1", f"network time {shift:+g}", lambda c, t, s=shift: t + s
        )


def _roundings(state: State) -> Iterator[Repair]:
    if not state.at("timesteps", "embedding", "sample", "images") or not _same_length(state):
        return
    recorded = state.fixture.tensors["times"].tolist()
    for what, whole in (("rounded down", math.floor), ("rounded", round)):
        yield _repair(
            state,
            f"the original's network times are fractional, these are {what}",
            "network times with the original's fractions",
            lambda c, t, whole=whole: recorded[c % len(recorded)] if whole(recorded[c % len(recorded)]) == t else t,
        )
        yield _repair(
            state,
            f"the original's network times are {what} to integers, these are fractional",
            f"network times {what}",
            lambda c, t, whole=whole: float(whole(t)),
        )
    steps = _train_timesteps(state)
    if steps is not None and steps != 1000:
        for statement, factor in (
            ("the original gives its network t · 1000/T, this is t", 1000.0 / steps),
            ("the original gives its network t, this is t · 1000/T", steps / 1000.0),
        ):
            yield _repair(state, statement, f"network time · {factor:g}", lambda c, t, factor=factor: t * factor)


def _repair(state: State, statement: str, change: str, function: Callable[..., float]) -> Repair:
    return Repair(statement, change, _Time(function))


def _same_length(state: State) -> bool:
    """A network's time can only be wrong by itself where there are as many of them as there should be."""
    times = next((c for c in state.result.comparisons if c.output == "timesteps"), None)
    recorded = state.fixture.tensors.get("times")
    if recorded is None or (times is not None and times.verdict.green):
        return False
    return times is None or times.observed is None or times.observed.shape == recorded.shape


def _train_timesteps(state: State) -> int | None:
    found = state.fixture.manifest.subject.config.get("num_train_timesteps")
    return found if isinstance(found, int) else None


CAUSES = (Cause(OFF_BY_ONE, _shifts), Cause(FRACTIONAL, _roundings))
