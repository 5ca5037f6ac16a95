"""The harness: replays recordings of original paper code on any implementation, and holds contracts against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from conformance.contracts.checks import check_model, check_pipeline, check_scheduler, parametrize_with_checks
    from conformance.contracts.result import CheckResult, Status

_EXPORTS = {
    "check_model": "conformance.contracts.checks",
    "check_pipeline": "conformance.contracts.checks",
    "check_scheduler": "conformance.contracts.checks",
    "parametrize_with_checks": "conformance.contracts.checks",
    "CheckResult": "conformance.contracts.result",
    "Status": "conformance.contracts.result",
}

__all__ = ["CheckResult", "Status", "__version__", "check_model", "check_pipeline", "check_scheduler",
           "parametrize_with_checks"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Exports are imported when they are asked for, so that the command line stays free of torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
