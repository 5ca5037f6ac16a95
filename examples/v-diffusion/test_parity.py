"""The port computes what the original computed, step by step and bit for bit, and keeps the contracts of its kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conformance import parametrize_with_checks
from conformance.compare import Verdict
from conformance.expectations import read_expectations
from conformance.implementations.user_class import UserImplementation
from conformance.library import open_library
from conformance.replay import Settings, replay

FOLDER = Path(__file__).parent
FIXTURES = open_library(FOLDER / "fixtures")
EXPECTED = read_expectations(FOLDER / "expectations.toml")
PORT = UserImplementation(f"{FOLDER / 'pipeline.py'}:VDiffusionPipeline")


@pytest.mark.parametrize("case", FIXTURES.ids())
def test_the_original_is_reproduced(case: str, request: pytest.FixtureRequest) -> None:
    expect_failure(request, case)
    result = replay(FIXTURES.get(case), PORT, Settings())
    if result.verdict is not Verdict.BITWISE:
        pytest.fail(f"{result.verdict.value}: {result.message}", pytrace=False)


@parametrize_with_checks([make() for make in PORT.subjects().values()])
def test_contracts(check: Callable[[], object], request: pytest.FixtureRequest) -> None:
    expect_failure(request, f"contract/{request.node.callspec.id.replace('-', '/')}")
    check()


def expect_failure(request: pytest.FixtureRequest, case: str) -> None:
    """What expectations.toml names must fail: an entry that is no longer needed is an error, too."""
    for entry in EXPECTED:
        if entry.matches(case):
            request.applymarker(pytest.mark.xfail(reason=entry.reason, strict=True))
