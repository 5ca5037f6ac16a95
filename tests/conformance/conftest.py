"""Fixtures of several test files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy_fixture import FEW_CASES

from conformance.library import open_library


@pytest.fixture
def fixtures(tmp_path: Path) -> Path:
    """A folder with a few of the bundled fixtures."""
    for case in FEW_CASES:
        target = tmp_path / "fixtures" / case
        target.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".json", ".safetensors"):
            shutil.copy(open_library().root / f"{case}{suffix}", target.with_name(target.name + suffix))
    return tmp_path / "fixtures"
