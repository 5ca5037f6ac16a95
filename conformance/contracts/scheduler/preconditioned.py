"""Preconditioned networks, EDM (arXiv 2206.00364), table 1: what is made of a network of noise levels."""

from __future__ import annotations

import math
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from conformance.contracts.scheduler.probes import EPS, every_grid, every_option
from conformance.contracts.scheduler.support import noise, require_runs, why_not

ROUNDINGS = 8 * EPS
"""Of a handful of float32 operations."""

BETA_D, BETA_MIN = 19.9, 0.1
"""Of the column VP."""

STEPS_OF_CHAIN, COSINE_OFFSET = 1000, 0.008
"""Of the column iDDPM."""

SIGNS = {None: 1.0, "epsilon": 1.0, "v_prediction": -1.0}
"""Of c_out, by the prediction type that published classes give the paper's networks, and those of the other sign."""


def preconditioning_is_the_published(subject: SchedulerUnderTest, given: Given) -> None:
    """c_skip, c_out, c_in and c_noise are those of table 1 at every level: of the column that the option
    `preconditioning` names, else of EDM's, with the other sign of c_out for velocities. `timesteps` are c_noise."""
    _require_preconditioned(subject)
    for grid in every_grid(subject, given):
        x, output = noise(1, dtype=torch.float64), noise(2, dtype=torch.float64)
        for k in (0, len(grid.levels) // 2, len(grid.levels) - 1):
            a, b = grid.levels[k]
            sigma = torch.tensor(b / a, dtype=torch.float64)
            c_skip, c_out, c_in = _scalings(grid.scheduler.config, b / a)
            found = grid.scheduler.precondition_outputs(x, output, sigma)
            bound = ROUNDINGS * max(1.0, abs(c_skip), abs(c_out)) / float(found.abs().max())
            require_close(found, c_skip * x + c_out * output, f"D at σ={b / a:g}", bound=bound, step=k)
            found = grid.scheduler.precondition_inputs(x, sigma)
            require_close(found, c_in * x, f"the network's input at σ={b / a:g}", bound=ROUNDINGS, step=k)
            c_noise, slope = _label(grid.scheduler.config, b / a)
            told = {
                "precondition_noise": grid.scheduler.precondition_noise(sigma),
                "timesteps": grid.scheduler.timesteps[k],
            }
            for name, label in told.items():
                if not abs(float(label) - c_noise) <= ROUNDINGS * (slope + abs(c_noise)):
                    raise Violation(f"{name}: c_noise is {float(label):.9g} instead of {c_noise:.9g}", step=k)


def training_list_is_that_of_a_run(subject: SchedulerUnderTest, given: Given) -> None:
    """Before `set_timesteps`, `timesteps` lists levels of training, one more than `num_train_timesteps` or as many:
    those of a run of so many steps, with its first noise, at which noise can be added; so it is with each option."""
    _require_preconditioned(subject)
    if not hasattr(subject.make(), "timesteps"):
        raise NotApplicable(f"{subject.name} has no timesteps before set_timesteps")
    for config in every_option(subject):
        given.note("options", config)
        if why_not(subject, config):
            continue
        scheduler, run = subject.make(**config), subject.make(**config)
        count, length = len(scheduler.timesteps), scheduler.config["num_train_timesteps"]
        if count - length not in (0, 1) or (hasattr(scheduler, "__len__") and len(scheduler) != length):
            raise Violation(f"num_train_timesteps is {length}, and there are {count} timesteps")
        run.set_timesteps(count)
        require_close(scheduler.timesteps, run.timesteps, "the list before set_timesteps", bound=ROUNDINGS)
        require_close(
            torch.tensor([float(scheduler.init_noise_sigma)]),
            torch.tensor([float(run.init_noise_sigma)]),
            "init_noise_sigma before set_timesteps",
            bound=ROUNDINGS,
        )
        for k in (0, count // 2, count - 1):
            found, wanted = (
                torch.tensor(subject.levels(each, each.timesteps[k]), dtype=torch.float64) for each in (scheduler, run)
            )
            require_close(found, wanted, "the level before set_timesteps", bound=ROUNDINGS, step=k)


def _require_preconditioned(subject: SchedulerUnderTest) -> None:
    require_runs(subject)
    scheduler = subject.make()
    if not hasattr(scheduler, "precondition_outputs") or "sigma_data" not in scheduler.config:
        raise NotApplicable(f"{subject.name} has no preconditioned network")


def _scalings(config: Any, sigma: float) -> tuple[float, float, float]:
    """c_skip, c_out and c_in at a level."""
    kind = config.get("preconditioning", "edm")
    if kind == "edm":
        prediction = config.get("prediction_type")
        if prediction not in SIGNS:
            raise Violation(f"prediction_type={prediction!r} is accepted, and is no output of a preconditioned network")
        data = config["sigma_data"]
        total = math.hypot(data, sigma)
        return data**2 / total**2, SIGNS[prediction] * sigma * data / total, 1 / total
    if kind == "ve":
        return 1.0, sigma, 1.0
    return 1.0, -sigma, 1 / math.hypot(1, sigma)


def _label(config: Any, sigma: float) -> tuple[float, float]:
    """c_noise at a level, and how much it moves if the logarithm in it moves by 1."""
    kind = config.get("preconditioning", "edm")
    if kind == "edm":
        return math.log(sigma) / 4, 1 / 4
    if kind == "ve":
        return math.log(sigma / 2), 1.0
    if kind == "iddpm":  # the number of the nearest level of a chain, which a rounding moves by one at most
        widest = math.pi / 2 / (1 + COSINE_OFFSET)
        j = STEPS_OF_CHAIN * math.asin(math.sin(widest) / math.hypot(1, sigma)) / widest
        return STEPS_OF_CHAIN - 1 - j, 1 / ROUNDINGS
    root = math.sqrt(BETA_MIN**2 + 2 * BETA_D * math.log1p(sigma**2))
    return (STEPS_OF_CHAIN - 1) * (root - BETA_MIN) / BETA_D, (STEPS_OF_CHAIN - 1) / root


CONTRACTS = (
    Contract(preconditioning_is_the_published),
    Contract(training_list_is_that_of_a_run),
)
