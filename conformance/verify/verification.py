"""Holding contracts and replaying fixtures, and the verdict that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from conformance.compare import Verdict
from conformance.contracts.contract import Profile
from conformance.contracts.result import CheckResult, Status
from conformance.errors import ConformanceError
from conformance.expectations import Expectation, stale
from conformance.fixture import Fixture
from conformance.implementations.user_class import UserImplementation
from conformance.library import Library
from conformance.replay import CaseResult, Settings, as_recorded, replay


@dataclass(frozen=True)
class Verification:
    """What was found about one class.

    Attributes:
        subject: the class as it was named.
        checks: one result per contract; none if contracts were not asked for.
        cases: one result per fixture that applies; a waived one has the verdict WAIVED.
        waived: contracts, as `contract/<subject>/<name>`, that an expectation waives.
        complaints: expectations that match nothing or are no longer needed.
        contracts_only: fixtures were not asked for, so that none is needed.
    """

    subject: str
    checks: list[CheckResult]
    cases: list[CaseResult]
    waived: frozenset[str] = frozenset()
    complaints: list[str] = field(default_factory=list)
    contracts_only: bool = False

    @property
    def failed_checks(self) -> list[CheckResult]:
        return [c for c in self.checks if c.status is Status.FAILED and c.id not in self.waived]

    @property
    def failed_cases(self) -> list[CaseResult]:
        return [case for case in self.cases if not case.verdict.green]

    @property
    def contracts_hold(self) -> bool:
        return not self.failed_checks and any(check.status is Status.PASSED for check in self.checks)

    @property
    def green(self) -> bool:
        """Every contract and every applicable fixture, with at least one of each: never green without evidence."""
        proven = self.contracts_only or any(case.verdict is not Verdict.WAIVED for case in self.cases)
        return self.contracts_hold and proven and not self.failed_cases and not self.complaints

    @property
    def line(self) -> str:
        """The verdict in one line."""
        if self.contracts_only:
            verdict = "contracts hold" if self.green else "does not conform"
        elif not self.cases and self.contracts_hold and not self.complaints:
            verdict = "not proven; contracts hold, no fixture applies"
        else:
            verdict = "conforms" if self.green else "does not conform"
        return f"{verdict}: {', '.join(self._counts())}"

    def _counts(self) -> list[str]:
        counts = []
        if self.checks:
            by_status = Counter(c.status for c in self.checks)
            failed, passed = len(self.failed_checks), by_status[Status.PASSED]
            counts.append(f"{passed} of {len(self.checks)} checks passed" if failed else f"{passed} checks passed")
            counts += [f"{failed} failed"] * bool(failed)
            counts += [f"{len(self.waived)} waived"] * bool(self.waived)
            absent = by_status[Status.NOT_APPLICABLE]
            counts += [f"{absent} not applicable"] * bool(absent)
        by_verdict = Counter(case.verdict for case in self.cases)
        told = {Verdict.ERROR: "with an error"}
        counts += [f"{_plural(by_verdict[v], 'fixture')} {told.get(v, v.value)}" for v in Verdict if by_verdict[v]]
        return counts or ["nothing was checked"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema 1)."""
        return {
            "schema": 1,
            "subject": self.subject,
            "green": self.green,
            "verdict": self.line,
            "checks": [{**c.to_dict(), "waived": c.id in self.waived} for c in self.checks],
            "cases": [case.to_dict() for case in self.cases],
            "complaints": self.complaints,
        }


def verify(
    implementation: UserImplementation,
    libraries: Sequence[Library],
    settings: Settings | None = None,
    *,
    tier: str = "default",
    expectations: Sequence[Expectation] = (),
    profile: Profile | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Verification:
    """Hold the contracts of its kind against the class, and replay every fixture that applies.

    Args:
        libraries: of the first, the fixtures whose subject the class can be; of the others, all: what the user names is
            meant for the class. Empty: contracts only.
        settings: device and dtype of the replays.
        expectations: what is known not to pass, by fixture or `contract/<subject>/<name>`; those that apply here.
        profile: how hard the contracts look.
        progress: called with the name of what is done next.

    Raises:
        ConformanceError: no small instance can be made for the contracts, or a fixture is damaged.
    """
    with as_recorded(threads=1):  # what is small here gains nothing from more
        checks = [check for make in implementation.subjects().values() for check in _hold(make(), profile, progress)]
    cases = [
        _replay(fixture, implementation, settings or Settings(), expectations, progress)
        for fixture in applicable(implementation, libraries, tier)
    ]
    failed = {check.id: check for check in checks if check.status is Status.FAILED}
    waived = frozenset(name for name in failed if any(entry.matches(name) for entry in expectations))
    seen = [(case.id, case.verdict.value) for case in cases]
    seen += [(c.id, "waived" if c.id in waived else c.status.value) for c in checks]
    complaints = stale(expectations, seen)
    return Verification(implementation.name, checks, cases, waived, complaints, contracts_only=not libraries)


def applicable(implementation: UserImplementation, libraries: Sequence[Library], tier: str) -> list[Fixture]:
    """The fixtures of a tier to replay; a fixture that several libraries hold is taken from the last."""
    found: dict[str, Fixture] = {}
    for position, library in enumerate(libraries):
        for fixture in map(library.get, library.ids()):
            manifest = fixture.manifest
            named_by_the_user = position > 0
            if manifest.tier == tier and (named_by_the_user or implementation.serves(manifest.subject, manifest.kind)):
                found[fixture.id] = fixture
    return [found[name] for name in sorted(found)]


def _hold(subject: Any, profile: Profile | None, progress: Callable[[str], None]) -> list[CheckResult]:
    from conformance.contracts.checks import contracts_for

    try:
        under_test, contracts = contracts_for(subject)
    except TypeError as error:
        raise ConformanceError(str(error)) from error
    results = []
    for contract in contracts:
        progress(contract.name)
        results.append(contract.hold(under_test, profile))
    return results


def _replay(
    fixture: Fixture,
    implementation: UserImplementation,
    settings: Settings,
    expectations: Sequence[Expectation],
    progress: Callable[[str], None],
) -> CaseResult:
    progress(fixture.id)
    result = replay(fixture, implementation, settings)
    expected = next((entry for entry in expectations if entry.matches(fixture.id)), None)
    if expected is None or result.verdict.green:
        return result
    message = f"waived ({expected.reason}); {result.verdict.value}: {result.message}"
    return replace(result, verdict=Verdict.WAIVED, message=message)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
