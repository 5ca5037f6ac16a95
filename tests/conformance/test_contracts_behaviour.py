"""Every contract of behaviour fails on a scheduler that breaks it, says why, and holds for one that does not."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_behaviour import BROKEN, EndsInNaN, FlowScheduler
from hypothesis import strategies as st

from conformance import check_scheduler
from conformance.contracts.contract import Contract, Given, Profile
from conformance.contracts.result import NotApplicable, Status, Violation
from conformance.contracts.scheduler import grid, lifecycle, randomness, starts, tensors
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from diffusers_ref import DDIMScheduler

CONTRACTS = {
    contract.name: contract
    for module in (lifecycle, grid, starts, tensors, randomness)
    for contract in module.CONTRACTS
}
QUICK = Profile(shrink=False)
FEW = Profile(scale=0.1)
CASES = [
    pytest.param(name, *case, id=f"{name}-{getattr(case[0], '__name__', type(case[0]).__name__)}")
    for name in CONTRACTS
    for case in BROKEN[name]
]


@pytest.mark.parametrize(("name", "broken", "good", "reason"), CASES)
def test_a_contract_tells_broken_from_good(name: str, broken: Any, good: type, reason: str) -> None:
    failed = CONTRACTS[name].hold(SchedulerUnderTest(broken), QUICK)
    assert failed.status is Status.FAILED, failed
    assert reason in failed.reason
    passed = CONTRACTS[name].hold(SchedulerUnderTest(good), FEW)
    assert passed.status is Status.PASSED, passed


def test_the_other_contracts_do_not_repeat_why_a_scheduler_does_not_run() -> None:
    subject = SchedulerUnderTest(EndsInNaN)
    results = [contract.hold(subject, QUICK) for contract in CONTRACTS.values()]
    assert [result.name for result in results if result.status is Status.FAILED] == ["runs_as_it_is"]
    other = next(result for result in results if result.name == "life_cycle")
    assert other.reason == "a run of 6 steps does not get through: the result is not finite"


def test_a_scheduler_of_another_library_is_held_to_the_same_contracts() -> None:
    subject = SchedulerUnderTest(FlowScheduler)
    results = [contract.hold(subject, FEW) for contract in CONTRACTS.values()]
    assert {result.name: result.reason for result in results if result.status is Status.FAILED} == {}
    assert sum(result.status is Status.PASSED for result in results) >= 20


def test_a_violation_is_reported_with_its_figures() -> None:
    contract = next(c for c in tensors.CONTRACTS if c.name == "permuting_the_batch_permutes_the_result")
    result = contract.hold(SchedulerUnderTest(BROKEN[contract.name][0][0]))
    assert result.step == 0
    assert result.max_rel is not None
    assert result.max_rel > 0.01
    assert result.index is not None
    assert "seed=0" in result.example  # the smallest


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for contract in (CONTRACTS["life_cycle"], *randomness.CONTRACTS):
        contract.hold(SchedulerUnderTest(DDIMScheduler), FEW)
    assert os.listdir(tmp_path) == []
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


class _Named:
    name = "subject"


def _contract(check: Any) -> Contract:
    return Contract(check, examples=20)


def test_a_contract_applies_if_it_applies_to_any_example() -> None:
    def sometimes(subject: Any, given: Given) -> None:
        """Holds."""
        if given.draw("number", st.integers(0, 9)) > 0:
            raise NotApplicable("no")

    def never(subject: Any, given: Given) -> None:
        """Holds."""
        given.seed()
        raise NotApplicable("never")

    assert _contract(sometimes).hold(_Named()).status is Status.PASSED
    result = _contract(never).hold(_Named())
    assert (result.status, result.reason) == (Status.NOT_APPLICABLE, "never")


def test_a_slow_subject_gets_fewer_examples() -> None:
    tried = []

    def slow(subject: Any, given: Given) -> None:
        """Holds."""
        tried.append(given.draw("number", st.integers(0, 10**6)))

    assert _contract(slow).hold(_Named(), Profile(patience=-1.0)).status is Status.PASSED
    assert len(tried) == 1
    assert _contract(slow).hold(_Named()).status is Status.PASSED
    assert len(tried) == 1 + 20


def test_a_slow_life_is_a_short_one() -> None:
    contract = next(contract for contract in lifecycle.CONTRACTS if contract.name == "life_cycle")
    result = contract.hold(SchedulerUnderTest(DDIMScheduler), Profile(patience=0.05))
    assert result.status is Status.PASSED, result
    assert result.seconds < 2


def test_a_failure_that_does_not_repeat_is_a_failure() -> None:
    tried = []

    def once(subject: Any, given: Given) -> None:
        """Holds."""
        tried.append(given.seed())
        if len(tried) == 5:
            raise Violation("found")

    result = _contract(once).hold(_Named())
    assert (result.status, result.reason) == (Status.FAILED, "in one of two equal tries: found")


def test_a_seed_searches_elsewhere_and_the_default_does_not() -> None:
    def drawn(profile: Profile) -> list[int]:
        seeds = []

        def record(subject: Any, given: Given) -> None:
            """Holds."""
            seeds.append(given.seed())

        assert _contract(record).hold(_Named(), profile).status is Status.PASSED
        return seeds

    assert drawn(Profile()) == drawn(Profile())
    assert drawn(Profile(seed=1)) != drawn(Profile(seed=2))


def test_what_cannot_be_made_or_driven_is_said_at_once() -> None:
    class NeedsMore(DDIMScheduler):
        def __init__(self, words: int, **options: Any) -> None:
            super().__init__(**options)

    with pytest.raises(TypeError, match="NeedsMore needs words to be made: give an instance"):
        check_scheduler(NeedsMore)
    silent = FlowScheduler()
    del silent.config
    with pytest.raises(TypeError, match="a FlowScheduler without `config` cannot be made anew: give the class"):
        check_scheduler(silent)
    with pytest.raises(TypeError, match="dict is no scheduler: it has no set_timesteps and no step"):
        check_scheduler({})
