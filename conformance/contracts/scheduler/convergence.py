"""Order of convergence: data for which the probability-flow ODE has a solution in closed form."""

from __future__ import annotations

import math

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import DataPrediction, SchedulerUnderTest, generators
from conformance.contracts.scheduler.probes import EPS, OPERATIONS, STEPS, choice, measured_steps
from conformance.contracts.scheduler.randomness import is_stochastic
from conformance.contracts.scheduler.support import require_runs

FEW, MANY = 40, 160
"""Steps; four times as many divide the error of a method of order p by 4^p."""

SLACK = 0.6
"""Share of that factor that is asked for: with FEW steps the leading term does not stand alone yet, most of all where
the levels are spread unevenly."""

MEAN = (0.3, -0.2, 0.1, 0.0)
STD = 0.15
START = (1.0, -1.5, 0.4, 2.0)
"""Data N(mean, std²) in each of four pixels, and the noise that a run starts from."""


def error_falls_with_the_steps(subject: SchedulerUnderTest, given: Given) -> None:
    """For Gaussian data, whose probability-flow ODE is solved in closed form, four times as many steps divide the error
    of the result by four at least (first order), by sixteen for methods of order two or more, but for the part that the
    size of the last level explains, which no number of steps takes away."""
    require_runs(subject)
    if is_stochastic(subject, {}, {}):
        raise NotApplicable(f"{subject.name} adds noise in its steps")
    steps = measured_steps(subject, STEPS, {})
    if steps[-1].start[1] > steps[0].start[1]:
        raise NotApplicable(f"{subject.name} runs from data to noise")
    (coarse, _), (fine, explained) = _error(subject, FEW), _error(subject, MANY)
    order = _order(subject, len(steps))
    wanted = coarse / (4**order * SLACK) + explained + OPERATIONS * EPS
    given.note("steps", (FEW, MANY))
    if not fine <= wanted:
        raise Violation(
            f"the error falls from {coarse:.3g} with {FEW} steps to {fine:.3g} with {MANY}; a method of order {order} "
            f"comes to {wanted:.3g}",
            max_abs=fine,
        )


def _order(subject: SchedulerUnderTest, evaluations: int) -> int:
    """2 for methods that look at two evaluations or more in a step, by option or by count; else 1."""
    by_option = choice(subject, {}).get("solver_order", 1)
    return 2 if by_option >= 2 or evaluations >= 2 * STEPS - 1 else 1


def _error(subject: SchedulerUnderTest, steps: int) -> tuple[float, float]:
    """The largest error of a run, and the part that remains if everything before the last step is exact."""
    mean = torch.tensor(MEAN, dtype=torch.float64).reshape(1, 1, 2, 2)
    start = torch.tensor(START, dtype=torch.float64).reshape(1, 1, 2, 2)
    scheduler = subject.prepared(steps)
    first, last = (subject.levels(scheduler, scheduler.timesteps[k]) for k in (0, -1))

    def exact(a: float, b: float) -> torch.Tensor:
        return a * mean + math.hypot(a * STD, b) * start

    network = _gaussian(mean)
    run = subject.run(scheduler, exact(*first), network, generator=generators(0))
    explained = network(exact(*last), *last) - exact(1.0, 0.0)
    return float((run.final - exact(1.0, 0.0)).abs().max()), float(explained.abs().max())


def _gaussian(mean: torch.Tensor) -> DataPrediction:
    """E[x_0 | x] for data N(mean, STD²)."""

    def predict(x: torch.Tensor, a: float, b: float) -> torch.Tensor:
        return (a * STD**2 * x + b * b * mean) / (a * a * STD**2 + b * b)

    return predict


CONTRACTS = (Contract(error_falls_with_the_steps),)
