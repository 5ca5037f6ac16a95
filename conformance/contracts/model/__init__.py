"""Contracts of networks, by what they look at."""

from __future__ import annotations

from conformance.contracts.model import evaluation, precision, sensitivity, shapes, storage

CONTRACTS = (
    *evaluation.CONTRACTS,
    *sensitivity.CONTRACTS,
    *precision.CONTRACTS,
    *shapes.CONTRACTS,
    *storage.CONTRACTS,
)
