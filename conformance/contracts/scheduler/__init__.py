"""Contracts of schedulers. Each module ends with its own; here they are all, in the order of reports."""

from conformance.contracts.contract import Contract
from conformance.contracts.scheduler import grid, lifecycle, randomness, starts, tensors

CONTRACTS: tuple[Contract, ...] = (
    *lifecycle.CONTRACTS,
    *grid.CONTRACTS,
    *starts.CONTRACTS,
    *tensors.CONTRACTS,
    *randomness.CONTRACTS,
)
