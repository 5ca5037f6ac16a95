"""A contract: a property that any scheduler, model or pipeline must have, and how it is held against one.

A check is a plain function `check(subject, given)`. It draws configurations and seeds from `given` (tensors follow from
seeds), and raises `Violation` if the property does not hold, `NotApplicable` if there is nothing to look at. hypothesis
chooses the draws and shrinks a failing one to the smallest example.
"""

from __future__ import annotations

import random
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import hypothesis.configuration
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisWarning
from hypothesis.reporting import with_reporter

from conformance.contracts.result import CheckResult, NotApplicable, Status, Violation

Value = TypeVar("Value")


@dataclass(frozen=True)
class Profile:
    """How hard to look.

    Attributes:
        scale: multiplies every contract's number of examples.
        seed: None for the same examples in every run (CI), else the seed of a random search.
        shrink: look for the smallest failing example; False stops at the first one.
        patience: seconds of this process's time after which a contract tries no further example. Far more than
            schedulers need; a subject that is slow to make or to run gets fewer examples.
    """

    scale: float = 1.0
    seed: int | None = None
    shrink: bool = True
    patience: float = 1.5

    def search(self, examples: int, **more: Any) -> settings:
        """hypothesis' settings for a search over `examples` examples, which leaves nothing on disk."""
        return settings(
            max_examples=max(1, round(examples * self.scale)),
            derandomize=self.seed is None,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink) if self.shrink else (Phase.generate,),
            **more,
        )


class Given:
    """Where a check draws from; remembers what it drew, for the report.

    Attributes:
        profile: how hard to look, for a check that searches by itself.
        began: the process's time when the contract began.
        stopped: whether the search was ended before its time. hypothesis may take that for a flaky check.
    """

    def __init__(
        self, data: st.DataObject | None = None, profile: Profile | None = None, began: float | None = None
    ) -> None:
        self._data = data
        self.profile = profile or Profile()
        self.began = time.process_time() if began is None else began
        self.stopped = False
        self.drawn: dict[str, Any] = {}

    @property
    def out_of_time(self) -> bool:
        """Whether the contract has looked long enough."""
        return time.process_time() - self.began > self.profile.patience

    def stop_if_out_of_time(self) -> None:
        """Ends the search, at what it has found so far, once the contract has looked long enough."""
        if self.out_of_time:
            self.stopped = True
            raise _Enough

    def draw(self, name: str, strategy: st.SearchStrategy[Value]) -> Value:
        """A value of `strategy`, shown in the report as `name=value`."""
        value = self.pick(strategy)
        self.drawn[name] = value
        return value

    def pick(self, strategy: st.SearchStrategy[Value]) -> Value:
        """A value of `strategy` that the report does not show."""
        assert self._data is not None
        return self._data.draw(strategy)

    def note(self, name: str, value: Any) -> None:
        """Add to the report what the check chose itself."""
        self.drawn[name] = value

    def seed(self) -> int:
        """A seed for tensors and generators."""
        return self.draw("seed", st.integers(0, 2**16 - 1))

    @property
    def example(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.drawn.items())


class _Enough(BaseException):
    """Passes through hypothesis, which would take an Exception for a failure of the check."""


@dataclass(frozen=True)
class Contract:
    """One property.

    Attributes:
        check: `check(subject, given)`.
        examples: how many examples hypothesis tries; 1 for a check that draws nothing.
    """

    check: Callable[[Any, Given], None]
    examples: int = 1

    @property
    def name(self) -> str:
        return self.check.__name__

    @property
    def statement(self) -> str:
        """What must hold: the first paragraph of the check's docstring."""
        return " ".join((self.check.__doc__ or "").strip().split("\n\n")[0].split())

    def hold(self, subject: Any, profile: Profile | None = None) -> CheckResult:
        """Hold the contract against `subject`. Never raises for what the subject does: any failure is the result."""
        trial = _Trial(self, subject, profile or Profile())
        start = time.perf_counter()
        with torch.no_grad(), _random_states_kept(), _quiet():
            outcome = trial.outcome()
        example = "" if outcome is None else trial.last.example
        seconds = time.perf_counter() - start
        if outcome is None:
            return CheckResult(self.name, subject.name, Status.PASSED, seconds=seconds)
        if isinstance(outcome, NotApplicable):
            return CheckResult(self.name, subject.name, Status.NOT_APPLICABLE, str(outcome), example, seconds=seconds)
        if isinstance(outcome, Violation):
            return CheckResult(self.name, subject.name, Status.FAILED, outcome.reason, example, step=outcome.step,
                               seconds=seconds, **outcome.figures)  # fmt: skip
        reason = f"{type(outcome).__name__}: {outcome} ({_innermost(outcome)})"
        return CheckResult(self.name, subject.name, Status.FAILED, reason, example, seconds=seconds)


class _Trial:
    """One contract, one subject: tries examples until one fails, and then smaller ones.

    Attributes:
        last: what was drawn for the example that decides.
    """

    def __init__(self, contract: Contract, subject: Any, profile: Profile) -> None:
        self._contract, self._subject, self._profile = contract, subject, profile
        self.last = Given(profile=profile)
        self._began = self.last.began
        self._tried = self._held = False
        self._missing: NotApplicable | None = None
        self._failed: tuple[Exception, Given] | None = None

    def outcome(self) -> Exception | None:
        """None if the contract holds, else what was raised."""
        try:
            if self._contract.examples == 1:
                self._contract.check(self._subject, self.last)
            else:
                self._search()
        except (_Enough, Flaky) as end:
            flaky = isinstance(end, Flaky) and not self.last.stopped
            error, self.last = self._failed or (None, self.last)
            if flaky:
                return Violation(f"in one of two equal tries: {error or end}")
            if error is not None:
                return error
        except Exception as error:  # noqa: BLE001 - an error inside the subject is a finding, not a crash of the harness
            return error
        return None if self._held else self._missing

    def _search(self) -> None:
        test = self._profile.search(self._contract.examples)(given(st.data())(self._try))
        if self._profile.seed is not None:
            test = seed(self._profile.seed)(test)
        test()

    def _try(self, data: st.DataObject) -> None:
        example = Given(data, self._profile, self._began)
        patience = self._profile.patience * (3 if self._failed else 1)  # to find a failure, and to make it smaller
        if self._tried and time.process_time() - self._began > patience:
            self.last.stopped = True
            raise _Enough
        self.last, self._tried = example, True
        try:
            self._contract.check(self._subject, example)
        except NotApplicable as missing:  # to this example; the contract applies if it does to any
            self._missing = missing
        except Exception as error:
            self._failed = error, example
            raise
        else:
            self._held = True


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and hypothesis neither prints nor writes into the current directory."""
    home = getattr(hypothesis.configuration, "__hypothesis_home_directory", None)
    hypothesis.configuration.set_hypothesis_home_dir(_scratch_folder().name)
    try:
        with warnings.catch_warnings(), with_reporter(lambda text: None):
            warnings.simplefilter("ignore")
            warnings.simplefilter("ignore", HypothesisWarning)
            yield
    finally:
        hypothesis.configuration.set_hypothesis_home_dir(home)


@lru_cache(maxsize=1)
def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """One a process; kept alive by the cache, deleted when the interpreter ends."""
    return tempfile.TemporaryDirectory(prefix="conformance-")


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """The global random states of torch, NumPy and Python are afterwards what they were before."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _innermost(error: Exception) -> str:
    """Where an error was raised: "file.py, line 12"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "no traceback"
