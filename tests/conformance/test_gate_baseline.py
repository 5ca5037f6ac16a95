"""The baseline file: exact, deterministic, and refused when it is not what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conformance.errors import ConformanceError
from conformance.gate.baseline import KEY, Baseline, Case, read_baseline
from conformance.gate.driver import Outcome


def baseline() -> Baseline:
    nan = torch.tensor([1.0, float("nan"), -0.0])
    sampled: dict[str, Outcome] = {"sample": nan, "sample.f64": nan.double(), "timesteps": torch.arange(3)}
    refused: dict[str, Outcome] = {"raises": "ValueError", "draws": torch.ones((), dtype=torch.bool)}
    choices = {"steps": 3, "config.betas": [0.1, 0.2]}
    cases = {
        "ddim/a": Case(sampled, "bitwise", ("timesteps",)),
        "probe/S/1": Case(refused, cls="S", choices=choices),
    }
    return Baseline("diffusers_ref", "0.1", "cpu", "float32", ("ddim",), {"torch": "2"}, cases)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    baseline().write(tmp_path / "baseline.safetensors")
    return tmp_path / "baseline.safetensors"


def test_what_is_read_is_what_was_written(path: Path) -> None:
    found, written = read_baseline(path), baseline()
    assert (found.implementation, found.select, found.environment) == ("diffusers_ref", ("ddim",), {"torch": "2"})
    case, probe = found.cases["ddim/a"], found.cases["probe/S/1"]
    assert (case.verdict, case.exact) == ("bitwise", ("timesteps",))
    assert list(case.outputs) == ["sample", "sample.f64", "timesteps"]
    sample = case.outputs["sample"]
    assert isinstance(sample, torch.Tensor) and sample.signbit().tolist()[2]
    assert torch.equal(sample, written.cases["ddim/a"].outputs["sample"]) is False  # NaN
    assert sample.view(torch.int32).tolist() == written.cases["ddim/a"].outputs["sample"].view(torch.int32).tolist()  # type: ignore[union-attr]
    assert probe.outputs["raises"] == "ValueError"
    assert (probe.cls, probe.choices) == ("S", {"steps": 3, "config.betas": [0.1, 0.2]})


def test_the_same_run_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    baseline().write(again)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "baseline.safetensors"]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda p: p.unlink(), "no such file; make it with --update"),
        (lambda p: p.write_bytes(p.read_bytes()[:-4]), "not a readable baseline"),
        (lambda p: p.write_bytes(p.read_bytes().replace(b"\0\0\x80\x3f", b"\0\0\x81\x3f")), "damaged: 1 of"),
        (lambda p: p.write_text("{}"), "not a readable baseline"),
        (lambda p: save_file({"x": torch.ones(1)}, str(p)), "not written by `conformance gate --update`"),
        (lambda p: save_file({"x": torch.ones(1)}, str(p), {KEY: '{"format": 99}'}), "format 99; this version reads 1"),
        (lambda p: save_file({}, str(p), {KEY: '{"format": 1, "device": "cpu"}'}), "damaged: KeyError"),
    ],
)
def test_a_file_that_is_no_good_baseline_is_an_error_that_says_so(
    path: Path, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(path)
    with pytest.raises(ConformanceError, match=complaint):
        read_baseline(path)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConformanceError, match="No such file or directory"):
        baseline().write(tmp_path / "nowhere" / "b.safetensors")
