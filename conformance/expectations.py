"""Expectations: cases that are known not to pass, each with a mandatory reason, in a TOML file.

    [[expect]]
    case = "ddim/ddim-quad-*"            # shell pattern over ids, or a system
    reason = "the previous step is t - T // n, not the next grid point"
    implementation = "diffusers"         # optional conditions
    version = ">=0.30,<1"
    device = "cpu"

A matching case that does not pass becomes `waived`. An entry that matches no case of the run, or whose cases all
pass, fails the run: expectations never outlive their cause.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from conformance.errors import ConformanceError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYS = ("case", "reason", "implementation", "version", "device")


@dataclass(frozen=True)
class Expectation:
    case: str
    reason: str
    implementation: str | None = None
    version: str | None = None
    device: str | None = None

    def applies(self, implementation: str, version: str, device: str) -> bool:
        """Whether the entry's conditions hold for this run."""
        if self.implementation not in (None, implementation) or self.device not in (None, device.split(":")[0]):
            return False
        if self.version is None:
            return True
        try:
            return SpecifierSet(self.version).contains(Version(version), prereleases=True)
        except InvalidVersion:
            return False

    def matches(self, case: str) -> bool:
        return fnmatchcase(case, self.case) or case.split("/", 1)[0] == self.case


def read_expectations(path: Path) -> list[Expectation]:
    """Parse an expectations file, strictly.

    Raises:
        ConformanceError: unreadable, not TOML, an unknown key, a missing or empty case or reason, a bad version range.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConformanceError(f"expectations {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConformanceError(f"expectations {path}: not TOML: {error}") from None
    if set(data) - {"expect"} or not isinstance(data.get("expect", []), list):
        raise ConformanceError(f"expectations {path}: only [[expect]] tables are allowed, found {', '.join(data)}")
    return [_entry(path, number, entry) for number, entry in enumerate(data.get("expect", []), start=1)]


def applicable(
    expectations: Iterable[Expectation], implementation: str, version: str, device: str
) -> list[Expectation]:
    """The entries whose conditions hold for a run."""
    return [entry for entry in expectations if entry.applies(implementation, version, device)]


def stale(expectations: Sequence[Expectation], verdicts: Iterable[tuple[str, str]]) -> list[str]:
    """Complaints about entries that matched nothing, or whose cases all pass, from (case, verdict) pairs."""
    seen = list(verdicts)
    complaints = []
    for entry in expectations:
        matched = [verdict for case, verdict in seen if entry.matches(case)]
        if not matched:
            complaints.append(f"expectation {entry.case!r} matches no case of this run")
        elif "waived" not in matched:
            complaints.append(f"expectation {entry.case!r} is no longer needed: all {len(matched)} matching cases pass")
    return complaints


def _entry(path: Path, number: int, entry: object) -> Expectation:
    where = f"expectations {path}, entry {number}"
    if not isinstance(entry, dict):
        raise ConformanceError(f"{where}: not a table")
    if unknown := sorted(set(entry) - set(KEYS)):
        raise ConformanceError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(KEYS)}")
    for key in ("case", "reason"):
        if not str(entry.get(key, "")).strip():
            raise ConformanceError(f"{where}: {key!r} is mandatory")
    for key, value in entry.items():
        if not isinstance(value, str):
            raise ConformanceError(f"{where}: {key!r} must be a string, found {type(value).__name__}")
    if "version" in entry:
        try:
            SpecifierSet(entry["version"])
        except InvalidSpecifier as error:
            raise ConformanceError(f"{where}: version: {error}") from None
    return Expectation(**entry)
