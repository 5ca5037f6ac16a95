"""Mutants that compute the same by construction, each declared with the reason, in a TOML file:

    [[equivalent]]
    file = "diffusers_ref/schedulers/ddim.py"     # the end of the path
    line = "if count > length:"                   # the source line, stripped
    mutant = "if count >= length:"                # what the mutant makes of it; or, and:
    operator = "operator_swap_op"
    reason = "…"
    function = "improved_diffusion"               # optional, where a line occurs more than once

An entry that matches no mutant of its file, or a mutant that is killed, is stale and fails the audit. A declared mutant
is held against the most promising checks only, for `SECONDS`: no check is expected to notice it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.audit.mutants import Mutant
from conformance.errors import ConformanceError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECONDS = 1.0

KEYS = ("file", "line", "mutant", "operator", "function", "reason")


@dataclass(frozen=True)
class Equivalent:
    """One declaration; `mutant`, `operator` and `function` narrow it where they are given."""

    file: str
    line: str
    reason: str
    mutant: str | None = None
    operator: str | None = None
    function: str | None = None

    def matches(self, mutant: Mutant) -> bool:
        return (
            self.is_about(mutant.file)
            and self.line == mutant.before
            and self.mutant in (None, mutant.after)
            and self.operator in (None, mutant.operator)
            and self.function in (None, mutant.function, mutant.function.rpartition(".")[2])
        )

    def is_about(self, file: str) -> bool:
        return Path(file).as_posix().endswith(self.file)

    def __str__(self) -> str:
        change = f" -> {self.mutant!r}" if self.mutant else f" ({self.operator})"
        return f"{self.file}: {self.line!r}{change}"


def read_equivalents(path: Path) -> list[Equivalent]:
    """Parse a file of declarations, strictly.

    Raises:
        ConformanceError: unreadable, not TOML, an unknown key, a missing or empty one, or an entry that would take in
            every mutant of a line.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConformanceError(f"equivalent mutants {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConformanceError(f"equivalent mutants {path}: not TOML: {error}") from None
    if set(data) - {"equivalent"} or not isinstance(data.get("equivalent", []), list):
        raise ConformanceError(f"equivalent mutants {path}: only [[equivalent]] tables are allowed")
    return [_entry(path, number, entry) for number, entry in enumerate(data.get("equivalent", []), start=1)]


def _entry(path: Path, number: int, entry: object) -> Equivalent:
    where = f"equivalent mutants {path}, entry {number}"
    if not isinstance(entry, dict):
        raise ConformanceError(f"{where}: not a table")
    if unknown := sorted(set(entry) - set(KEYS)):
        raise ConformanceError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(KEYS)}")
    for key, value in entry.items():
        if not isinstance(value, str) or not value.strip():
            raise ConformanceError(f"{where}: {key!r} must be a string that is not empty")
    for key in ("file", "line", "reason"):
        if key not in entry:
            raise ConformanceError(f"{where}: {key!r} is mandatory")
    if "mutant" not in entry and "operator" not in entry:
        raise ConformanceError(f"{where}: 'mutant' or 'operator' must say which mutants of the line are meant")
    return Equivalent(**entry)


def declared(entries: Sequence[Equivalent], mutant: Mutant) -> Equivalent | None:
    """The entry that declares a mutant equivalent, if there is one."""
    return next((entry for entry in entries if entry.matches(mutant)), None)


def stale(entries: Sequence[Equivalent], mutants: Iterable[Mutant], killed: Iterable[Mutant]) -> list[str]:
    """Complaints about entries that match no mutant of an audited file, or one that is killed.

    Args:
        mutants: all of the audited files, also those that were not run.
        killed: those of them that a check noticed.
    """
    everything, dead = list(mutants), list(killed)
    files = {mutant.file for mutant in everything}
    complaints = []
    for entry in entries:
        if not any(map(entry.is_about, files)):
            continue
        if not any(map(entry.matches, everything)):
            complaints.append(f"equivalent mutant {entry} matches no mutant")
        elif gone := [mutant for mutant in dead if entry.matches(mutant)]:
            complaints.append(f"equivalent mutant {entry} is killed (line {gone[0].line}): it is not equivalent")
    return complaints
