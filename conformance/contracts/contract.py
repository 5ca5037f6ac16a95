"""A contract: a property that any scheduler, model or pipeline must have, and how it is held against one.

A check is a plain function `check(subject, given)`. It draws configurations and seeds from `given` (tensors follow from
seeds), and raises `Violation` if the property does not hold, `NotApplicable` if there is nothing to look at. hypothesis
chooses the draws and shrinks a failing one to the smallest example.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from conformance.contracts.result import CheckResult, NotApplicable, Status, Violation

Value = TypeVar("Value")


@dataclass(frozen=True)
class Profile:
    """How hard to look.

    Attributes:
        scale: multiplies every contract's number of examples.
        seed: None for the same examples in every run (CI), else the seed of a random search.
    """

    scale: float = 1.0
    seed: int | None = None


class Given:
    """Where a check draws from; remembers what it drew, for the report."""

    def __init__(self, data: st.DataObject | None = None) -> None:
        self._data = data
        self.drawn: dict[str, Any] = {}

    def draw(self, name: str, strategy: st.SearchStrategy[Value]) -> Value:
        """A value of `strategy`, shown in the report as `name=value`."""
        assert self._data is not None
        value = self._data.draw(strategy)
        self.drawn[name] = value
        return value

    def note(self, name: str, value: Any) -> None:
        """Add to the report what the check chose itself."""
        self.drawn[name] = value

    def seed(self) -> int:
        """A seed for tensors and generators."""
        return self.draw("seed", st.integers(0, 2**16 - 1))

    @property
    def example(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.drawn.items())


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
        profile = profile or Profile()
        start = time.perf_counter()
        last = Given()

        def one(data: st.DataObject) -> None:
            nonlocal last
            last = Given(data)
            self.check(subject, last)

        def result(status: Status, reason: str = "", **figures: Any) -> CheckResult:
            example = "" if status is Status.PASSED else last.example
            return CheckResult(self.name, subject.name, status, reason, example, **figures,
                               seconds=time.perf_counter() - start)  # fmt: skip

        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.examples == 1:
                    last = Given()
                    self.check(subject, last)
                else:
                    self._search(one, profile)
        except NotApplicable as missing:
            return result(Status.NOT_APPLICABLE, str(missing))
        except Violation as violation:
            return result(Status.FAILED, violation.reason, step=violation.step, **violation.figures)
        except Exception as error:  # noqa: BLE001 - an error inside the subject is a finding, not a crash of the harness
            return result(Status.FAILED, f"{type(error).__name__}: {error}")
        return result(Status.PASSED)

    def _search(self, one: Callable[[st.DataObject], None], profile: Profile) -> None:
        test = given(st.data())(one)
        test = settings(
            max_examples=max(1, round(self.examples * profile.scale)),
            derandomize=profile.seed is None,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )(test)
        if profile.seed is not None:
            test = seed(profile.seed)(test)
        warnings.simplefilter("ignore", HypothesisWarning)
        test()
