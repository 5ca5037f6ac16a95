"""`conformance verify`: one verdict about a class of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from conformance.commands import Device, Dtype, Tier, guarded
from conformance.errors import ConformanceError

FILE_CLASS = "path/to/file.py:Class, package.module:Class, or hub:owner/name@commit[:Class] with --trust-remote-code."


@guarded
def verify(
    target: Annotated[str, typer.Argument(metavar="FILE.py:Class", help=FILE_CLASS)],
    fixtures: Annotated[
        str | None,
        typer.Option(help="Fixtures of your own, beside the bundled ones: folder or hub:owner/name@revision."),
    ] = None,
    stands_for: Annotated[
        list[str] | None, typer.Option("--as", help="The fixtures' class it stands for, such as DDIMScheduler.")
    ] = None,
    contracts_only: Annotated[bool, typer.Option("--contracts-only", help="Replay and need no fixtures.")] = False,
    expectations: Annotated[Path | None, typer.Option(help="TOML file of known failures with reasons.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write the results as JSON.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    tier: Tier = "default",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code of a Hub repository, which you have read.")
    ] = False,
) -> None:
    """Hold the contracts and replay every fixture that applies; one verdict."""
    from conformance.expectations import read_expectations
    from conformance.files import write_atomically
    from conformance.fixture import TIERS
    from conformance.library import open_library
    from conformance.replay import Settings
    from conformance.report.verification import print_verification
    from conformance.verify import open_target
    from conformance.verify import verify as verify_target

    if tier not in TIERS:
        raise ConformanceError(f"tier {tier!r}; allowed: {', '.join(TIERS)}")
    if contracts_only and fixtures is not None:
        raise ConformanceError("--contracts-only replays no fixtures; leave --fixtures away")
    if report is not None and not report.resolve().parent.is_dir():
        raise ConformanceError(f"--json {report}: there is no such folder")
    settings = Settings.of(device, dtype)
    implementation = open_target(target, stands_for or (), trust_remote_code)
    libraries = [] if contracts_only else [open_library(), *([open_library(fixtures)] if fixtures else [])]
    known = read_expectations(expectations) if expectations is not None else []
    known = [entry for entry in known if entry.applies(implementation.name, implementation.version, device)]

    verification = verify_target(implementation, libraries, settings, tier=tier, expectations=known)
    print_verification(verification)
    if report is not None:
        write_atomically(report, json.dumps(verification.to_dict(), indent=1, allow_nan=False) + "\n")
    raise typer.Exit(0 if verification.green else 1)
