"""The JSON report of a run (schema 1)."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conformance.files import write_atomically

SCHEMA = 1
RUN_KEYS = ("implementation", "version")


def write_json_report(path: Path, results: list[dict[str, Any]], device: str, dtype: str) -> None:
    """Write the results of a run to `path`, atomically.

    Args:
        results: one dictionary per case, as `CaseResult.to_dict` gives it, plus `implementation` and `version`.
    """
    report = {
        "schema": SCHEMA,
        "environment": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "numpy": version("numpy"),
            "machine": platform.machine(),
        },
        "implementation": {"name": results[0]["implementation"], "version": results[0]["version"]},
        "device": device,
        "dtype": dtype,
        "cases": [{key: value for key, value in result.items() if key not in RUN_KEYS} for result in results],
    }
    write_atomically(path, json.dumps(report, indent=1, allow_nan=False) + "\n")
