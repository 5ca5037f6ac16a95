"""The job summary and the annotations of GitHub Actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conformance.gate import Report
from conformance.gate.baseline import Baseline
from conformance.gate.judge import Change, Status
from conformance.report import github


def case(name: str, verdict: str, message: str = "") -> dict[str, Any]:
    return {"id": name, "verdict": verdict, "rho": 1.5, "max_error": None, "message": message,
            "implementation": "diffusers", "version": "0.42"}  # fmt: skip


@pytest.fixture
def summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    return tmp_path / "summary.md"


def test_nothing_is_said_outside_of_github(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    github.report_run([case("ddim/a", "divergent")], [])
    assert capsys.readouterr().out == "" and not (tmp_path / "summary.md").exists()


def test_a_run_lists_what_did_not_pass_and_annotates_per_system(summary: Path, capsys: Any) -> None:
    results = [case("ddim/a", "bitwise"), case("ddim/b", "divergent", "step: 3 | 4"), case("ddim/c", "divergent"),
               case("pndm/d", "unsupported", "no S-PNDM")]  # fmt: skip
    github.report_run(results, ["expectation 'x' matches no case"])
    lines = summary.read_text().splitlines()
    assert lines[0] == "### conformance run: diffusers 0.42"
    assert "2 divergent, 1 bitwise, 1 unsupported" in lines
    assert "| ddim/b | divergent | 1.50 | – | step: 3 \\| 4 |" in lines
    assert not any("ddim/a" in line for line in lines)
    assert capsys.readouterr().out.splitlines() == [
        "::error title=ddim%3A divergent::2 cases: ddim/b, ddim/c. step: 3 | 4",
        "::error title=conformance::expectation 'x' matches no case",
        "::warning title=unsupported::1 cases: pndm/d. no S-PNDM",
    ]


def test_the_summary_keeps_the_limit_and_says_what_was_left_out(summary: Path) -> None:
    summary.write_text("x" * 500_000)
    github.report_run([case(f"ddim/{i:05}", "divergent", "m" * 200) for i in range(6000)], [])
    text = summary.read_text()
    assert 1_000_000 < len(text.encode()) <= 1024 * 1024
    shown = sum(line.startswith("| ddim/") for line in text.splitlines())
    assert text.rstrip().endswith(f"{6000 - shown} more cases are left out here.")


def test_at_most_ten_annotations_of_a_type_and_the_last_stands_for_the_rest(summary: Path, capsys: Any) -> None:
    github.report_run([case(f"system{i:02}/a", "error", "50%\nof it") for i in range(25)], [])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "::error title=system00%3A error::1 cases: system00/a. 50%25%0Aof it"
    assert lines[9].startswith("::error title=16 more::system09: error, system10: error")


def test_a_gate_shows_its_groups_and_fails_by_group(summary: Path, capsys: Any) -> None:
    baseline = Baseline("diffusers", "0.42", "cpu", "float32", (), {}, {})
    diverged = {"moved": ("sample",), "first": "sample", "step": 2, "max_ulp": 9.0, "max_error": 1e-5}
    changes = [
        Change("probe/DDIMScheduler/1", Status.DIVERGED, "steps=3", detail="sample step 2: off", **diverged),
        Change("probe/DDIMScheduler/2", Status.MOVED, "defaults", detail="within rounding", max_ulp=1.0),
        Change("ddim/a", Status.SAME),
    ]
    github.report_gate(Report(baseline, changes, ["torch: another"], []), strict=False)
    lines = summary.read_text().splitlines()
    assert lines[:3] == ["### conformance gate fails: diffusers", "", "3 cases: 1 same, 1 moved, 1 diverged"]
    assert "| probe/DDIMScheduler | diverged | 1 | 1 | 9 | 1.0e-05 | 2 |" in lines
    assert "| probe/DDIMScheduler/1 | diverged | steps=3: sample step 2: off |" in lines
    assert capsys.readouterr().out.splitlines() == [
        "::error title=probe/DDIMScheduler%3A diverged::1 cases: probe/DDIMScheduler/1. sample step 2: off",
        "::warning title=conformance gate::torch: another",
        "::warning title=probe/DDIMScheduler%3A moved::1 cases: probe/DDIMScheduler/2. within rounding",
    ]
