"""The search for causes: try all that make sense, keep the best, and try again on what is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from conformance.compare import Verdict
from conformance.explain.causes import CAUSES
from conformance.explain.modules import Localisation, localise
from conformance.explain.state import State
from conformance.explain.trial import (
    PARTLY,
    Attempt,
    Cause,
    Finding,
    Repair,
    Trial,
    try_repair,
    try_reproduction,
)
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation
from conformance.replay import CaseResult, Settings

ROUNDS = 4
"""How many causes are put together at most."""

CLOSEST = 3.0
"""A trial that lets the error fall by less than this factor is not worth showing."""


@dataclass(frozen=True)
class Round:
    """The trials made from one state. calls: of how many evaluations of the network; None: of the whole case."""

    attempts: list[Attempt]
    calls: int | None = None

    @property
    def hint(self) -> Attempt | None:
        """The trial that explains most; None if all are refuted."""
        found = sorted((a for a in self.attempts if a.finding is not Finding.REFUTED), key=_merit)
        if not found:
            return None
        # A repair leads on to what is left, where that is another, much smaller thing; a reproduction ends the search.
        first = found[0]
        repairs = [a for a in found if a.cause == first.cause and a.finding is first.finding and a.state is not None]
        leading = [a for a in repairs if a.green or a.remaining * PARTLY <= a.before]
        return leading[0] if leading else first

    @property
    def closest(self) -> Attempt | None:
        """Where all are refuted: the repair after which the error was smallest, if it fell noticeably."""
        near = [a for a in self.attempts if not a.reproduction and a.fall >= CLOSEST]
        return max(near, key=lambda attempt: attempt.fall, default=None) if self.hint is None else None

    @property
    def rivals(self) -> list[str]:
        """Other causes that were confirmed as well as the hint: which one it is, the recording cannot tell."""
        hint = self.hint
        if hint is None or hint.finding is not Finding.CONFIRMED:
            return []
        found = [a.cause for a in self.attempts if _merit(a)[:2] == _merit(hint)[:2] and a.cause != hint.cause]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Explanation:
    """Why a case diverges.

    Attributes:
        fixture, result: the case, and what its replay gave.
        module: for a network, the first divergent module.
        rounds: each begins where the hint of the one before led.
        final: what the replay gives with all repairs that were kept; None if there are none.
        seconds: how long the search took.
    """

    fixture: Fixture
    result: CaseResult
    module: Localisation | None = None
    rounds: list[Round] = field(default_factory=list)
    final: CaseResult | None = None
    seconds: float = 0.0

    @property
    def hints(self) -> list[Attempt]:
        """The causes that together explain the divergence, that of the first divergence first."""
        return [hint for hint in (turn.hint for turn in self.rounds) if hint is not None]

    @property
    def causes(self) -> list[str]:
        """The names of the hints."""
        return [hint.cause for hint in self.hints]

    @property
    def rivals(self) -> list[str]:
        """Causes that explain a divergence as well as a hint."""
        return [name for turn in self.rounds for name in turn.rivals]

    @property
    def tried(self) -> list[str]:
        """The names of all causes that were tried."""
        return list(dict.fromkeys(attempt.cause for turn in self.rounds for attempt in turn.attempts))

    @property
    def trials(self) -> int:
        return sum(len(turn.attempts) for turn in self.rounds)

    @property
    def complete(self) -> bool:
        """Whether the case passes with all hints applied, or its steps are those of the original with the last one."""
        reproduced = bool(self.hints) and self.hints[-1].reproduction
        confirmed = all(hint.finding is Finding.CONFIRMED for hint in self.hints)
        return (self.final is not None and self.final.verdict.green) or (reproduced and confirmed)


def explain(
    fixture: Fixture, implementation: Implementation, settings: Settings, causes: Sequence[Cause] = CAUSES
) -> Explanation:
    """Replay the case and, if it diverges, say where and why. A network's divergence is located, a sampler's tried.

    Raises:
        FixtureError: the fixture itself is damaged.
    """
    start = time.perf_counter()
    state = State.begin(fixture, implementation, settings)
    result = state.result
    module: Localisation | None = None
    rounds: list[Round] = []
    final: CaseResult | None = None
    if result.verdict is Verdict.DIVERGENT:
        module = localise(fixture, implementation, settings, result)
        rounds, last = _search(state, causes if module is None else ())
        final = last.result if last.repairs else None
    return Explanation(fixture, result, module, rounds, final, time.perf_counter() - start)


def _merit(attempt: Attempt) -> tuple[int, bool, float]:
    """Smaller is better: the finding, then whether nothing is left, then how much is left."""
    return (list(Finding).index(attempt.finding), not attempt.green, attempt.remaining)


def _search(state: State, causes: Sequence[Cause]) -> tuple[list[Round], State]:
    rounds: list[Round] = []
    while causes and len(rounds) < ROUNDS and not state.result.verdict.green:
        begin = state.shortened()
        turn = Round(list(_attempts(begin, causes)), begin.calls)
        rounds.append(turn)
        if turn.hint is None or turn.hint.state is None:
            break
        kept = turn.hint.state
        state = kept if begin.calls is None else state.changed(kept.repairs[-1]).replayed()
    return rounds, state


def _attempts(state: State, causes: Sequence[Cause]) -> Iterator[Attempt]:
    """All trials; of a pipeline, whose replays take long, up to the first that leaves nothing."""
    for cause in causes:
        for trial in cause.trials(state):
            attempt = _attempt(state, cause.name, trial)
            yield attempt
            if attempt.green and state.whole.manifest.kind == "pipeline":
                return


def _attempt(state: State, cause: str, trial: Trial) -> Attempt:
    return try_repair(state, cause, trial) if isinstance(trial, Repair) else try_reproduction(state, cause, trial)
