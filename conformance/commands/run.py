"""`conformance run`: replay fixtures through pytest, which selects, runs in parallel and reports."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from conformance.commands import Device, Dtype, Fixtures, Implementation, Pythonpath, Select, Tier, guarded
from conformance.errors import ConformanceError


@guarded
def run(
    select: Select = None,
    implementation: Implementation = "diffusers_ref",
    pythonpath: Pythonpath = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    tier: Tier = "default",
    fixtures: Fixtures = None,
    expectations: Annotated[Path | None, typer.Option(help="TOML file of known divergences with reasons.")] = None,
    workers: Annotated[str, typer.Option("-n", help="Parallel workers, a number or auto.")] = "0",
    report: Annotated[Path | None, typer.Option("--json", help="Write the results as JSON.")] = None,
    page: Annotated[Path | None, typer.Option("--markdown", help="Write the results as a page of tables.")] = None,
    explain: Annotated[bool, typer.Option(help="Try the causes of every divergence, for --markdown.")] = False,
) -> None:
    """Replay fixtures on an implementation and report a verdict for each."""
    import pytest

    from conformance.expectations import read_expectations
    from conformance.fixture import TIERS
    from conformance.implementations import open_implementation
    from conformance.library import open_library
    from conformance.replay import Settings
    from conformance.report.parity_page import write_parity_page

    # Mistakes are said here in one line, before pytest starts.
    if tier not in TIERS:
        raise ConformanceError(f"tier {tier!r}; allowed: {', '.join(TIERS)}")
    open_library(fixtures).select(select or (), tier)
    Settings.of(device, dtype)
    open_implementation(implementation, pythonpath)  # the import path holds for the workers, too
    if expectations is not None:
        read_expectations(expectations)
    for option, file in (("--json", report), ("--markdown", page)):
        if file is not None and not file.resolve().parent.is_dir():
            raise ConformanceError(f"{option} {file}: there is no such folder")
    if explain and page is None:
        raise ConformanceError("--explain needs --markdown: causes are told on the page")
    suite = Path(__file__).parents[1] / "suite"
    arguments = [str(suite / "test_fixtures.py"), "-c", str(suite / "pytest.ini"), "--rootdir", str(suite)]
    arguments += ["-q", "--no-header", "--tb=no", "--no-summary", "--conformance-table"]
    # Plugins that only this suite's run time would notice.
    arguments += ["-p", "no:hypothesispytest", "-p", "no:unraisableexception", "-p", "no:threadexception"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # this package is imported already
    arguments += [f"--implementation={implementation}", f"--device={device}", f"--dtype={dtype}", f"--tier={tier}"]
    arguments += [f"--case={pattern}" for pattern in select or ()]
    arguments += [f"--conformance-fixtures={fixtures}"] if fixtures else []
    arguments += [f"--expectations={expectations}"] if expectations else []
    arguments += ["-n", workers] if workers != "0" else []
    with TemporaryDirectory() as folder:
        file = report.resolve() if report else Path(folder) / "report.json"
        code = int(pytest.main([*arguments, f"--conformance-json={file}"]))
        if page is not None and code in (0, 1):
            found = json.loads(file.read_text(encoding="utf-8"))
            settings = Settings.of(device, dtype) if explain else None
            write_parity_page(page, found, open_library(fixtures), open_implementation(implementation), settings)
    raise typer.Exit(code if code in (0, 1) else 2)
