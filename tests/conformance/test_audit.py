"""An audit from the command to the report: what is killed, what survives, what is declared, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import conformance.audit.parallel as parallel
import conformance.audit.session as session
from conformance.audit.equivalents import read_equivalents
from conformance.audit.mutants import mutants_of
from conformance.audit.report import Report
from conformance.audit.sandbox import source_of
from conformance.audit.session import Audit, Request, Verdict, sample
from conformance.cli import app
from conformance.errors import ConformanceError

SCHEDULER = """
from diffusers_ref import DDIMScheduler

class ToyDDIMScheduler(DDIMScheduler):
    scale = 1.0

    def step(self, *arguments, **options):
        result = super().step(*arguments, **options)
        if self.scale != 0.0:
            result.prev_sample = result.prev_sample * self.scale
        return result

    def never(self):
        return 1 - 2
"""

HELPER = "diffusers_ref.schedulers.thresholding"

Auditor = Callable[..., Result]


@pytest.fixture
def audit(tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> Auditor:
    """Runs `conformance audit` on a toy file of one class, with a few fixtures and no contracts."""
    monkeypatch.chdir(tmp_path)
    Path("toy.py").write_text(SCHEDULER)

    def run(*arguments: str, subject: str = "toy.py:ToyDDIMScheduler") -> Result:
        options = ["--checks", "fixtures", "--fixtures", str(fixtures)]
        return CliRunner().invoke(app, ["audit", subject, *options, *arguments])

    return run


def found(path: str = "report.json") -> list[dict[str, Any]]:
    return json.loads(Path(path).read_text(encoding="utf-8"))["mutants"]


def test_survivors_are_shown_with_their_line_and_operator(audit: Auditor) -> None:
    result = audit("--json", "report.json")
    assert result.exit_code == 1
    assert "toy.py:14 ToyDDIMScheduler.never  operator_swap_op  survived: executed by no check" in result.output
    assert "  - return 1 - 2\n  + return 1 + 2\n" in result.output
    by_change = {mutant["after"]: mutant for mutant in found()}
    assert by_change["scale = 2.0"]["killed"] and by_change["scale = 2.0"]["by"] == "fixtures"
    assert by_change["scale = 1.00001"]["killed"]
    assert by_change["scale = 1.00001"]["detail"] == "divergent"
    assert by_change["result.prev_sample = result.prev_sample / self.scale"]["killed"] is False
    assert by_change["result.prev_sample = result.prev_sample / self.scale"]["tried"] == 2


def test_the_json_report_counts_what_it_lists(audit: Auditor) -> None:
    audit("--json", "report.json")
    data = json.loads(Path("report.json").read_text(encoding="utf-8"))
    (row, total), mutants = data["files"], data["mutants"]
    assert {key: row[key] for key in row if key != "file"} == {key: total[key] for key in total if key != "file"}
    assert row["mutants"] == len(mutants)
    assert row["fixtures"] == sum(m["by"] == "fixtures" for m in mutants)
    assert row["survived"] == sum(not m["killed"] for m in mutants)
    assert data["score"] == row["score"] == pytest.approx(1 - row["survived"] / row["mutants"])
    assert data["subjects"] == ["toy.py:ToyDDIMScheduler"]


def test_the_minimum_decides(audit: Auditor) -> None:
    assert audit("--minimum", "0.3").exit_code == 0
    assert audit("--minimum", "1").exit_code == 1


def test_a_sample_is_the_same_for_the_same_seed(audit: Auditor) -> None:
    audit("--json", "all.json")
    audit("--sample", "6", "--seed", "3", "--json", "one.json")
    audit("--sample", "6", "--seed", "3", "--json", "two.json")
    names = lambda path: [(m["line"], m["operator"], m["after"]) for m in found(path)]
    assert names("one.json") == names("two.json")
    assert len(names("one.json")) == 6
    assert set(names("one.json")) < set(names("all.json"))


def declarations(*changes: tuple[str, str]) -> str:
    Path("equivalent.toml").write_text(
        "".join(
            f'[[equivalent]]\nfile = "toy.py"\nline = "{line}"\nmutant = "{mutant}"\nreason = "for the test"\n'
            for line, mutant in changes
        )
    )
    return "equivalent.toml"


DIVIDED = (
    "result.prev_sample = result.prev_sample * self.scale",
    "result.prev_sample = result.prev_sample / self.scale",
)


def test_declared_mutants_do_not_count(audit: Auditor) -> None:
    audit("--json", "before.json")
    audit("--json", "after.json", "--equivalents", declarations(DIVIDED))
    before, after = (json.loads(Path(f"{name}.json").read_text())["files"][0] for name in ("before", "after"))
    assert (after["equivalent"], after["survived"]) == (1, before["survived"] - 1)
    assert after["score"] > before["score"]
    reasons = [m["equivalent"] for m in found("after.json") if m["equivalent"]]
    assert reasons == ["for the test"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("scale = 1.0", "scale = 2.0"), "is killed (line 5): it is not equivalent"),
        (("scale = 3.0", "scale = 4.0"), "matches no mutant"),
    ],
)
def test_a_stale_declaration_fails_the_audit(audit: Auditor, change: tuple[str, str], complaint: str) -> None:
    result = audit("--minimum", "0", "--equivalents", declarations(change))
    assert result.exit_code == 1
    assert complaint in result.output
    assert audit("--minimum", "0", "--equivalents", declarations(DIVIDED)).exit_code == 0


def test_a_sample_makes_no_declaration_stale(audit: Auditor) -> None:
    result = audit("--minimum", "0", "--sample", "1", "--equivalents", declarations(DIVIDED))
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[equivalent]]\nfile = "a"\nline = "b"\nmutant = "c"', "'reason' is mandatory"),
        ('[[equivalent]]\nfile = "a"\nline = "b"\nreason = "c"', "'mutant' or 'operator'"),
        ('[[equivalent]]\nfile = "a"\nline = "b"\nmutant = "c"\nreason = " "', "not empty"),
        ('[[equivalent]]\nfile = "a"\nlines = "b"', "unknown key 'lines'"),
        ("[other]", "only \\[\\[equivalent\\]\\]"),
        ("equivalent = 1 =", "not TOML"),
        (None, "No such file"),
    ],
)
def test_declarations_are_read_strictly(tmp_path: Path, text: str | None, complaint: str) -> None:
    path = tmp_path / "equivalent.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConformanceError, match=complaint):
        read_equivalents(path)


@pytest.mark.parametrize(
    ("arguments", "subject", "complaint"),
    [
        ((), "toy.py:Absent", "has no class 'Absent'"),
        ((), "absent.py:Toy", "no such file"),
        ((), "diffusers_ref.schedulers.timesteps:TimestepSpacing", "neither"),
        (("--checks", "tests"), "toy.py:ToyDDIMScheduler", "checks 'tests'; allowed: fixtures, contracts"),
        (("--with", "json"), "toy.py:ToyDDIMScheduler", "does not import it"),
        (("--with", "absent.py"), "toy.py:ToyDDIMScheduler", "no such file"),
        (("--minimum", "98"), "toy.py:ToyDDIMScheduler", "allowed: 0 to 1"),
        (("--jobs", "0"), "toy.py:ToyDDIMScheduler", "at least 1"),
        (("--json", "absent/report.json"), "toy.py:ToyDDIMScheduler", "no such folder"),
    ],
)
def test_mistakes_end_with_a_line_and_code_2(
    audit: Auditor, arguments: tuple[str, ...], subject: str, complaint: str
) -> None:
    result = audit(*arguments, subject=subject)
    assert result.exit_code == 2
    assert complaint in result.output


def test_a_class_that_passes_nothing_has_nothing_to_audit_with(audit: Auditor) -> None:
    Path("toy.py").write_text(SCHEDULER.replace("scale = 1.0", "scale = 1.1"))
    result = audit()
    assert result.exit_code == 2
    assert "passes none of the checks" in result.output


def test_helpers_are_mutated_for_the_classes_that_use_them(fixtures: Path) -> None:
    subjects = ("diffusers_ref.schedulers.ddim:DDIMScheduler", "diffusers_ref.schedulers.pndm:PNDMScheduler")
    audit = Audit.of(Request(subjects, (HELPER,), ("fixtures",), str(fixtures)))
    assert audit.prepare() == []
    source, path = source_of(sys.modules[HELPER])
    mutants = {m.after: m for m in mutants_of(source, HELPER, path)}
    verdict = audit.judge(mutants['if config["XXclip_sampleXX"]:'])
    assert (verdict.killed, verdict.by, verdict.detail) == (True, "fixtures", "error")
    assert verdict.check.startswith("ddim/")  # PNDM does not import the module


@pytest.fixture
def looping(tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """An audit of a class with a loop that a mutation makes endless, and a table that one makes impossible."""
    path = tmp_path / "toy.py"
    loop = "        count = 0\n        while count < 3:\n            count += 1\n"
    text = SCHEDULER.replace("        result = super", f"{loop}        result = super", 1)
    path.write_text(text.replace("scale = 1.0", "scale = 1.0\n    table = 1 / (2 - 1)"))
    monkeypatch.setattr(session, "LEAST_SECONDS", 0.2)
    audit = Audit.of(Request((f"{path}:ToyDDIMScheduler",), (), ("fixtures",), str(fixtures)))
    audit.prepare()
    return audit


def judged(audit: Audit, after: str) -> Verdict:
    return audit.judge(next(mutant for mutant in audit.mutants() if mutant.after == after))


def test_a_mutant_that_does_not_end_is_killed(looping: Audit) -> None:
    verdict = judged(looping, "count -= 1")
    assert (verdict.killed, verdict.by, verdict.detail) == (True, "time", "does not end")
    assert not judged(looping, "while count <= 3:").killed


def test_a_mutant_that_cannot_be_imported_is_killed(looping: Audit) -> None:
    verdict = judged(looping, "table = 1 / (2 - 2)")
    assert (verdict.killed, verdict.by) == (True, "import")
    assert verdict.detail == "ZeroDivisionError: division by zero"


def test_a_loss_of_the_originals_bits_is_noticed(looping: Audit) -> None:
    check = looping.subjects[0].checks[0]
    assert check.notices("equivalent", "bitwise")
    assert not check.notices("equivalent", "equivalent")
    assert check.notices("unsupported", "equivalent")


def test_workers_find_what_one_process_finds(audit: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads(count: int, mp_context: Any, **options: Any) -> ThreadPoolExecutor:
        assert (count, mp_context.get_start_method()) == (2, "spawn")
        return ThreadPoolExecutor(1, **options)  # an audit of its own, as in a process

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", threads)
    audit("--sample", "8", "--json", "one.json")
    audit("--sample", "8", "--json", "two.json", "--jobs", "2")
    fates = lambda path: [(m["line"], m["after"], m["killed"], m["by"]) for m in found(path)]
    assert fates("one.json") == fates("two.json")
    assert {m["killed"] for m in found("two.json")} == {True, False}


def test_an_empty_report_is_a_full_score() -> None:
    request = Request(("toy.py:Toy",))
    assert Report.of(request, [], [], [], []).passes(1.0)
    assert sample([], 3, 0) == []
