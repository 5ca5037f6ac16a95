"""`conformance check`: contracts over an implementation's classes, as a table, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import conformance.contracts.scheduler
from conformance.cli import app
from conformance.contracts.contract import Contract, Given
from conformance.contracts.holding import contracts_of
from conformance.contracts.result import NotApplicable, Violation
from conformance.implementations.reference import ReferenceImplementation

QUIRK = "contract/DDIMScheduler/breaks"


def holds(subject: Any, given: Given) -> None:
    """It does."""


def has_nothing(subject: Any, given: Given) -> None:
    """It does not apply."""
    raise NotApplicable("nothing to look at")


def breaks(subject: Any, given: Given) -> None:
    """It does not | ever."""
    given.note("steps", 3)
    raise Violation("0.2 instead of 0.1", step=2, max_abs=float("inf"))


@pytest.fixture(autouse=True)
def three_contracts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    give(monkeypatch, holds, has_nothing, breaks)
    yield
    contracts_of.cache_clear()


def give(monkeypatch: pytest.MonkeyPatch, *checks: Any) -> None:
    contracts_of.cache_clear()
    monkeypatch.setattr(conformance.contracts.scheduler, "CONTRACTS", tuple(map(Contract, checks)))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", "diffusers_ref", "--only", "DDIMScheduler", *map(str, arguments)])


def test_a_finding_is_told_with_its_step_and_example() -> None:
    result = run()

    assert result.exit_code == 1
    assert "DDIMScheduler, breaks: 0.2 instead of 0.1 (step 2) [steps=3]" in result.stdout
    assert "DDIMScheduler: 1 not applicable: nothing to look at" in result.stdout
    assert "3 checks on 1 classes of diffusers_ref 0.1.0: 1 passed, 1 failed, 0 waived, 1 not" in result.stdout


def test_nothing_found_is_green(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, holds)

    assert run().exit_code == 0


def test_a_quirk_is_waived_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceImplementation, "quirks", {QUIRK: "the original's own"})

    result = run()

    assert result.exit_code == 0
    assert "breaks: waived (the original's own): 0.2 instead of 0.1" in result.stdout


def test_a_quirk_that_is_none_any_more_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceImplementation, "quirks", {"contract/DDIMScheduler/holds": "once"})
    give(monkeypatch, holds)

    result = run()

    assert result.exit_code == 1
    assert "it holds, but is declared a quirk: once" in result.stdout


def test_an_expectation_waives_and_a_stale_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = tmp_path / "known.toml"
    known.write_text(f'[[expect]]\ncase = "{QUIRK}"\nreason = "as it is"\n')

    assert run("--expectations", known).exit_code == 0
    give(monkeypatch, holds)
    stale = run("--expectations", known)
    assert stale.exit_code == 1
    assert f"expectation '{QUIRK}' matches no case of this run" in stale.stdout


def test_reports_hold_every_result(tmp_path: Path) -> None:
    run("--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md")

    checks = json.loads((tmp_path / "r.json").read_text())["checks"]
    assert [(check["name"], check["status"]) for check in checks] == [
        ("holds", "passed"), ("has_nothing", "not applicable"), ("breaks", "failed")
    ]  # fmt: skip
    assert (checks[2]["max_abs"], checks[2]["step"]) == (None, 2)
    page = (tmp_path / "r.md").read_text()
    assert "| `breaks`: It does not \\| ever. | 1: `DDIMScheduler` |" in page
    assert "| `DDIMScheduler` | 1 | 1 | 0 | 1 |  |" in page


def test_a_class_that_is_not_there_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["check", "diffusers_ref", "--only", "NoScheduler"])

    assert result.exit_code == 2
    assert (
        "has no class 'NoScheduler' to check; it has: CMStochasticIterativeScheduler, DDIMScheduler, " in result.stderr
    )


def test_a_class_that_cannot_be_made_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("scipy is missing")

    monkeypatch.setattr(ReferenceImplementation, "subjects", lambda self: {"Needy": broken})

    result = CliRunner().invoke(app, ["check", "diffusers_ref", "--only", "Needy"])

    assert "Needy: 1 not applicable: ImportError: scipy is missing" in result.stdout
