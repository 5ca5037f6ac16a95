"""The command line: verdicts, exit codes, reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from toy_fixture import FEW_CASES as CASES
from toy_fixture import edit_json
from typer.testing import CliRunner

from conformance.cli import app

PORTS = Path(__file__).with_name("ported_schedulers.py")


def conformance(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the runs of pytest inside these tests what takes longer than they do."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:unraisableexception -p no:hypothesispytest")


def reported(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


# --- run -------------------------------------------------------------------------------------------------------------


def test_a_run_that_passes(fixtures: Path, tmp_path: Path) -> None:
    result = conformance("run", "--fixtures", fixtures, "--json", tmp_path / "report.json")

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("ddim/", "pndm/"))] == list(CASES)
    assert any(line.startswith("3 fixtures on diffusers_ref 0.1.0: 3 bitwise; ρ median") for line in lines)

    report = reported(tmp_path / "report.json")
    assert list(report) == ["schema", "environment", "implementation", "device", "dtype", "cases"]
    assert report["schema"] == 1
    assert report["environment"]["torch"] == torch.__version__
    assert set(report["environment"]) == {"python", "torch", "numpy", "machine"}
    assert report["implementation"] == {"name": "diffusers_ref", "version": "0.1.0"}
    assert (report["device"], report["dtype"]) == ("cpu", "float32")
    first = report["cases"][0]
    keys = "id kind verdict rho max_error result_error noise_floor first_divergence draws_match seconds message"
    assert list(first) == keys.split()
    figures = {name: first.pop(name) for name in ("rho", "max_error", "result_error", "noise_floor", "seconds")}
    assert first == {"id": CASES[0], "kind": "scheduler", "verdict": "bitwise", "first_divergence": None,
                     "draws_match": True, "message": ""}  # fmt: skip
    assert 0 < figures["rho"] <= 1
    assert 2**-24 <= figures["noise_floor"] < 1e-5
    assert 0 < figures["max_error"] < 1e-5
    assert figures["seconds"] > 0


def test_a_divergence_is_exit_code_1_and_says_where(fixtures: Path, tmp_path: Path) -> None:
    result = conformance("run", "--fixtures", fixtures, "--implementation", f"{PORTS}:DriftedDDIMScheduler",
                         "--json", tmp_path / "report.json")  # fmt: skip

    assert result.exit_code == 1
    report = reported(tmp_path / "report.json")
    assert report["implementation"] == {"name": f"{PORTS}:DriftedDDIMScheduler", "version": "local"}
    assert [case["verdict"] for case in report["cases"]] == ["divergent", "divergent", "unsupported"]
    assert report["cases"][0]["first_divergence"] == {"step": 0, "tap": "step"}
    assert report["cases"][0]["rho"] > 4
    assert report["cases"][0]["message"].startswith("step at step 0: largest difference ")
    assert report["cases"][2]["message"] == "DriftedDDIMScheduler does not stand for PNDMScheduler"
    assert report["cases"][2]["rho"] is None
    assert "2 divergent" in result.stdout
    assert "1 unsupported" in result.stdout
    assert f"{CASES[0]}: step at step 0: largest difference" in result.stdout


def test_what_is_unsupported_does_not_pass(fixtures: Path) -> None:
    result = conformance("run", "pndm", "--fixtures", fixtures, "--implementation", f"{PORTS}:GoodDDIMScheduler")

    assert result.exit_code == 1
    assert ": 1 unsupported" in result.stdout


def test_an_error_in_the_implementation_is_exit_code_1(fixtures: Path) -> None:
    result = conformance("run", CASES[0], "--fixtures", fixtures, "--implementation", f"{PORTS}:BrokenDDIMScheduler")

    assert result.exit_code == 1
    assert f"{CASES[0]}: IndexError: index 14 is out of bounds" in result.stdout


def test_a_selection_runs_only_what_it_names(fixtures: Path) -> None:
    result = conformance("run", "ddim/*eta-1", "pndm", "--fixtures", fixtures)

    assert result.exit_code == 0
    assert CASES[0] not in result.stdout
    assert "2 fixtures on diffusers_ref" in result.stdout


# --- expectations ----------------------------------------------------------------------------------------------------


def run_with_expectations(fixtures: Path, tmp_path: Path, text: str, *options: str) -> Result:
    path = tmp_path / "expected.toml"
    path.write_text(text, encoding="utf-8")
    return conformance("run", "ddim", "--fixtures", fixtures, "--expectations", path, *options)


DRIFTED = ("--implementation", f"{PORTS}:DriftedDDIMScheduler")


def test_expected_divergences_are_waived_with_their_reason(fixtures: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    text = '[[expect]]\ncase = "ddim"\nreason = "known drift"\ndevice = "cpu"'

    result = run_with_expectations(fixtures, tmp_path, text, *DRIFTED, "--json", str(report))

    assert result.exit_code == 0, result.output
    assert [case["verdict"] for case in reported(report)["cases"]] == ["waived", "waived"]
    assert reported(report)["cases"][0]["message"].startswith("waived (known drift); divergent: step at step 0: ")


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        ('[[expect]]\ncase = "ddim"\nreason = "r"', (), "'ddim' is no longer needed: all 2 matching cases pass"),
        ('[[expect]]\ncase = "ddpm/*"\nreason = "r"', (), "'ddpm/*' matches no case of this run"),
        ('[[expect]]\ncase = "ddim/*-0"\nreason = "r"', DRIFTED, "2 fixtures on"),
        ('[[expect]]\ncase = "ddim"\nreason = "r"\nimplementation = "diffusers"', DRIFTED, "2 divergent"),
    ],
)
def test_expectations_that_do_not_hold_fail_the_run(
    fixtures: Path, tmp_path: Path, text: str, options: tuple[str, ...], complaint: str
) -> None:
    result = run_with_expectations(fixtures, tmp_path, text, *options)

    assert result.exit_code == 1
    assert complaint in result.stdout


def test_an_expectation_for_another_implementation_is_not_missed(fixtures: Path, tmp_path: Path) -> None:
    text = '[[expect]]\ncase = "ddim"\nreason = "r"\nimplementation = "diffusers"'

    assert run_with_expectations(fixtures, tmp_path, text).exit_code == 0


# --- mistakes: exit code 2 and one readable line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--implementation", "hf"), "implementation 'hf'; allowed: diffusers_ref, diffusers, "),
        (("run", "--implementation", "absent.py:Port"), "absent.py: no such file"),
        (("run", "--dtype", "int8"), "dtype 'int8'; allowed: float32, float64, float16, bfloat16"),
        (("run", "--tier", "huge"), "tier 'huge'; allowed: default, full, hub"),
        (("run", "--tier", "full"), "no fixture of tier 'full' in the selection"),
        (("run", "ddim/ddim-uniform-2-eta-2"), "no fixture matches 'ddim/ddim-uniform-2-eta-2' in "),
        (("run", "--device", "banana"), "device 'banana' cannot be used on this machine: "),
        (("run", "--expectations", "absent.toml"), "expectations absent.toml: No such file or directory"),
        (("run", "--json", "absent/report.json"), "--json absent/report.json: there is no such folder"),
        (("explain", "ddim/nothing"), "no fixture 'ddim/nothing' in "),
        (("list", "nothing"), "no fixture matches 'nothing' in "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(fixtures: Path, arguments: tuple[str, ...], message: str) -> None:
    result = conformance(*arguments, "--fixtures", fixtures)

    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"conformance: {message}")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_usage_error_of_pytest_is_exit_code_2(fixtures: Path) -> None:
    assert conformance("run", "--fixtures", fixtures, "-n", "many").exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", [("run",), ("explain", CASES[0])])
def test_a_missing_device_is_never_a_skip(fixtures: Path, command: tuple[str, ...]) -> None:
    result = conformance(*command, "--fixtures", fixtures, "--device", "cuda")

    assert result.exit_code == 2
    assert result.stderr.startswith("conformance: device 'cuda' cannot be used on this machine: ")


def test_a_missing_fixture_folder_is_exit_code_2(tmp_path: Path) -> None:
    for command in ("run", "list"):
        result = conformance(command, "--fixtures", tmp_path / "absent")
        assert (result.exit_code, result.stderr) == (2, f"conformance: {tmp_path}/absent: no such fixture folder\n")


def test_bad_expectations_are_exit_code_2(fixtures: Path, tmp_path: Path) -> None:
    result = run_with_expectations(fixtures, tmp_path, '[[expect]]\ncase = "ddim"')

    assert result.exit_code == 2
    assert "entry 1: 'reason' is mandatory" in result.stderr


def test_a_damaged_fixture_is_exit_code_2_and_the_others_are_judged(fixtures: Path, tmp_path: Path) -> None:
    damaged = fixtures / f"{CASES[0]}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])

    result = conformance("run", "--fixtures", fixtures, "--json", tmp_path / "report.json")

    assert result.exit_code == 2
    complaint = next(line for line in result.stdout.splitlines() if "not a readable safetensors file" in line)
    assert f"test_fixture[{CASES[0]}]: {damaged}: " in complaint
    assert [case["id"] for case in reported(tmp_path / "report.json")["cases"]] == list(CASES[1:])


def test_a_manifest_that_deviates_is_exit_code_2(fixtures: Path) -> None:
    edit_json(fixtures / f"{CASES[0]}.json", lambda data: data.update(extra=1))

    result = conformance("run", "--fixtures", fixtures)

    assert result.exit_code == 2
    assert "unknown key 'extra'" in result.stderr


# --- list, explain ---------------------------------------------------------------------------------------------------


def test_list_shows_each_case_on_a_line(fixtures: Path) -> None:
    result = conformance("list", "ddim", "--fixtures", fixtures)

    assert result.exit_code == 0
    assert [line.split()[:3] for line in result.stdout.splitlines()] == [
        [case, "scheduler", "default"] for case in CASES[:2]
    ]
    assert "DDIM, uniform grid of 2, η = 0, linear betas" in result.stdout


def test_list_as_json(fixtures: Path) -> None:
    rows = json.loads(conformance("list", "--json", "--fixtures", fixtures).stdout)

    assert [row["id"] for row in rows] == list(CASES)
    assert rows[0] == {
        "id": CASES[0], "kind": "scheduler", "tier": "default", "title": "DDIM, uniform grid of 2, η = 0, linear betas",
        "reference": "ermongroup/ddim", "commit": "e8df66cf02e457719930748b5c26e37e3126dfdd",
        "outputs": ["timesteps", "step", "sample", "pred_original_sample"],
    }  # fmt: skip


def test_explain_names_output_step_and_values(fixtures: Path) -> None:
    result = conformance("explain", CASES[0], "--fixtures", fixtures, *DRIFTED)

    assert result.exit_code == 1
    assert f"{CASES[0]}: DDIM, uniform grid of 2" in result.stdout
    assert "(arXiv:2010.02502), equations 12 and 16" in result.stdout
    assert "ermongroup/ddim@e8df66cf02e4: " in result.stdout
    assert "verdict: divergent" in result.stdout
    assert "random stream: as the original" in result.stdout
    assert "first divergence: step at step 0 of 2 (network time 500)" in result.stdout
    assert "largest difference" in result.stdout


def test_explain_names_the_module() -> None:
    from unittest.mock import patch

    import diffusers_ref.models.unet_2d

    eps = patch.object(diffusers_ref.models.unet_2d.nn.GroupNorm, "forward", lambda norm, x: x)
    with eps:
        result = conformance("explain", "ddim/network-tiny")

    assert result.exit_code == 1
    assert "first divergence: tap:down.0.block.0.norm1" in result.stdout


def test_explain_on_a_case_that_passes(fixtures: Path) -> None:
    result = conformance("explain", CASES[0], "--fixtures", fixtures)

    assert result.exit_code == 0
    assert "verdict: bitwise" in result.stdout
    assert "first divergence" not in result.stdout


# --- start-up --------------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys, time
start = time.perf_counter()
import conformance.cli
print(time.perf_counter() - start)
from typer.testing import CliRunner
for arguments in (["--help"], ["list", "--fixtures", sys.argv[1]], ["list", "--json", "--fixtures", sys.argv[1]]):
    result = CliRunner().invoke(conformance.cli.app, arguments)
    assert result.exit_code == 0, result.output
import conformance.plugin
print(sorted({"torch", "transformers", "diffusers", "diffusers_ref"} & set(sys.modules)))
"""


def test_the_command_line_starts_without_torch(fixtures: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(fixtures)]
    seconds, loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    assert loaded == "[]"
    assert float(seconds) <= 0.5
