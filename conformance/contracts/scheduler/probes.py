"""What the analytic checks measure: the configurations a subject offers, and what a step is made of.

With a network that knows x_0, every published step is linear: x_{k+1} = signal·x_0 + kept·noise + fresh·z, where noise
is the one in x_k and z the draw of the step. `measure_steps` finds the three numbers of every step by least squares, so
that they can be compared with the levels of the scheduler's own forward process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from conformance.contracts.contract import Given
from conformance.contracts.measure import require_finite
from conformance.contracts.result import NotApplicable
from conformance.contracts.scheduler.driver import SchedulerUnderTest, Trajectory, always, generators
from conformance.contracts.scheduler.options import contradicts
from conformance.contracts.scheduler.support import why_not

EPS = torch.finfo(torch.float32).eps
"""Tables may be float32 whatever the sample is, so no check asks for more."""

OPERATIONS = 64
"""Rounding errors that one step may add up: a few in each table entry, and multistep weights, which sum to 7."""

STEPS = 10
"""Steps of the runs that are measured."""

WIDE = (1, 1, 16, 64)
"""Enough elements for least squares, and for a standard deviation to 11 % where a draw cannot be repeated."""

STANDARD_ERRORS = 5
"""How far a correct sampler may be from its expectation: by chance once in two million comparisons."""

LEAST_SIGNAL = 1e-3
"""Share of the noise that the signal must have in combinations of options, or be 0: of anything between, float32 tables
tell little of x_0, and multistep methods carry the error on."""

MEMORY = 4
"""How many evaluations published multistep methods combine."""


def every_option(subject: SchedulerUnderTest, *, skip: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The base configuration, then every other value of every option, one at a time, as options to `make`."""
    yield {}
    for name, values in subject.options.items():
        if name not in skip:
            yield from ({name: value} for value in values[1:])


def prepared(subject: SchedulerUnderTest, steps: int, config: dict[str, Any]) -> Any | None:
    """The scheduler after `set_timesteps`, or None where the class does not offer the configuration or the number of
    steps, or where the configuration means nothing. The base configuration is always offered: its errors are raised.
    """
    if contradicts({**subject.base, **config}) or meaningless(subject, config):
        return None
    if not config:
        return subject.prepared(steps)
    return None if why_not(subject, config) else subject.prepared(steps, **config)


@dataclass(frozen=True)
class Grid:
    """A scheduler after `set_timesteps`, which nobody moves on, and the level (a, b) of every entry of `timesteps`."""

    config: dict[str, Any]
    scheduler: Any
    levels: list[tuple[float, float]]

    @property
    def towards_data(self) -> bool:
        """Whether noise gives way to signal along the run."""
        (a_first, b_first), (a_last, b_last) = self.levels[0], self.levels[-1]
        return b_first * a_last >= b_last * a_first


def every_grid(subject: SchedulerUnderTest, given: Given) -> Iterator[Grid]:
    """The grids of STEPS steps of every option that runs, noted as the report's `options`."""
    for config in every_option(subject):
        given.note("options", config)
        key = f"grid {sorted(config.items())}"
        if key not in subject.measured:
            scheduler = prepared(subject, STEPS, config)
            levels = [] if scheduler is None else [subject.levels(scheduler, t) for t in scheduler.timesteps]
            subject.measured[key] = Grid(config, scheduler, levels)
        if subject.measured[key].scheduler is not None:
            yield subject.measured[key]


def choice(subject: SchedulerUnderTest, config: dict[str, Any]) -> dict[str, Any]:
    """All options that are tried, with the values that a configuration gives them."""
    return {name: values[0] for name, values in subject.options.items()} | subject.base | config


def meaningless(subject: SchedulerUnderTest, config: dict[str, Any]) -> bool:
    """Whether a prediction type is combined with a forward process that it is not defined for: velocities of
    variance-preserving processes and of flows are different things."""
    options = choice(subject, config)
    kind, flow = options.get("prediction_type"), options.get("use_flow_sigmas")
    if flow is None:
        return False
    return (kind == "flow_prediction" and not flow) or (kind == "v_prediction" and flow)


@dataclass(frozen=True)
class Step:
    """What the sample after one evaluation is made of, and the level where it should be.

    Attributes:
        index: of the evaluation.
        signal, kept, fresh: the factors of x_0, of the noise before the step, and of the step's own draw. Where the
            draw cannot be repeated, `fresh` is the standard deviation of what the other two do not explain.
        noise: standard deviation of all noise in the sample.
        start: (a, b) at the evaluation's own timestep.
        end: (a, b) at the next entry of `timesteps`; None after the last.
        exact: whether the three factors explain the sample but for rounding.
        allowed: the error that `signal`, `kept` and `fresh` may have: rounding, and that of the estimate.
        allowed_noise: the error that `noise` may have.
    """

    index: int
    signal: float
    kept: float
    fresh: float
    noise: float
    start: tuple[float, float]
    end: tuple[float, float] | None
    exact: bool
    allowed: float
    allowed_noise: float


def measured_steps(subject: SchedulerUnderTest, steps: int, config: dict[str, Any]) -> list[Step]:
    """`measure_steps` of a fresh scheduler, once per subject; empty where `prepared` gives none."""
    key = repr((steps, sorted(config.items())))
    if key not in subject.measured:
        try:
            scheduler = prepared(subject, steps, config)
            found = [] if scheduler is None else measure_steps(subject, scheduler)
            lost = any(0 < step.start[0] < LEAST_SIGNAL * step.start[1] for step in found)
            subject.measured[key] = [] if config and lost else found
        except Exception:  # Combinations that do not run are the finding of another contract.
            if not config:
                raise
            subject.measured[key] = []
    return subject.measured[key]


def measure_steps(
    subject: SchedulerUnderTest, scheduler: Any, *, step_options: dict[str, Any] | None = None, seed: int = 0
) -> list[Step]:
    """Run with a network that knows x_0, from x_T on the first level, and measure every step.

    Raises NotApplicable if an evaluation is at a level without noise, where a network has nothing to predict, and
    Violation if a sample is not finite.
    """
    x0, noise = independent_patterns(seed)
    levels = [subject.levels(scheduler, t) for t in scheduler.timesteps]
    if not all(b > 0 for _, b in levels):
        raise NotApplicable("the network is evaluated at a level without noise")
    a, b = levels[0]
    generator = generators(seed + 1)
    states = [generator.get_state()]

    def look(index: int, sample: torch.Tensor) -> None:
        require_finite(sample, "the sample", index)
        states.append(generator.get_state())

    run = subject.run(
        scheduler, a * x0 + b * noise, always(x0), generator=generator, step_options=step_options, after=look
    )
    return [
        _measure(k, run, x0, levels, states[k] if not torch.equal(states[k], states[k + 1]) else None)
        for k in range(len(run.samples))
    ]


def independent_patterns(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x_0 in ±0.8 and noise of variance 1, uncorrelated."""
    source = torch.Generator().manual_seed(seed)
    x0 = torch.rand(WIDE, generator=source, dtype=torch.float64) * 1.6 - 0.8
    x0 = x0 - x0.mean()
    noise = torch.randn(WIDE, generator=source, dtype=torch.float64)
    noise = noise - (noise * x0).sum() / (x0 * x0).sum() * x0
    return x0, noise / noise.square().mean().sqrt()


def _measure(
    k: int, run: Trajectory, x0: torch.Tensor, levels: list[tuple[float, float]], state: torch.Tensor | None
) -> Step:
    start, end = levels[k], levels[k + 1] if k + 1 < len(levels) else None
    allowed = rounding(levels, k)
    sample = run.samples[k].double().reshape(-1)
    noise = (run.inputs[k] - start[0] * x0) / start[1]
    columns = [x0.reshape(-1), noise.reshape(-1)]
    if state is not None:
        for dtype in (torch.float64, torch.float32):
            draw = torch.randn(x0.shape, generator=_at(state), dtype=dtype).double().reshape(-1)
            (signal, kept, fresh), rest = _fit([*columns, draw], sample)
            if rest <= allowed:
                return Step(k, signal, kept, fresh, math.hypot(kept, fresh), start, end, True, allowed, allowed)
    (signal, kept), rest = _fit(columns, sample)
    if rest <= allowed:
        return Step(k, signal, kept, 0.0, abs(kept), start, end, True, allowed, allowed)
    count = sample.numel()
    total = float((sample - signal * columns[0]).square().mean().sqrt())
    guess = allowed + STANDARD_ERRORS * total / math.sqrt(count * float(x0.square().mean()))
    guess_noise = allowed + STANDARD_ERRORS * total / math.sqrt(2 * count)
    return Step(k, signal, kept, rest, total, start, end, False, guess, guess_noise)


def rounding(levels: Sequence[tuple[float, float]], k: int) -> float:
    """The rounding error of the sample after evaluation k, in units of x_0 and noise of size 1.

    x_0 follows from an output by a division by a; the slope of a step of two evaluations from x_0 by a division by b;
    and multistep methods combine what earlier evaluations, at larger levels, left. Infinite where the signal is 0.
    """
    a_end, b_end = levels[k + 1] if k + 1 < len(levels) else (1.0, 0.0)
    amplified = max((a + b) * max(1.0, _ratio(a_end, a)) for a, b in levels[max(0, k - MEMORY + 1) : k + 1])
    b_here, b_base = levels[k][1], levels[max(0, k - 1)][1]
    slope = max(1.0, _ratio(max(b_base, b_end), b_here))
    return OPERATIONS * EPS * max(a_end + b_end, amplified * slope)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.inf


def _at(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def _fit(columns: list[torch.Tensor], wanted: torch.Tensor) -> tuple[list[float], float]:
    """Least squares without an intercept: the factors, and the standard deviation of what they leave."""
    matrix = torch.stack(columns, 1)
    factors = torch.linalg.solve(matrix.T @ matrix, matrix.T @ wanted)  # the columns are nearly orthogonal
    return factors.tolist(), float((wanted - matrix @ factors).square().mean().sqrt())
