"""What an audit found: a table by file, the survivors with their lines, and the same as JSON data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from conformance.audit.equivalents import Equivalent, declared, stale
from conformance.audit.mutants import Mutant
from conformance.audit.session import Request, Verdict
from conformance.report.console import open_console, plain

KILLERS = ("fixtures", "contracts", "import", "time")


@dataclass(frozen=True)
class Row:
    """Counts for one file, or for all."""

    file: str
    mutants: int
    fixtures: int
    contracts: int
    other: int
    """Killed because the module could not be imported, or a check did not end."""
    equivalent: int
    survived: int
    seconds: float
    """Processor time for each mutant."""

    @property
    def score(self) -> float:
        """Killed of those that are not equivalent; 1 where there are none."""
        wanted = self.mutants - self.equivalent
        return (wanted - self.survived) / wanted if wanted else 1.0


@dataclass(frozen=True)
class Report:
    """The outcome of an audit.

    Attributes:
        verdicts: of the mutants that were run.
        complaints: declarations of equivalent mutants that are stale.
        left_out: checks that the classes themselves do not pass.
    """

    request: Request
    verdicts: list[Verdict]
    equivalents: list[Equivalent] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        request: Request,
        everything: Sequence[Mutant],
        verdicts: Sequence[Verdict],
        equivalents: Sequence[Equivalent],
        left_out: Sequence[str],
    ) -> Report:
        """The report on `verdicts`; `everything` are all mutants, of which they may be a sample."""
        killed = [verdict.mutant for verdict in verdicts if verdict.killed]
        complaints = stale(equivalents, everything, killed)
        return cls(request, list(verdicts), list(equivalents), complaints, list(left_out))

    @property
    def survivors(self) -> list[Verdict]:
        """Mutants that nothing noticed and nobody declared equivalent."""
        return [v for v in self.verdicts if not v.killed and declared(self.equivalents, v.mutant) is None]

    @property
    def rows(self) -> list[Row]:
        """One row a file, in the order of the audit."""
        files = dict.fromkeys(verdict.mutant.file for verdict in self.verdicts)
        return [self._row(file, [v for v in self.verdicts if v.mutant.file == file]) for file in files]

    @property
    def total(self) -> Row:
        return self._row("all", self.verdicts)

    def _row(self, file: str, verdicts: Sequence[Verdict]) -> Row:
        by = {name: sum(v.by == name for v in verdicts) for name in KILLERS}
        alive = [v for v in verdicts if not v.killed]
        equivalent = sum(declared(self.equivalents, v.mutant) is not None for v in alive)
        return Row(
            file=file,
            mutants=len(verdicts),
            fixtures=by["fixtures"],
            contracts=by["contracts"],
            other=by["import"] + by["time"],
            equivalent=equivalent,
            survived=len(alive) - equivalent,
            seconds=sum(v.seconds for v in verdicts) / max(1, len(verdicts)),
        )

    def passes(self, minimum: float) -> bool:
        """Whether at least this share of the mutants that are not equivalent is killed, and nothing is stale."""
        return self.total.score >= minimum and not self.complaints

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "schema": 1,
            **asdict(self.request),
            "score": self.total.score,
            "left_out": self.left_out,
            "stale": self.complaints,
            "files": [asdict(row) | {"score": row.score} for row in (*self.rows, self.total)],
            "mutants": [
                verdict.to_dict() | {"equivalent": entry.reason if (entry := self._reason(verdict)) else None}
                for verdict in self.verdicts
            ],
        }

    def _reason(self, verdict: Verdict) -> Equivalent | None:
        return None if verdict.killed else declared(self.equivalents, verdict.mutant)


def print_report(report: Report, minimum: float) -> None:
    """Print survivors, the table by file, what was left out, and the score."""
    console = open_console()
    for verdict in report.survivors:
        _print_survivor(console, verdict)
    console.print(_table(report))
    for line in report.left_out:
        console.print(f"[yellow]left out, as the class itself does not pass: {plain(line)}[/]", soft_wrap=True)
    for line in report.complaints:
        console.print(f"[red]{plain(line)}[/]", soft_wrap=True)
    total = report.total
    style = "green" if report.passes(minimum) else "red"
    console.print(
        f"[{style}]{total.score:.1%}[/] of {total.mutants - total.equivalent} mutants killed"
        f" ({total.equivalent} equivalent ones not counted); asked for: {minimum:.1%}"
    )


def _print_survivor(console: Console, verdict: Verdict) -> None:
    mutant = verdict.mutant
    where = f"{mutant} {mutant.function or '(top level)'}"
    tried = f"{verdict.tried} checks" if verdict.tried else "executed by no check"
    console.print(f"[bold]{plain(where)}[/]  {mutant.operator}  survived: {tried}", soft_wrap=True)
    for sign, style, text in (("-", "red", mutant.before), ("+", "green", mutant.after)):
        for line in text.split("\n"):
            console.print(f"  [{style}]{sign} {plain(line)}[/]", soft_wrap=True)


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    names = ("file", "mutants", "fixtures", "contracts", "import, time", "equivalent", "survived", "killed", "s/mutant")
    for name in names:
        table.add_column(name, justify="left" if name == "file" else "right", no_wrap=True)
    rows = report.rows
    for row in rows if len(rows) == 1 else [*rows, report.total]:
        counts = (row.mutants, row.fixtures, row.contracts, row.other, row.equivalent, row.survived)
        table.add_row(row.file, *map(str, counts), f"{row.score:.1%}", f"{row.seconds:.2f}")
    return table
