"""The self-test of the scheduler contracts: each has a scheduler, broken on purpose, that it must fail."""

from __future__ import annotations

import pytest
from broken_behaviour import BROKEN
from schedulers_with_a_fault import FAULTS

from conformance.contracts.result import Status
from conformance.contracts.scheduler import CONTRACTS
from conformance.contracts.scheduler.driver import SchedulerUnderTest

BY_NAME = {contract.name: contract for contract in CONTRACTS}


def test_every_contract_has_a_scheduler_that_breaks_it() -> None:
    assert BY_NAME.keys() == BROKEN.keys() | FAULTS.keys()
    assert len(BY_NAME) == len(CONTRACTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_contract_sees_its_fault_and_names_it(name: str) -> None:
    broken, words = FAULTS[name]

    result = BY_NAME[name].hold(SchedulerUnderTest(broken))

    assert result.status is Status.FAILED
    assert words in result.reason
