"""The page on an implementation: from a run's report to Markdown, and from the command line with causes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from conformance.cli import app
from conformance.report.parity_page import page


def case(name: str, verdict: str, **other: Any) -> dict[str, Any]:
    plain = {"id": name, "kind": "scheduler", "verdict": verdict, "max_error": 0.5, "result_error": 0.25, "message": ""}
    return {**plain, "first_divergence": None, "draws_match": None, **other}


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_a_row_says_how_far_from_where_and_why() -> None:
    report = [
        case("ddim/a", "divergent", first_divergence={"step": 3, "tap": "step"}, draws_match=False),
        case("ddim/b", "error", message="ValueError: no"),
        case("pndm/c", "bitwise", kind="model"),
    ]

    text = page("x 1", report, {"ddim/a": "A", "ddim/b": "B", "pndm/c": "C"}, {"ddim/a": "grid rule"})

    assert "3 fixtures: 1 bitwise, 1 divergent, 1 error." in text
    found = rows(text)
    assert ["a", "A", "**divergent**", "2.5e-01", "step at 3", "grid rule; draws differ from the original's"] in found
    assert ["b", "B", "**error**", "2.5e-01", "", "ValueError: no"] in found
    assert ["c", "C", "bitwise", "5.0e-01", "", ""] in found
    assert ["[ddim](#ddim)", "0", "0", "0", "1", "0", "1"] in found
    assert ["grid rule", "1"] in found


def test_the_command_tries_causes(tmp_path: Path) -> None:
    file = tmp_path / "page.md"

    result = CliRunner().invoke(
        app, ["run", "ddim/ddim-uniform-7-eta-0", "--implementation", "diffusers", "--markdown", str(file), "--explain"]
    )

    assert result.exit_code == 1
    row = next(row for row in rows(file.read_text()) if row[0] == "ddim-uniform-7-eta-0")
    assert (row[2], row[4]) == ("**divergent**", "timesteps at 0")
    assert float(row[3]) > 1e-3
    assert row[5].startswith("grid rule; dtype of a table")


def test_causes_need_a_page() -> None:
    result = CliRunner().invoke(app, ["run", "ddim", "--explain"])

    assert result.exit_code == 2
    assert "--explain needs --markdown" in result.output
