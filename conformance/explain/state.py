"""Where a search stands: what is under test, what has been repaired in it, and where it diverges first now."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from conformance.compare import FLOAT64
from conformance.explain.alteration import Alteration, altered
from conformance.explain.shortening import first_calls, stopping_after
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation
from conformance.replay import CaseResult, Settings, replay
from conformance.replay.pipeline import load

DRAWS = "random stream"

SHORT = 16
"""Evaluations of the network in which trials are made, where the divergence comes that early."""


@dataclass(frozen=True)
class Target:
    """The first divergence: an output and its step, None where it has no steps; `DRAWS` for the random stream."""

    output: str
    step: int | None

    @classmethod
    def of(cls, result: CaseResult) -> Target:
        first = result.first_divergence
        return cls(DRAWS, None) if first is None else cls(first.output, first.step)

    def __str__(self) -> str:
        return self.output if self.step is None else f"{self.output} step {self.step}"


@dataclass(frozen=True)
class State:
    """Where the search stands.

    Attributes:
        whole: the case.
        under_test: the implementation as it was given.
        settings: of all replays.
        result: what the replay with the repairs gave.
        repairs: what has been changed so far.
        calls: the case is cut after this many evaluations of the network; None: it is not.
    """

    whole: Fixture
    under_test: Implementation
    settings: Settings
    result: CaseResult
    repairs: tuple[Alteration, ...] = ()
    calls: int | None = None

    @classmethod
    def begin(cls, fixture: Fixture, under_test: Implementation, settings: Settings) -> State:
        """The implementation as it is, replayed."""
        return cls(fixture, under_test, settings, replay(fixture, under_test, settings))

    @cached_property
    def fixture(self) -> Fixture:
        """What is replayed: the case, or its beginning."""
        return self.whole if self.calls is None else first_calls(self.whole, self.calls)

    @cached_property
    def implementation(self) -> Implementation:
        """The implementation under test with all repairs, tables first: other repairs build on them."""
        implementation = self.under_test
        for alteration in sorted(self.repairs, key=lambda repair: not repair.replaces_tables):
            implementation = altered(implementation, alteration)
        return implementation if self.calls is None else stopping_after(implementation, self.calls)

    @cached_property
    def scheduler(self) -> Any:
        """A scheduler as the replay gets it, to see what it has; None if it cannot be built by itself."""
        try:
            if self.whole.manifest.kind == "pipeline":
                return load(self.whole, self.implementation).scheduler
            return self.implementation.scheduler(self.whole.manifest.subject)
        except Exception:  # noqa: BLE001 - a scheduler that cannot be built shows as such in the trials' replays
            return None

    def takes(self, option: str) -> bool:
        """Whether the scheduler's `step` has an option of that name."""
        return self.scheduler is not None and option in inspect.signature(self.scheduler.step).parameters

    @property
    def target(self) -> Target:
        return Target.of(self.result)

    def changed(self, alteration: Alteration) -> State:
        """The state with one more repair, not replayed: its result is still the old one."""
        return dataclasses.replace(self, repairs=(*self.repairs, alteration))

    def replayed(self) -> State:
        """The state with the result that belongs to it."""
        return dataclasses.replace(self, result=replay(self.fixture, self.implementation, self.settings))

    def shortened(self) -> State:
        """The beginning of a long sampler's case, as far as the first divergence; else the state itself."""
        times, step = self.whole.tensors.get("times", torch.empty(0)), self.target.step
        calls = max(SHORT, 0 if step is None else step + 1)
        is_sampler = self.whole.manifest.kind == "scheduler"
        if not is_sampler or self.at("timesteps") or not self.result.comparisons or calls >= len(times):
            return self
        return dataclasses.replace(self, calls=calls).replayed()

    def at(self, *outputs: str) -> bool:
        """Whether the first divergence is in one of these outputs, in any precision."""
        return self.target.output.removesuffix(FLOAT64) in outputs
