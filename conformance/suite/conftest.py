"""Contracts as tests: one per class of the implementation and contract, chosen by `--implementation` and `-k`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conformance.errors import ConformanceError


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "held_contract" not in metafunc.fixturenames:
        return
    from conformance.contracts.holding import contracts_of, subject_names

    implementation = metafunc.config.getoption("implementation")
    try:
        pairs = [
            (subject, contract.name)
            for subject in subject_names(implementation)
            for contract in contracts_of(implementation, subject)[1]
        ]
    except ConformanceError as error:
        pytest.exit(str(error), returncode=2)
    metafunc.parametrize("held_contract", pairs, ids=["-".join(pair) for pair in pairs], indirect=True)


@pytest.fixture
def held_contract(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Callable[[], dict[str, object]]:
    """Holds one contract; its result is kept in the test's report."""
    from conformance.contracts.contract import Profile
    from conformance.contracts.holding import contracts_of, hold_one

    implementation = request.config.getoption("implementation")
    profile = Profile(scale=request.config.getoption("contract_examples"))
    subject, name = request.param
    contract = next(contract for contract in contracts_of(implementation, subject)[1] if contract.name == name)

    def hold() -> dict[str, object]:
        result = hold_one(implementation, subject, contract, profile).to_dict()
        for key in ("status", "max_rel", "max_ulp"):
            if result[key] is not None:
                record_property(f"contract.{key}", result[key])
        return result

    return hold
