"""A classifier's gradient in a step: classifier guidance (arXiv 2105.05233)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close, require_finite, require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import LEARNED, SchedulerUnderTest, config_of, generators
from conformance.contracts.scheduler.predictions import SHAPE, far_reaching, limited
from conformance.contracts.scheduler.probes import EPS, OPERATIONS, STEPS, prepared
from conformance.contracts.scheduler.support import REFUSALS, noise, require_runs
from conformance.contracts.scheduler.variance import added_noise

GUIDED = ("prediction_type", "variance_type", "coefficients", "clip_sample", "thresholding")
"""Options that a guided step depends on."""

NO_SIGNAL = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
"""Options with which the first level has no signal."""

LIMITS = ("clip_sample", "thresholding")
"""Options that limit x_0."""

ETA = 0.7


def gradients_move_the_mean_or_epsilon(subject: SchedulerUnderTest, given: Given) -> None:
    """A classifier's gradient moves the mean of an ancestral step by the step's variance times the gradient (arXiv
    2105.05233, Algorithm 1), and leaves the reported x_0 as it is.

    In DDIM steps, which have an eta, it moves epsilon by -b times the gradient, and x_0 with it, after x_0 has been
    limited (Algorithm 2): then x_0 moves by b²/a times the gradient. Where a is 0, the step refuses.
    """
    _require_gradients(subject)
    hold = _epsilon_moves if subject.takes("step", "eta") else _mean_moves
    for config in _configs(subject):
        given.note("options", config)
        scheduler = prepared(subject, STEPS, config)
        if scheduler is not None:
            hold(subject, scheduler, config)


def unusable_gradients_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """step refuses a classifier's gradient that is no tensor or has another shape than the sample, also one that could
    be broadcast, with ValueError or TypeError; and rounds one of another dtype to that of the arithmetic."""
    _require_gradients(subject)
    scheduler, x, gradient = subject.prepared(STEPS), noise(1, SHAPE), noise(2, SHAPE, torch.float64)
    t = scheduler.timesteps[0]
    output = subject.some_output(scheduler, x, t)
    for what, value in {"a number": 0.5, "a batch of one": gradient[:1], "one channel": gradient[:, :1]}.items():
        try:
            copy.deepcopy(scheduler).step(output, t, x, generator=generators(3), classifier_gradient=value)
        except (ValueError, TypeError):
            continue
        raise Violation(f"a classifier's gradient that is {what} is accepted")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        stepped = _stepper(scheduler, 0, x.to(dtype))
        found, wanted = (stepped(output.to(dtype), g) for g in (gradient.to(dtype).double(), gradient.to(dtype)))
        require_same(found[0], wanted[0], f"the {dtype} sample with a float64 gradient")


def _require_gradients(subject: SchedulerUnderTest) -> None:
    require_runs(subject)
    if not subject.takes("step", "classifier_gradient"):
        raise NotApplicable(f"step of {subject.name} takes no classifier_gradient")


def _configs(subject: SchedulerUnderTest) -> Iterator[dict[str, Any]]:
    """The base, every other value of every option that matters, and every prediction type with every precision."""
    offered = {name: values[1:] for name, values in subject.options.items()}
    yield {}
    yield from ({name: value} for name in GUIDED for value in offered.get(name, ()))
    for coefficients in offered.get("coefficients", ()):
        for name in ("prediction_type", "variance_type"):
            yield from ({name: value, "coefficients": coefficients} for value in offered.get(name, ()))
    if all(value in offered.get(name, ()) for name, value in NO_SIGNAL.items()):
        yield NO_SIGNAL


def _stepper(scheduler: Any, k: int, x: torch.Tensor, **options: Any) -> Callable[..., tuple[torch.Tensor, ...]]:
    """step(output, gradient) at entry k, on a copy, with the same draw each time: what a tuple of it holds."""
    t = scheduler.timesteps[k]

    def step(output: torch.Tensor, gradient: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        guidance = {} if gradient is None else {"classifier_gradient": gradient}
        draws = {"generator": generators(k)}
        result: tuple[torch.Tensor, ...] = copy.deepcopy(scheduler).step(
            output, t, x, return_dict=False, **draws, **options, **guidance
        )
        return result

    return step


def _mean_moves(subject: SchedulerUnderTest, scheduler: Any, config: dict[str, Any]) -> None:
    x, x0, gradient = noise(1, SHAPE, torch.float64), far_reaching(), noise(2, SHAPE, torch.float64)
    learned = config_of(scheduler).get("variance_type") in LEARNED
    levels = [subject.levels(scheduler, t) for t in scheduler.timesteps]
    for k in (0, 1, STEPS - 2, *([STEPS - 1] if learned else [])):
        output = subject.output_for(scheduler, x, x0, scheduler.timesteps[k])
        half = -0.4 - 2 * (config_of(scheduler).get("variance_type") == "learned")
        if learned:
            output = torch.cat([output[:, : x.shape[1]], torch.full_like(x, half)], 1)
        step = _stepper(scheduler, k, x)
        (guided, guided_x0), (free, free_x0) = step(output, gradient), step(output)
        if k == STEPS - 1:  # The end adds no noise, and yet moves by what the network says of its variance.
            variance = float(torch.tensor(half).exp())
            if config_of(scheduler)["variance_type"] != "learned":
                continue
        else:
            variance = added_noise(subject, scheduler, k, levels[k], half if learned else None) ** 2
        require_same(guided_x0, free_x0, "the reported x_0 with a gradient", step=k)
        require_close(guided - free, variance * gradient, "the move of the mean", bound=OPERATIONS * EPS, step=k)


def _epsilon_moves(subject: SchedulerUnderTest, scheduler: Any, config: dict[str, Any]) -> None:
    x, x0, gradient = noise(1, SHAPE, torch.float64), far_reaching(), noise(2, SHAPE, torch.float64)
    free = subject.prepared(STEPS, **config | {name: False for name in LIMITS if name in subject.options})
    believed = limited(x0, dict(config_of(scheduler)))
    for k in (0, 1, STEPS - 2):
        t = scheduler.timesteps[k]
        a, b = subject.levels(scheduler, t)
        step = _stepper(scheduler, k, x, eta=ETA)
        output = subject.output_for(scheduler, x, x0, t)
        if a == 0:
            try:
                require_finite(step(output, gradient)[0], "the sample guided where there is no signal", k)
            except REFUSALS:
                continue
        moved = believed + b * b / a * gradient
        wanted = _stepper(free, k, x, eta=ETA)(subject.output_for(free, x, moved, t))
        for found, right, what in zip(step(output, gradient), wanted, ("sample", "reported x_0"), strict=True):
            require_close(found, right, f"the guided {what}", bound=OPERATIONS * EPS / (a * b * b), step=k)


CONTRACTS = (Contract(gradients_move_the_mean_or_epsilon), Contract(unusable_gradients_are_refused))
