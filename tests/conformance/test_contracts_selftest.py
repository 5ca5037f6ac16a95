"""The self-test of the scheduler contracts: each has a scheduler, broken on purpose, that it must fail."""

from __future__ import annotations

from broken_behaviour import BROKEN
from schedulers_with_a_fault import FAULTS

from conformance.contracts.scheduler import CONTRACTS


def test_every_contract_has_a_scheduler_that_breaks_it() -> None:
    assert {contract.name for contract in CONTRACTS} == BROKEN.keys() | FAULTS.keys()
    assert len({contract.name for contract in CONTRACTS}) == len(CONTRACTS)
