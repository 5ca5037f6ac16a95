"""Holding contracts by name: what is held against what, and one pair at a time, for runs in several processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from conformance.contracts.checks import contracts_for
from conformance.contracts.contract import Contract, Profile
from conformance.contracts.result import CheckResult, Status
from conformance.errors import ConformanceError
from conformance.expectations import Expectation
from conformance.implementations import open_implementation


def subject_names(implementation: str, patterns: Sequence[str] = ()) -> list[str]:
    """The implementation's subjects of contracts that match one of the shell patterns; all without one.

    Raises:
        ConformanceError: a pattern matches none.
    """
    names = list(open_implementation(implementation).subjects())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConformanceError(f"{implementation} has no class {pattern!r} to check; it has: {', '.join(names)}")
    return [name for name in names if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]


@lru_cache(maxsize=128)
def contracts_of(implementation: str, subject: str) -> tuple[Any, Sequence[Contract], str]:
    """The subject, its contracts, and why it cannot be checked ("" if it can).

    A class that cannot even be made is no crash of the harness: it has no contracts, and the reason is reported.
    """
    make = open_implementation(implementation).subjects()[subject]
    try:
        return *contracts_for(make()), ""
    except Exception as error:  # noqa: BLE001 - whatever the subject raises is what is reported
        return None, (), f"{type(error).__name__}: {str(error).strip()}"


def statements(implementation: str, subjects: Sequence[str]) -> dict[str, str]:
    """What each contract of the subjects' kinds demands, by name."""
    return {
        contract.name: contract.statement
        for subject in subjects
        for contract in contracts_of(implementation, subject)[1]
    }


def hold_one(
    implementation: str,
    subject: str,
    contract: Contract,
    profile: Profile | None = None,
    expectations: Sequence[Expectation] = (),
) -> CheckResult:
    """One contract held against one subject; a failure that is a quirk of the original, or expected, is waived.

    A quirk that is none any more fails: what is documented has to stay true. Fewer examples may not show it.
    """
    result = contract.hold(contracts_of(implementation, subject)[0], profile)
    quirk = open_implementation(implementation).quirks.get(result.id)
    reason = quirk or next((entry.reason for entry in expectations if entry.matches(result.id)), None)
    if reason is not None and result.status is Status.FAILED:
        return dataclasses.replace(result, status=Status.WAIVED, reason=f"waived ({reason}): {result.reason}")
    if quirk is not None and result.status is Status.PASSED and (profile is None or profile.scale >= 1):
        return dataclasses.replace(result, status=Status.FAILED, reason=f"it holds, but is declared a quirk: {quirk}")
    return result


def hold_all(
    implementation: str, subject: str, profile: Profile | None = None, expectations: Sequence[Expectation] = ()
) -> list[CheckResult]:
    """Every contract of the subject's kind, held against it."""
    _, contracts, problem = contracts_of(implementation, subject)
    if problem:
        return [CheckResult("can_be_made", subject, Status.NOT_APPLICABLE, problem)]
    return [hold_one(implementation, subject, contract, profile, expectations) for contract in contracts]
