"""Contracts of schedulers. Each module ends with its own; here they are all, in the order of reports."""

from conformance.contracts.contract import Contract
from conformance.contracts.scheduler import (
    choices,
    configuration,
    convergence,
    forward,
    grid,
    guidance,
    inputs,
    landing,
    lifecycle,
    multistep,
    predictions,
    randomness,
    results,
    schedules,
    starts,
    tensors,
    variance,
)

CONTRACTS: tuple[Contract, ...] = (
    *lifecycle.CONTRACTS,
    *grid.CONTRACTS,
    *starts.CONTRACTS,
    *tensors.CONTRACTS,
    *randomness.CONTRACTS,
    *results.CONTRACTS,
    *forward.CONTRACTS,
    *schedules.CONTRACTS,
    *landing.CONTRACTS,
    *variance.CONTRACTS,
    *predictions.CONTRACTS,
    *guidance.CONTRACTS,
    *convergence.CONTRACTS,
    *multistep.CONTRACTS,
    *choices.CONTRACTS,
    *configuration.CONTRACTS,
    *inputs.CONTRACTS,
)
