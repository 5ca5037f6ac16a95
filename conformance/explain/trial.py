"""Trials: what is changed, what came of it, and whether that confirms the cause.

A divergence has a place, its *target*: an output and a step, or the random stream. Two kinds of trial exist:

- a `Repair` changes the implementation under test, or what it is fed; the case is replayed. The cause is confirmed if
  the divergence at the target disappears, partly confirmed if its error falls by PARTLY or more.
- a `Reproduction` changes the original's step instead: with the suspect changed, it must give what the implementation
  gave. Confirmed if that holds at every step, partly confirmed if it holds at the target.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from conformance.compare import FLOAT64, Comparison, Verdict, relative_errors
from conformance.explain.alteration import Alteration
from conformance.explain.screening import error_at_first_sight
from conformance.explain.state import DRAWS, State, Target
from conformance.fixture import Fixture
from conformance.replay import CaseResult

PARTLY = 100.0
"""A fall of the error by this factor confirms a cause in part."""

NOTICEABLE = 2.0
"""A divergence that goes while its error falls by less than this only crossed its bound."""


class Finding(enum.Enum):
    """What a trial says about its cause, from best to worst."""

    CONFIRMED = "confirmed"
    PARTLY = "partly"
    REFUTED = "refuted"


@dataclass(frozen=True)
class Repair:
    """Replay the implementation with `alteration`, in which the suspect is changed.

    statement: what is wrong, if the cause is confirmed. change: what was changed. note: what the replay showed beside.
    """

    statement: str
    change: str
    alteration: Alteration
    note: Callable[[], str] = field(default=lambda: "", repr=False)


@dataclass(frozen=True)
class Reproduction:
    """Compare the implementation's steps with `steps`, (n, ...) float64: the original's with the suspect changed.

    resolution: (n,) how well such steps reproduce the recording without the change, relative.
    """

    statement: str
    change: str
    steps: torch.Tensor = field(repr=False)
    resolution: torch.Tensor = field(repr=False)


Trial = Repair | Reproduction


@dataclass(frozen=True)
class Cause:
    """A known cause of divergences: its name, and the trials of it that make sense where the search stands."""

    name: str
    trials: Callable[[State], Iterable[Trial]]


@dataclass(frozen=True)
class Attempt:
    """One trial that was made.

    Attributes:
        cause: name in the table of causes.
        statement, change: of the trial.
        finding: what it says.
        before, after: error at the target, relative; inf where shapes differ, 0 or 1 for the random stream.
        reproduction: the original's step was changed, not the implementation.
        verdict: of the case with the change; None for a reproduction, and for a repair that was refuted at first sight.
        then: the first divergence with the change, if there is one.
        remaining: largest error of that; 0 if there is none.
        state: where the search would go on from; None as above.
    """

    cause: str
    statement: str
    change: str
    finding: Finding
    before: float
    after: float
    reproduction: bool = False
    verdict: Verdict | None = None
    then: Target | None = None
    remaining: float = 0.0
    state: State | None = field(default=None, repr=False)

    @property
    def fall(self) -> float:
        """By which factor the error fell."""
        if self.after == 0:
            return math.inf if self.before else 1.0
        return 1.0 if math.isinf(self.before) and math.isinf(self.after) else self.before / self.after

    @property
    def green(self) -> bool:
        return self.verdict is not None and self.verdict.green


def try_repair(state: State, cause: str, repair: Repair) -> Attempt:
    """What a replay with the change says about the cause."""
    target, output = state.target, _measured(state)
    before = _error(state.fixture, state.result, output, target.step)
    changed = state.changed(repair.alteration)
    seen = error_at_first_sight(changed, output, target.step)
    if seen is not None and seen * NOTICEABLE > before:
        return Attempt(cause, repair.statement, repair.change, Finding.REFUTED, before, seen, remaining=math.inf)
    changed = changed.replayed()
    result = changed.result
    after = _error(state.fixture, result, output, target.step)
    finding = Finding.REFUTED
    if result.verdict in (Verdict.ERROR, Verdict.UNSUPPORTED):
        after = math.inf
    elif result.verdict.green:
        finding = Finding.CONFIRMED
    elif _gone(result, target.output, target.step) and after * NOTICEABLE <= before:
        sharply = output == target.output or _gone(result, output, target.step) or after * PARTLY <= before
        finding = Finding.CONFIRMED if sharply else Finding.PARTLY
    elif after * PARTLY <= before and math.isfinite(after) and _begins_here(result, target):
        finding = Finding.PARTLY
    refuted = finding is Finding.REFUTED
    first = None if result.verdict.green or refuted else result.first_divergence
    then = None if result.verdict.green or refuted else Target.of(result)
    remaining = math.inf if refuted else 0.0 if first is None else first.error
    note = "" if refuted else repair.note()
    statement = f"{repair.statement} ({note})" if note else repair.statement
    return Attempt(
        cause, statement, repair.change, finding, before, after, False, result.verdict, then, remaining, changed
    )


def try_reproduction(state: State, cause: str, trial: Reproduction) -> Attempt:
    """Whether the original's steps with the change are the implementation's."""
    observed = observed_steps(state.result)
    assert observed is not None and state.target.step is not None
    recorded = state.fixture.tensors["step" + FLOAT64]
    away, _ = relative_errors(observed, recorded)
    gap, _ = relative_errors(observed, trial.steps)
    step = state.target.step
    # Elsewhere a divergence can be too small to be told from the resolution of these steps.
    seen = away > PARTLY * trial.resolution
    finding = Finding.REFUTED
    if bool(seen[step]) and float(gap[step]) * PARTLY <= float(away[step]):
        finding = Finding.CONFIRMED if bool((gap[seen] * PARTLY <= away[seen]).all()) else Finding.PARTLY
    before, after = float(away[step]), float(gap[step])
    return Attempt(cause, trial.statement, trial.change, finding, before, after, reproduction=True, remaining=after)


def observed_steps(result: CaseResult) -> torch.Tensor | None:
    """(n, ...) float64: what each step alone gave, in the widest arithmetic that was replayed; None if none was."""
    found = {c.output: c.observed for c in result.comparisons if c.observed is not None}
    steps = found.get("step" + FLOAT64, found.get("step"))
    return None if steps is None else steps.to("cpu", torch.float64)


def _measured(state: State) -> str:
    """The output that the error is read from: the target's, or its comparison in float64 if that diverges too."""
    output = state.target.output
    wide = _find(state.result, output + FLOAT64)
    return wide.output if wide is not None and not _gone(state.result, wide.output, state.target.step) else output


def _gone(result: CaseResult, output: str, step: int | None) -> bool:
    """Whether there is no divergence in `output` up to `step`."""
    if output == DRAWS:
        return result.draws_match is True
    found = _find(result, output)
    if found is None:
        return False
    later = found.step is not None and step is not None and found.step > step and math.isfinite(found.error)
    return found.verdict.green or later


def _begins_here(result: CaseResult, target: Target) -> bool:
    """Whether nothing before the target diverges."""
    return target.step in (None, 0) or _gone(result, target.output, target.step - 1)


def _error(fixture: Fixture, result: CaseResult, output: str, step: int | None) -> float:
    """Relative error of the output at the step; the largest where it has no steps that could be told apart."""
    if output == DRAWS:
        return 0.0 if result.draws_match else 1.0
    found = _find(result, output)
    if found is None:
        return math.inf
    exact = fixture.tensors.get(output.removesuffix(FLOAT64) + FLOAT64)
    if step is None or found.observed is None or exact is None or found.observed.shape != exact.shape:
        return found.error
    norm, _ = relative_errors(found.observed, exact)
    return float(norm[step]) if step < len(norm) else found.error


def _find(result: CaseResult, output: str) -> Comparison | None:
    return next((c for c in result.comparisons if c.output == output), None)
