"""Expectations: known divergences, each with a reason, that never outlive their cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.errors import ConformanceError
from conformance.expectations import Expectation, read_expectations, stale


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "expected.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_entries_are_read_with_their_conditions(tmp_path: Path) -> None:
    path = written(tmp_path, """
        [[expect]]
        case = "ddim/ddim-quad-*"
        reason = "the previous step is t - T // n"
        implementation = "diffusers"
        version = ">=0.30,<1"
        device = "cpu"

        [[expect]]
        case = "pndm"
        reason = "integer midpoints"
    """)  # fmt: skip

    assert read_expectations(path) == [
        Expectation("ddim/ddim-quad-*", "the previous step is t - T // n", "diffusers", ">=0.30,<1", "cpu"),
        Expectation("pndm", "integer midpoints"),
    ]


def test_an_empty_file_expects_nothing(tmp_path: Path) -> None:
    assert read_expectations(written(tmp_path, "")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[expect]]\ncase = "a"', "entry 1: 'reason' is mandatory"),
        ('[[expect]]\ncase = "a"\nreason = "  "', "entry 1: 'reason' is mandatory"),
        ('[[expect]]\nreason = "r"', "entry 1: 'case' is mandatory"),
        ('[[expect]]\ncase = ""\nreason = "r"', "entry 1: 'case' is mandatory"),
        ('[[expect]]\ncase = "a"\nreason = "r"\n[[expect]]\ncase = "b"', "entry 2: 'reason' is mandatory"),
        ('[[expect]]\ncase = "a"\nreason = "r"\ntolerance = 8', "unknown key 'tolerance'; allowed: case, reason"),
        ('[[expect]]\ncase = "a"\nreason = 3', "entry 1: 'reason' must be a string, found int"),
        ('[[expect]]\ncase = "a"\nreason = "r"\nversion = 1', "entry 1: 'version' must be a string, found int"),
        ('[[expect]]\ncase = "a"\nreason = "r"\nversion = "new"', "entry 1: version: .*new"),
        ('expect = ["a"]', "entry 1: not a table"),
        ('expect = "a"', r"only \[\[expect\]\] tables are allowed, found expect"),
        ('[expected]\ncase = "a"', r"only \[\[expect\]\] tables are allowed, found expected"),
        ("[[expect", "not TOML"),
        (b'reason = "\xff"', "not TOML"),
    ],
)
def test_a_file_that_deviates_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        read_expectations(written(tmp_path, text))

    assert f"expectations {tmp_path}" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConformanceError, match=r"expectations .*absent\.toml: No such file"):
        read_expectations(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("conditions", "applies"),
    [
        ({}, True),
        ({"implementation": "diffusers"}, True),
        ({"implementation": "diffusers_ref"}, False),
        ({"device": "cuda"}, True),
        ({"device": "cpu"}, False),
        ({"version": ">=0.30,<1"}, True),
        ({"version": "==0.42.*"}, True),
        ({"version": "<0.42"}, False),
        ({"implementation": "diffusers", "device": "cuda", "version": "==0.42.1"}, True),
        ({"implementation": "diffusers", "device": "cpu", "version": "==0.42.1"}, False),
    ],
)
def test_conditions_are_all_needed(conditions: dict[str, str], applies: bool) -> None:
    assert Expectation("a", "r", **conditions).applies("diffusers", "0.42.1", "cuda:1") is applies


def test_versions_that_are_no_versions_and_pre_releases() -> None:
    entry = Expectation("a", "r", version=">=0.40")

    assert entry.applies("diffusers", "0.43.0.dev0", "cpu")
    assert not entry.applies("port.py:Port", "local", "cpu")


def test_cases_match_by_pattern_or_system() -> None:
    assert Expectation("ddim/*-eta-0", "r").matches("ddim/ddim-uniform-2-eta-0")
    assert not Expectation("ddim/*-eta-0", "r").matches("ddim/ddim-uniform-2-eta-0.3")
    assert Expectation("ddim", "r").matches("ddim/network-tiny")
    assert not Expectation("ddim", "r").matches("ddim2/network-tiny")


def test_an_entry_that_matched_nothing_or_is_not_needed_is_stale() -> None:
    verdicts = [("ddim/a", "bitwise"), ("ddim/b", "waived"), ("pndm/a", "equivalent"), ("pndm/b", "bitwise")]
    entries = [Expectation(case, "r") for case in ("ddim", "ddim/b", "pndm", "ddpm/*")]

    assert stale(entries, verdicts) == [
        "expectation 'pndm' is no longer needed: all 2 matching cases pass",
        "expectation 'ddpm/*' matches no case of this run",
    ]
