"""What a mutant is held against: the fixtures that a class stands for, and the contracts of its kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from conformance.compare import Verdict
from conformance.contracts.contract import Contract, Profile
from conformance.contracts.result import Status
from conformance.errors import ConformanceError
from conformance.fixture import Fixture
from conformance.implementations.user_class import UserImplementation
from conformance.library import Library
from conformance.replay import Settings, replay

KINDS = ("fixtures", "contracts")

Memory = dict[type, Any]
"""Class -> the subject that its contracts share, with the runs that several of them look at."""


class Check(Protocol):
    """Something that a class passes or not.

    Attributes:
        kind: "fixtures" or "contracts".
        name: of the fixture or contract.
    """

    kind: str
    name: str

    def outcome(self, cls: type, memory: Memory) -> str:
        """What is seen of `cls`, in one or two words.

        Args:
            memory: what other checks of this very class found out, to be looked up instead of done again; an empty one
                where everything that the check does is to be seen.
        """
        ...

    def passes(self, outcome: str) -> bool:
        """Whether that is good enough to hold mutants against."""
        ...

    def notices(self, outcome: str, before: str) -> bool:
        """Whether a mutant with this outcome is told from the class itself, whose outcome was `before`."""
        ...


class FixtureCheck:
    """One fixture, replayed in float32 with its float64 check.

    A verdict that is worse than before is noticed: one that is not green, but also a loss of the original's bits.
    """

    kind = "fixtures"

    def __init__(self, fixture: Fixture) -> None:
        self.name = fixture.id
        self._fixture = fixture

    def outcome(self, cls: type, memory: Memory) -> str:
        return replay(self._fixture, UserImplementation(cls), Settings()).verdict.value

    def passes(self, outcome: str) -> bool:
        return Verdict(outcome).green

    def notices(self, outcome: str, before: str) -> bool:
        order = list(Verdict)
        return order.index(Verdict(outcome)) > order.index(Verdict(before))


class ContractCheck:
    """One contract; the search for an example stops at the first that fails."""

    kind = "contracts"

    def __init__(self, contract: Contract) -> None:
        self.name = contract.name
        self._contract = contract

    def outcome(self, cls: type, memory: Memory) -> str:
        from conformance.contracts.checks import contracts_for

        if cls not in memory:
            memory[cls], _ = contracts_for(cls)
        return self._contract.hold(memory[cls], Profile(shrink=False)).status.value

    def passes(self, outcome: str) -> bool:
        return outcome == Status.PASSED.value

    def notices(self, outcome: str, before: str) -> bool:
        return outcome == Status.FAILED.value


def checks_for(cls: type, kinds: Sequence[str], library: Library) -> list[Check]:
    """The checks of these kinds that a class can be held against.

    Raises:
        ConformanceError: an unknown kind, or none applies.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConformanceError(f"checks {unknown[0]!r}; allowed: {', '.join(KINDS)}")
    checks: list[Check] = []
    if "fixtures" in kinds:
        checks += _fixtures(cls, library)
    if "contracts" in kinds:
        checks += _contracts(cls)
    if not checks:
        raise ConformanceError(f"{cls.__name__}: no {' and no '.join(kinds)} apply to this class")
    return checks


def _fixtures(cls: type, library: Library) -> Iterator[FixtureCheck]:
    implementation = UserImplementation(cls)
    for fixture in map(library.get, library.ids()):
        manifest = fixture.manifest
        if manifest.tier == "default" and implementation.serves(manifest.subject, manifest.kind):
            yield FixtureCheck(fixture)


def _contracts(cls: Any) -> list[ContractCheck]:
    from conformance.contracts.checks import contracts_for

    try:
        _, contracts = contracts_for(cls)
    except TypeError:
        return []  # only classes that can be checked as such have contracts here
    return [ContractCheck(contract) for contract in contracts]
