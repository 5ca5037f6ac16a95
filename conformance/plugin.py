"""The pytest plugin: options, the parametrised suite, and the report at the end.

It is loaded in every pytest run where the package is installed, so importing it imports neither torch nor the
libraries under test. Results travel in the reports' user properties, so they survive xdist and show up in JUnit files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance.errors import ConformanceError

if TYPE_CHECKING:
    from conformance.expectations import Expectation

PROPERTY = "conformance."
RESULT = ("id", "kind", "verdict", "rho", "max_error", "result_error", "noise_floor", "first_divergence",
          "draws_match", "seconds", "message", "implementation", "version")  # fmt: skip
EXIT_USAGE = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "parity with original paper code")
    group.addoption("--device", default="cpu", help="torch device to replay fixtures on (default: cpu)")
    group.addoption("--dtype", default="float32", help="float32 (with its float64 check), float64, float16 or bfloat16")
    group.addoption("--implementation", default="diffusers_ref",
                    help="diffusers_ref (default), diffusers, file.py:Class or package.module:Class")  # fmt: skip
    group.addoption("--tier", default="default", choices=("default", "full", "hub"), help="which fixtures to replay")
    group.addoption(
        "--conformance-fixtures",
        default=None,
        help="folder, or hub:owner/name@revision (default: those of the package)",
    )
    group.addoption("--expectations", default=None, help="TOML file of known divergences, each with a reason")
    group.addoption("--case", action="append", default=[], dest="conformance_cases", metavar="PATTERN",
                    help="only fixtures that match, such as ddim or 'ddim/*quad*' (repeatable)")  # fmt: skip
    group.addoption("--contract-examples", type=float, default=1.0, metavar="SHARE",
                    help="share of their examples that contracts try: 1 (default), as in `conformance check`"
                    )  # fmt: skip
    group.addoption("--conformance-json", default=None, metavar="FILE", help="write the results as JSON")
    group.addoption("--conformance-table", action="store_true", help="print every case in the summary")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("device") != "cpu" or config.getoption("dtype") != "float32":
        from conformance.replay import Settings

        try:
            Settings.of(config.getoption("device"), config.getoption("dtype"))
        except ConformanceError as error:
            pytest.exit(str(error), returncode=EXIT_USAGE)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Summary(config), "conformance-summary")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fixture_id" not in metafunc.fixturenames:
        return
    from conformance.library import open_library

    config = metafunc.config
    try:
        library = open_library(config.getoption("conformance_fixtures"))
        ids = library.select(config.getoption("conformance_cases"), config.getoption("tier"))
    except ConformanceError as error:
        pytest.exit(str(error), returncode=EXIT_USAGE)
    metafunc.parametrize("fixture_id", ids)


@pytest.fixture(scope="session")
def replayer(pytestconfig: pytest.Config) -> Callable[[str], dict[str, object]]:
    """Replays a fixture by id on the chosen implementation, device and dtype."""
    from conformance.implementations import open_implementation
    from conformance.library import open_library
    from conformance.replay import Settings, replay

    try:
        implementation = open_implementation(pytestconfig.getoption("implementation"))
        settings = Settings.of(pytestconfig.getoption("device"), pytestconfig.getoption("dtype"))
        library = open_library(pytestconfig.getoption("conformance_fixtures"))
        expectations = applicable_expectations(pytestconfig, implementation.version)
    except ConformanceError as error:
        pytest.exit(str(error), returncode=EXIT_USAGE)

    def run(fixture_id: str) -> dict[str, object]:
        try:
            result = replay(library.get(fixture_id), implementation, settings).to_dict()
        except ConformanceError as error:
            pytest.fail(str(error), pytrace=False)
        expected = next((e for e in expectations if e.matches(fixture_id)), None)
        if expected is not None and result["verdict"] not in ("bitwise", "equivalent"):
            result["message"] = f"waived ({expected.reason}); {result['verdict']}: {result['message']}"
            result["verdict"] = "waived"
        return {**result, "implementation": implementation.name, "version": implementation.version}

    return run


@pytest.fixture
def replay_fixture(
    replayer: Callable[[str], dict[str, object]], record_property: Callable[[str, object], None]
) -> Callable[[str], dict[str, object]]:
    """`replayer`, with the result kept in the test's report."""

    def run(fixture_id: str) -> dict[str, object]:
        result = replayer(fixture_id)
        for name, value in result.items():
            if value is not None:  # what is not known has no property
                record_property(PROPERTY + name, json.dumps(value) if isinstance(value, (dict, bool)) else value)
        return result

    return run


def applicable_expectations(config: pytest.Config, version: str) -> list[Expectation]:
    """Entries of the expectations file whose conditions hold for this run."""
    from conformance.expectations import applicable, read_expectations

    if config.getoption("expectations") is None:
        return []
    run = config.getoption("implementation"), version, config.getoption("device")
    return applicable(read_expectations(Path(config.getoption("expectations"))), *run)


class Summary:
    """Collects results in the controlling process; prints them, writes the JSON file, and checks the expectations."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._results: list[dict[str, Any]] = []
        self._complaints: list[str] = []
        self._broken = False  # a case could not be judged: a damaged fixture, or a fault of this package

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found: dict[str, Any] = {
            name.removeprefix(PROPERTY): value
            for name, value in report.user_properties
            if str(name).startswith(PROPERTY)
        }
        if report.failed and not found and "[" in report.nodeid and "test_fixture" in report.nodeid:
            self._complaints.append(f"{report.nodeid}: {report.longreprtext}")
            self._broken = True
        if report.when == "call" and found:
            for name in ("first_divergence", "draws_match"):
                found[name] = json.loads(found.get(name, "null"))
            self._results.append({name: found.get(name) for name in RESULT})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._broken:
            session.exitstatus = EXIT_USAGE
        if not self._results:
            return
        from conformance.expectations import stale
        from conformance.report.json_report import write_json_report

        self._results.sort(key=lambda result: result["id"])
        try:
            expectations = applicable_expectations(self._config, self._results[0]["version"])
            self._complaints += stale(expectations, [(r["id"], r["verdict"]) for r in self._results])
            if path := self._config.getoption("conformance_json"):
                write_json_report(
                    Path(path), self._results, self._config.getoption("device"), self._config.getoption("dtype")
                )
        except (ConformanceError, OSError) as error:
            self._complaints.append(str(error))
            session.exitstatus = EXIT_USAGE
            return
        if self._complaints and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self._results and not self._complaints:
            return
        from conformance.report.console import print_summary
        from conformance.report.github import report_run

        terminalreporter.ensure_newline()
        print_summary(self._results, self._complaints, every_case=self._config.getoption("conformance_table"))
        report_run(self._results, self._complaints)
