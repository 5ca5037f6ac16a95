"""`conformance audit`: does a check notice every small change of the code?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from conformance.commands import Fixtures, guarded
from conformance.errors import ConformanceError


@guarded
def audit(
    subjects: Annotated[
        list[str], typer.Argument(help="Classes: path/to/file.py:Class or package.module:Class.", metavar="CLASS…")
    ],
    helpers: Annotated[
        list[str] | None, typer.Option("--with", help="A module they use, to be mutated too: a file or dotted name.")
    ] = None,
    checks: Annotated[str, typer.Option(help="What mutants are held against.")] = "fixtures,contracts",
    equivalents: Annotated[
        list[Path] | None, typer.Option(help="TOML file of mutants that are equivalent, each with its reason.")
    ] = None,
    minimum: Annotated[float, typer.Option(help="Share of the other mutants that must be killed.")] = 0.98,
    count: Annotated[int | None, typer.Option("--sample", help="Only so many mutants, chosen at random.")] = None,
    seed: Annotated[int, typer.Option(help="Which sample.")] = 0,
    jobs: Annotated[int, typer.Option(help="Parallel processes.")] = 1,
    fixtures: Fixtures = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write the results as JSON.")] = None,
) -> None:
    """Mutate classes, run the fixtures and contracts that apply, and list the changes that nothing notices."""
    if not 0 <= minimum <= 1:
        raise ConformanceError(f"--minimum {minimum}; allowed: 0 to 1")
    for name, value in (("--sample", count), ("--jobs", jobs)):
        if value is not None and value < 1:
            raise ConformanceError(f"{name} {value}; allowed: at least 1")
    if report is not None and not report.resolve().parent.is_dir():
        raise ConformanceError(f"--json {report}: there is no such folder")

    from conformance.audit.equivalents import SECONDS, declared, read_equivalents
    from conformance.audit.parallel import judge_all
    from conformance.audit.report import Report, print_report
    from conformance.audit.session import Audit, Request, sample

    declarations = [entry for path in equivalents or () for entry in read_equivalents(path)]
    kinds = tuple(kind.strip() for kind in checks.split(","))
    request = Request(tuple(subjects), tuple(helpers or ()), kinds, fixtures)
    session = Audit.of(request)
    everything = session.mutants()
    left_out = session.prepare()
    chosen = sample(everything, count, seed)
    typer.echo(f"{len(chosen)} of {len(everything)} mutants, {len(session.baseline)} checks", err=True)
    seconds = [SECONDS if declared(declarations, mutant) else math.inf for mutant in chosen]
    verdicts = list(judge_all(session, chosen, seconds, jobs))
    outcome = Report.of(request, everything, verdicts, declarations, left_out)
    print_report(outcome, minimum)
    if report is not None:
        report.write_text(json.dumps(outcome.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    raise typer.Exit(0 if outcome.passes(minimum) else 1)
