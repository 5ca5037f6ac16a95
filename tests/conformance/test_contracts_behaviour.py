"""Every contract of behaviour fails on a scheduler that breaks it, says why, and holds for one that does not."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from broken_behaviour import BROKEN, DrawsInTheSamplesPrecision, EndsInNaN, FlowScheduler

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
CASES = [pytest.param(name, *case, id=f"{name}-{case[0].__name__}") for name in CONTRACTS for case in BROKEN[name]]


@pytest.mark.parametrize(("name", "broken", "good", "reason"), CASES)
def test_a_contract_tells_broken_from_good(name: str, broken: type, good: type, reason: str) -> None:
    failed = CONTRACTS[name].hold(SchedulerUnderTest(broken), QUICK)
    assert failed.status is Status.FAILED, failed
    assert reason in failed.reason
    passed = CONTRACTS[name].hold(SchedulerUnderTest(good), Profile(scale=0.3))
    assert passed.status is Status.PASSED, passed


def test_the_other_contracts_do_not_repeat_why_a_scheduler_does_not_run() -> None:
    results = check_scheduler(EndsInNaN)
    failed = [result.name for result in results if result.status is Status.FAILED and result.name in CONTRACTS]
    assert failed == ["runs_as_it_is", "any_step_count_runs_or_is_refused"] or failed == ["runs_as_it_is"]
