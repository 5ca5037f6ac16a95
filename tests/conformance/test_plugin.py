"""The pytest plugin: its options, its suite and its report, in pytest runs of their own."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from toy_fixture import FEW_CASES

pytest_plugins = ["pytester"]

PORTS = Path(__file__).with_name("ported_schedulers.py")
DRIFTED = f"--implementation={PORTS}:DriftedDDIMScheduler"
OWN_SUITE = """
def test_parity(fixture_id, replay_fixture):
    assert replay_fixture(fixture_id)["verdict"] in ("bitwise", "equivalent", "waived")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, fixtures: Path) -> pytest.Pytester:
    """A folder with a suite of the user's own that replays three fixtures."""
    pytester.makepyfile(test_parity=OWN_SUITE)
    spared = "-p no:cacheprovider -p no:unraisableexception -p no:hypothesispytest"  # take longer than these tests
    pytester.makeini(f"[pytest]\naddopts = {spared} --conformance-fixtures={fixtures}")
    return pytester


def test_each_fixture_is_a_test(suite: pytest.Pytester) -> None:
    result = suite.runpytest_inprocess("-v")

    result.assert_outcomes(passed=3)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"test_parity.py::test_parity[[]{case}] PASSED*" for case in FEW_CASES])
    result.stdout.fnmatch_lines(["3 fixtures on diffusers_ref 0.1.0: 3 bitwise; ρ median *"])


def test_the_suite_of_the_package_can_be_named(suite: pytest.Pytester, fixtures: Path) -> None:
    result = suite.runpytest_inprocess(
        "--pyargs", "conformance.suite", f"--conformance-fixtures={fixtures}", "-k", "test_fixture"
    )

    result.assert_outcomes(passed=3)


def test_pytest_selects_and_case_patterns_do(suite: pytest.Pytester) -> None:
    suite.runpytest_inprocess("-k", "pndm").assert_outcomes(passed=1, deselected=2)
    suite.runpytest_inprocess("--case", "pndm", "--case", "ddim/*eta-1").assert_outcomes(passed=2)


def test_a_divergence_fails_its_test_and_is_listed(suite: pytest.Pytester) -> None:
    result = suite.runpytest_inprocess(DRIFTED, "--case=ddim", "--conformance-json=report.json")

    result.assert_outcomes(failed=2)
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"{FEW_CASES[0]} *divergent *step step 0*"])
    report = json.loads((suite.path / "report.json").read_text(encoding="utf-8"))
    assert [case["first_divergence"] for case in report["cases"]] == [{"step": 0, "tap": "step"}] * 2


def test_only_cases_that_do_not_pass_are_listed_unless_all_are_wanted(suite: pytest.Pytester) -> None:
    short, full = (suite.runpytest_inprocess(*o).stdout.str() for o in ((), ("--conformance-table",)))

    assert FEW_CASES[0] not in short
    assert FEW_CASES[0] in full


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_results_travel_in_junit_properties_and_into_the_report(
    suite: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    files = ("--junitxml=junit.xml", "--conformance-json=report.json")
    suite.runpytest_inprocess(DRIFTED, "--case=ddim/*eta-0", *files, *workers)

    found = ElementTree.parse(suite.path / "junit.xml").iter("property")
    values = {item.get("name"): item.get("value") or "" for item in found}
    assert values["conformance.id"] == FEW_CASES[0]
    assert values["conformance.verdict"] == "divergent"
    assert float(values["conformance.rho"]) > 4 and float(values["conformance.max_error"]) > 0
    assert json.loads(values["conformance.first_divergence"]) == {"step": 0, "tap": "step"}
    assert json.loads(values["conformance.draws_match"]) in (True, False)
    assert "None" not in values.values()
    case = json.loads((suite.path / "report.json").read_text(encoding="utf-8"))["cases"][0]
    assert list(case) == ["id", "kind", "verdict", "rho", "max_error", "result_error", "noise_floor",
                          "first_divergence", "draws_match", "seconds", "message"]  # fmt: skip
    assert (case["id"], case["verdict"], case["first_divergence"]) == (
        FEW_CASES[0], "divergent", {"step": 0, "tap": "step"}
    )  # fmt: skip
    assert (f"{case['rho']}", case["draws_match"]) == (
        values["conformance.rho"], json.loads(values["conformance.draws_match"])
    )  # fmt: skip


def test_other_tests_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(): pass")

    result = pytester.runpytest_inprocess()

    result.assert_outcomes(passed=1)
    assert "fixtures on" not in result.stdout.str()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_ends_the_run_with_2(suite: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    assert pytest.main(["--device", "cuda", str(suite.path)]) == 2

    said = capsys.readouterr()
    assert said.err.startswith("Exit: device 'cuda' cannot be used on this machine: ")
    assert "skipped" not in said.out


def test_an_unknown_dtype_ends_the_run_with_2(suite: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    assert pytest.main(["--dtype", "int8", str(suite.path)]) == 2

    assert capsys.readouterr().err.startswith("Exit: dtype 'int8'; allowed: float32, float64, float16, bfloat16")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--implementation=hf", "implementation 'hf'; allowed: diffusers_ref"),
        ("--case=nothing", "no fixture matches 'nothing'"),
        ("--tier=full", "no fixture of tier 'full' in the selection"),
        ("--conformance-fixtures=absent", "absent: no such fixture folder"),
        ("--expectations=absent.toml", "expectations absent.toml: No such file"),
    ],
)
def test_a_mistake_ends_the_run_with_2(suite: pytest.Pytester, option: str, message: str) -> None:
    result = suite.runpytest_inprocess(option)

    assert result.ret == 2
    assert result.parseoutcomes().get("passed", 0) == 0
    assert message in result.stderr.str() + result.stdout.str()


def test_an_unknown_tier_is_a_usage_error_of_pytest(suite: pytest.Pytester) -> None:
    assert suite.runpytest_inprocess("--tier=huge").ret == pytest.ExitCode.USAGE_ERROR


def test_expectations_waive_and_grow_stale(suite: pytest.Pytester) -> None:
    (suite.path / "expected.toml").write_text('[[expect]]\ncase = "ddim"\nreason = "known drift"', encoding="utf-8")
    options = ("--expectations=expected.toml", "--case=ddim")

    waived, stale = suite.runpytest_inprocess(*options, DRIFTED), suite.runpytest_inprocess(*options)

    assert (waived.ret, stale.ret) == (0, 1)
    waived.stdout.fnmatch_lines([f"{FEW_CASES[0]}: waived (known drift); divergent: *", "*: 2 waived"])
    stale.stdout.fnmatch_lines(["expectation 'ddim' is no longer needed: all 2 matching cases pass"])
    stale.assert_outcomes(passed=2)


def test_a_report_that_cannot_be_written_ends_the_run_with_2(suite: pytest.Pytester) -> None:
    result = suite.runpytest_inprocess("--conformance-json=absent/report.json")

    assert result.ret == 2
    result.stdout.fnmatch_lines(["*No such file or directory*"])
