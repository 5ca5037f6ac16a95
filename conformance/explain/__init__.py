"""Explaining a divergence: where it begins, in which module, and which known cause removes it when it is tried."""

from __future__ import annotations

from conformance.explain.search import Explanation, explain

__all__ = ["Explanation", "explain"]
