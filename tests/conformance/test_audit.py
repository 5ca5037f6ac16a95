"""An audit from the command to the report: what is killed, what survives, what is declared, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import conformance.audit.parallel as parallel
import conformance.audit.session as session
from conformance.audit.checks import ContractCheck
from conformance.audit.equivalents import Equivalent, read_equivalents
from conformance.audit.mutants import mutants_of
from conformance.audit.report import Report
from conformance.audit.sandbox import source_of
from conformance.audit.session import Audit, Request, Verdict, sample
from conformance.cli import app
from conformance.contracts.contract import Contract
from conformance.errors import ConformanceError
from conformance.library import open_library

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


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    """What became of all mutants of the toy file."""
    path = tmp_path_factory.mktemp("judged") / "toy.py"
    path.write_text(SCHEDULER)
    root = tmp_path_factory.mktemp("fixtures")
    (root / "ddim").mkdir()
    for file in open_library().root.glob("ddim/ddim-uniform-2-eta-0.*"):
        shutil.copy(file, root / "ddim" / file.name)
    audit = Audit.of(Request((f"{path}:ToyDDIMScheduler",), (), ("fixtures",), str(root)))
    assert audit.prepare() == []
    return [audit.judge(mutant) for mutant in audit.mutants()]


def report(judged: list[Verdict], *entries: Equivalent, run: int | None = None) -> Report:
    everything = [verdict.mutant for verdict in judged]
    return Report.of(Request(("toy.py:Toy",)), everything, judged[:run], entries, [])


def found(path: str) -> list[dict[str, Any]]:
    return json.loads(Path(path).read_text(encoding="utf-8"))["mutants"]


def test_the_command_shows_survivors_with_their_line_and_operator(audit: Auditor) -> None:
    result = audit("--json", "report.json")
    assert result.exit_code == 1
    assert "toy.py:14 ToyDDIMScheduler.never  operator_swap_op  survived: executed by no check" in result.output
    assert "  - return 1 - 2\n  + return 1 + 2\n" in result.output
    data = json.loads(Path("report.json").read_text(encoding="utf-8"))
    (row, total), mutants = data["files"], data["mutants"]
    assert {key: row[key] for key in row if key != "file"} == {key: total[key] for key in total if key != "file"}
    assert row["mutants"] == len(mutants)
    assert row["fixtures"] == sum(m["by"] == "fixtures" for m in mutants)
    assert row["survived"] == sum(not m["killed"] for m in mutants)
    assert data["score"] == row["score"] == pytest.approx(1 - row["survived"] / row["mutants"])
    assert data["subjects"] == ["toy.py:ToyDDIMScheduler"]


def test_a_fault_of_one_in_100000_is_killed_and_no_change_survives(judged: list[Verdict]) -> None:
    by_change = {verdict.mutant.after: verdict for verdict in judged}
    assert by_change["scale = 2.0"].by == by_change["scale = 1.00001"].by == "fixtures"
    assert by_change["scale = 1.00001"].detail == "divergent"
    divided = by_change["result.prev_sample = result.prev_sample / self.scale"]
    assert (divided.killed, divided.tried) == (False, 1)
    assert by_change["return 1 + 2"].tried == 0


def test_the_minimum_decides(judged: list[Verdict]) -> None:
    score = report(judged).total.score
    assert 0.3 < score < 0.6
    assert report(judged).passes(score)
    assert not report(judged).passes(score + 0.01)


def test_a_sample_is_the_same_for_the_same_seed(judged: list[Verdict]) -> None:
    mutants = [verdict.mutant for verdict in judged]
    one, two, other = sample(mutants, 6, 3), sample(mutants, 6, 3), sample(mutants, 6, 4)
    assert one == two != other
    assert [mutants.index(mutant) for mutant in one] == sorted(mutants.index(mutant) for mutant in one)
    assert sample(mutants, None, 0) == sample(mutants, 99, 0) == mutants


DIVIDED = Equivalent(
    "toy.py",
    "result.prev_sample = result.prev_sample * self.scale",
    "the scale is 1",
    mutant="result.prev_sample = result.prev_sample / self.scale",
)


def test_declared_mutants_do_not_count(judged: list[Verdict]) -> None:
    before, after = report(judged).total, report(judged, DIVIDED).total
    assert (after.equivalent, after.survived) == (1, before.survived - 1)
    assert after.score > before.score
    reasons = [mutant["equivalent"] for mutant in report(judged, DIVIDED).to_dict()["mutants"] if mutant["equivalent"]]
    assert reasons == ["the scale is 1"]
    assert report(judged, DIVIDED).passes(0)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (Equivalent("toy.py", "scale = 1.0", "none", mutant="scale = 2.0"), "is killed (line 5): it is not equivalent"),
        (Equivalent("toy.py", "scale = 1.0", "none", operator="operator_number"), "is killed (line 5)"),
        (Equivalent("toy.py", "scale = 3.0", "none", mutant="scale = 4.0"), "matches no mutant"),
        (dataclasses.replace(DIVIDED, function="never"), "matches no mutant"),
    ],
)
def test_a_stale_declaration_fails_the_audit(judged: list[Verdict], entry: Equivalent, complaint: str) -> None:
    stale = report(judged, DIVIDED, entry)
    assert not stale.passes(0)
    assert len(stale.complaints) == 1
    assert complaint in stale.complaints[0]


def test_neither_a_sample_nor_another_file_makes_a_declaration_stale(judged: list[Verdict]) -> None:
    assert report(judged, DIVIDED, run=1).passes(0)
    assert report(judged, dataclasses.replace(DIVIDED, file="other.py")).passes(0)


def test_the_command_reads_declarations(audit: Auditor) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in vars(DIVIDED).items() if value]
    Path("equivalent.toml").write_text("\n".join(["[[equivalent]]", *lines]))
    result = audit("--minimum", "0", "--sample", "1", "--equivalents", "equivalent.toml")
    assert result.exit_code == 0, result.output


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


def judge(audit: Audit, after: str) -> Verdict:
    return audit.judge(next(mutant for mutant in audit.mutants() if mutant.after == after))


def test_a_mutant_that_does_not_end_is_killed(looping: Audit) -> None:
    verdict = judge(looping, "count -= 1")
    assert (verdict.killed, verdict.by, verdict.detail) == (True, "time", "does not end")
    assert not judge(looping, "while count <= 3:").killed


def test_no_check_is_begun_after_the_time_a_mutant_is_given(looping: Audit) -> None:
    mutant = next(mutant for mutant in looping.mutants() if mutant.after == "while count <= 3:")
    assert looping.judge(mutant, at_most=0.0).tried == 1
    assert looping.judge(mutant).tried == 2


def test_a_class_that_no_check_can_look_at_is_killed(looping: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = next(mutant for mutant in looping.mutants() if mutant.after == "while count <= 3:")
    for check in looping.subjects[0].checks:
        monkeypatch.setattr(check, "outcome", lambda cls, memory: 1 / 0)
    verdict = looping.judge(mutant)
    assert (verdict.killed, verdict.by, verdict.detail) == (True, "fixtures", "ZeroDivisionError: division by zero")


def test_only_contracts_of_the_same_class_share_what_they_found_out(looping: Audit) -> None:
    def counts_who_came_before(subject: Any, given: Any) -> None:
        seen.append(subject.measured.setdefault("visits", 0))
        subject.measured["visits"] += 1
        scheduler = subject.prepared(2)
        scheduler.step(x, scheduler.timesteps[0], x)

    seen: list[int] = []
    x = torch.zeros(1, 1, 2, 2)
    looping.subjects[0].checks[:] = [ContractCheck(Contract(counts_who_came_before)) for _ in range(2)]
    looping.baseline.clear()
    looping.prepare()
    assert seen == [0, 0]  # each does all of its work, so that all the lines are seen that it executes
    for _ in range(2):
        seen.clear()
        judge(looping, "while count <= 3:")
        assert seen == [0, 1]


def test_a_mutant_that_cannot_be_imported_is_killed(looping: Audit) -> None:
    verdict = judge(looping, "table = 1 / (2 - 2)")
    assert (verdict.killed, verdict.by) == (True, "import")
    assert verdict.detail == "ZeroDivisionError: division by zero"


def test_a_loss_of_the_originals_bits_is_noticed(looping: Audit) -> None:
    check = looping.subjects[0].checks[0]
    assert check.notices("equivalent", "bitwise")
    assert not check.notices("equivalent", "equivalent")
    assert check.notices("unsupported", "equivalent")


def test_workers_find_what_one_process_finds(
    audit: Auditor, judged: list[Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(count: int, mp_context: Any, **options: Any) -> ThreadPoolExecutor:
        assert (count, mp_context.get_start_method()) == (2, "spawn")
        return ThreadPoolExecutor(1, **options)  # an audit of its own, as in a process

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", threads)
    audit("--json", "two.json", "--jobs", "2")
    fates = [(m["line"], m["after"], m["killed"]) for m in found("two.json")]
    assert fates == [(verdict.mutant.line, verdict.mutant.after, verdict.killed) for verdict in judged]


def test_our_declarations_are_about_lines_that_exist() -> None:
    root = Path(__file__).parents[2]
    entries = read_equivalents(Path(__file__).with_name("equivalent_mutants.toml"))
    assert entries
    for entry in entries:
        lines = [line.strip() for line in (root / entry.file).read_text(encoding="utf-8").split("\n")]
        for line in entry.line.split("\n"):
            assert line in lines, str(entry)


def test_an_empty_report_is_a_full_score() -> None:
    request = Request(("toy.py:Toy",))
    assert Report.of(request, [], [], [], []).passes(1.0)
