"""Contracts of pipelines, by what they look at."""

from __future__ import annotations

from conformance.contracts.pipeline import callbacks, components, errors, results, sampling

CONTRACTS = (
    *results.CONTRACTS,
    *sampling.CONTRACTS,
    *callbacks.CONTRACTS,
    *components.CONTRACTS,
    *errors.CONTRACTS,
)
