"""The gate as a maintainer uses it: a baseline before a change, the verdict after it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from gate_toy import SOURCE, SUM
from typer.testing import CliRunner, Result

from conformance.cli import app


class Desk:
    """A folder with a scheduler under change."""

    def __init__(self, folder: Path) -> None:
        self.file, self.baseline = folder / "toy.py", folder / "baseline.safetensors"
        self.implementation = f"{self.file}:ToyScheduler"
        self.write(SOURCE)

    def write(self, source: str) -> None:
        self.file.write_text(source, encoding="utf-8")

    def change(self, old: str, new: str) -> None:
        assert old in SOURCE
        self.write(SOURCE.replace(old, new))

    def gate(self, *options: str, select: str = "probe") -> Result:
        command = ["gate", select, "--baseline", str(self.baseline), "--implementation", self.implementation, "-n", "0"]
        return CliRunner().invoke(app, [*command, *options])


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    desk = Desk(tmp_path_factory.mktemp("gate"))
    result = desk.gate("--update")
    assert result.exit_code == 0, result.output
    assert "probes of 1 scheduler classes" in result.output
    return desk.baseline.read_bytes()


@pytest.fixture
def desk(tmp_path: Path, taken: bytes) -> Desk:
    desk = Desk(tmp_path)
    desk.baseline.write_bytes(taken)
    return desk


def test_the_same_code_passes_also_where_it_lies_in_another_folder(desk: Desk) -> None:
    result = desk.gate("--strict")
    assert (result.exit_code, "diverged" in result.output) == (0, False)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("before >= 0", "before > 0"),
        ("x0.clamp(-1, 1)", "x0.clamp(-1, 2)"),
        ("sigma**2", "sigma**3"),
        ("beta_end=0.02", "beta_end=0.03"),
        ("raise ValueError", "raise TypeError"),
        ("noise = torch.randn(sample.shape, generator=generator,", "noise = torch.randn(sample.shape, generator=None,"),
        ("noise = torch.randn(", "noise = 0 if eta == 0 else torch.randn("),
        ("else (result, x0)", "else (x0, result)"),
    ],
)
def test_a_change_of_one_number_sign_or_draw_fails(desk: Desk, old: str, new: str) -> None:
    desk.change(old, new)
    result = desk.gate()
    assert result.exit_code == 1, result.output
    assert "diverged" in result.output and "probe/ToyScheduler" in result.output


def test_another_order_of_a_sum_moves_bits_and_fails_only_when_asked(desk: Desk, tmp_path: Path) -> None:
    desk.change(SUM, "sigma * noise + direction + a_prev**0.5 * x0")
    report = tmp_path / "report.json"
    result = desk.gate("--json", str(report))
    assert result.exit_code == 0, result.output
    data = json.loads(report.read_text())
    assert data["passed"] and data["counts"]["moved"] > 0 and data["counts"]["diverged"] == 0
    assert {change["first"] for change in data["changes"]} <= {"sample", "sample.f64"}
    assert desk.gate("--strict").exit_code == 1


def test_a_class_that_is_gone_fails_and_a_new_one_is_reported(desk: Desk) -> None:
    desk.write(SOURCE.replace("class ToyScheduler", "class OtherScheduler") + "\n\nToyScheduler = OtherScheduler\n")
    result = desk.gate()
    assert result.exit_code == 1
    assert "there is no ToyScheduler any more" in result.output and "probe/OtherScheduler" in result.output


def test_an_intended_divergence_is_waived_with_a_reason_and_a_stale_one_fails(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "expectations.toml"
    file.write_text('[[expect]]\ncase = "probe/ToyScheduler/*"\nreason = "clips at 2, as the paper says"\n')
    stale = desk.gate("--expectations", str(file))
    assert stale.exit_code == 1 and "is no longer needed" in stale.output
    desk.change("x0.clamp(-1, 1)", "x0.clamp(-1, 2)")
    waived = desk.gate("--expectations", str(file))
    assert waived.exit_code == 0, waived.output
    assert "waived" in waived.output


def test_a_baseline_of_something_else_is_a_usage_error(desk: Desk) -> None:
    assert "the baseline's dtype is 'float32', this run's is 'float64'" in desk.gate("--dtype", "float64").output
    assert "selection is 'probe', this run's is 'ToyScheduler'" in desk.gate(select="ToyScheduler").output
    other = desk.gate("--implementation", "diffusers_ref")
    assert (other.exit_code, "the baseline's implementation is 'toy.py:ToyScheduler'" in other.output) == (2, True)
    assert desk.gate("-n", "many").exit_code == 2
    desk.baseline.unlink()
    assert (desk.gate().exit_code, "--update" in desk.gate().output) == (2, True)


def test_a_pattern_that_matches_nothing_is_a_usage_error(desk: Desk) -> None:
    result = desk.gate("--update", select="nonsense")
    assert (result.exit_code, "nor does it name scheduler classes" in result.output) == (2, True)


def test_two_processes_give_what_one_gives(tmp_path: Path, desk: Desk) -> None:
    select = ["pndm/s-pndm-linear-51-3", "ddim/ddim-uniform-7-eta-0.3"]
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file, workers in zip(files, ("0", "2"), strict=True):
        result = CliRunner().invoke(app, ["gate", *select, "--baseline", str(file), "--update", "-n", workers])
        assert result.exit_code == 0, result.output
        assert "2 fixtures (2 bitwise)" in result.output
    assert files[0].read_bytes() == files[1].read_bytes()
    assert CliRunner().invoke(app, ["gate", *select, "--baseline", str(files[0]), "-n", "2"]).exit_code == 0


# --- --pythonpath ----------------------------------------------------------------------------------------------------


def test_a_checkout_is_imported_instead_of_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "src" / "toy_package_of_the_gate"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    baseline = str(tmp_path / "b.safetensors")
    command = ["gate", "probe", "--baseline", baseline, "--implementation", "toy_package_of_the_gate:ToyScheduler"]
    found = CliRunner().invoke(app, [*command, "--update", "-n", "0", "--pythonpath", str(tmp_path / "src")])
    assert found.exit_code == 0, found.output
    elsewhere = tmp_path / "other" / "toy_package_of_the_gate"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text(SOURCE)
    again = CliRunner().invoke(app, [*command, "--pythonpath", str(tmp_path / "other")])
    assert (again.exit_code, "has been imported already, from" in again.output) == (2, True)
    missing = CliRunner().invoke(app, [*command, "--pythonpath", str(tmp_path)])
    assert (missing.exit_code, "there is no package 'toy_package_of_the_gate' in it" in missing.output) == (2, True)
    nowhere = CliRunner().invoke(app, [*command, "--pythonpath", str(tmp_path / "nowhere")])
    assert (nowhere.exit_code, "no such folder" in nowhere.output) == (2, True)
    del sys.modules["toy_package_of_the_gate"]
