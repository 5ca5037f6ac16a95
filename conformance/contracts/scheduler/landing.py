"""Where steps land: with a network that knows x_0, every sample must lie on the forward process at its timestep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.choices import combinations_of
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from conformance.contracts.scheduler.probes import (
    STEPS,
    Step,
    choice,
    every_option,
    independent_patterns,
    meaningless,
    measure_steps,
    measured_steps,
    rounding,
)
from conformance.contracts.scheduler.randomness import is_stochastic
from conformance.contracts.scheduler.support import REFUSALS, require_runs, why_not

UNEVEN_STEPS = 7
"""A number of steps that does not divide the usual 1000 training timesteps; tried with every spacing."""

OTHER_VARIANCE: dict[str, tuple[Any, ...]] = {
    "variance_type": ("fixed_large", "fixed_large_log", "learned", "learned_range"),
    "algorithm_type": ("sde-dpmsolver", "noise_prediction"),
    "coefficients": ("float32_cumprod",),
}
"""Values with which a step that draws may do so with another variance than the forward process has: on purpose, or
because it integrates the noise instead of x_0, and the noise is then not constant."""


def steps_land_on_their_levels(subject: SchedulerUnderTest, given: Given) -> None:
    """With a network that knows x_0, the sample after every evaluation is a·x_0 + b·noise, with the levels a and b that
    the forward process has at the next entry of `timesteps`; noise that a step keeps and noise that it draws together.

    So a step that ends anywhere but at the next entry of its own list fails, and one with another variance. Noise that
    is inflated on purpose, by the option `s_noise`, counts without that.
    """
    require_runs(subject)
    for config, measured in _runs(subject, given):
        if not measured:
            continue
        wanted = choice(subject, config)
        same_variance = all(wanted.get(name) not in values for name, values in OTHER_VARIANCE.items())
        own = subject.make(**config).config if measured else {}
        inflation = float(own.get("s_noise") or 1.0)
        for step in measured[:-1]:
            draws = not step.exact or step.fresh > step.allowed
            clean = float(own.get("sigma_min") or 0.0) if draws else 0.0
            if step.exact:
                step = replace(step, noise=math.hypot(step.kept, step.fresh / inflation))
            _require_landing(step, same_variance or not draws, clean)


def runs_end_at_the_data(subject: SchedulerUnderTest, given: Given) -> None:
    """With a network that knows x_0, a run ends at x_0, with no more noise than its last level says: none where an
    option promises a clean end, else that of the cleanest training timestep."""
    require_runs(subject)
    inverse = True
    for config, measured in _runs(subject, given):
        if not measured or measured[-1].start[1] > measured[0].start[1]:
            continue
        inverse = False
        if choice(subject, config).get("algorithm_type") in OTHER_VARIANCE["algorithm_type"]:
            continue
        end, wanted = measured[-1], _last_noise(subject, config)
        if not abs(end.noise) <= (wanted * (1 + 1e-3) + end.allowed_noise) * end.signal:
            raise Violation(
                f"the run ends at {end.signal:.6g}·x_0 + {end.noise:.3g}·noise; at most {wanted:.3g} can be left",
                step=end.index,
                max_abs=end.noise,
            )
    if inverse:
        raise NotApplicable(f"{subject.name} runs from data to noise")


def runs_begin_without_signal(subject: SchedulerUnderTest, given: Given) -> None:
    """Where rescale_betas_zero_snr leaves the first level no signal (arXiv 2305.08891), networks that predict x_0 or a
    velocity run from there, and every step lands on its level, whatever the precision of tables; with other predictions
    too, or they are refused."""
    require_runs(subject)
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if any(value not in subject.options.get(name, ()) for name, value in zero.items()):
        raise NotApplicable(f"{subject.name} has no options for a first level without signal")
    names = [name for name in ("prediction_type", "coefficients", "rederive_epsilon") if name in subject.options]
    for values in product(*(subject.options[name] for name in names)):
        config = dict(zip(names, values, strict=True))
        kind = config.get("prediction_type")
        if meaningless(subject, config) or (kind and why_not(subject, {"prediction_type": kind})):
            continue
        given.note("options", {**zero, **config})
        same_variance = all(config.get(name) not in others for name, others in OTHER_VARIANCE.items())
        for clipped in (False, True) if subject.takes("step", "use_clipped_model_output") else (None,):
            options = {} if clipped is None else {"use_clipped_model_output": clipped}
            given.note("step", options)
            try:
                measured = measure_steps(subject, subject.prepared(STEPS, **zero, **config), step_options=options)
            except REFUSALS:
                if kind in ("sample", "v_prediction"):
                    raise
                continue
            for step in measured[:-1]:
                _require_landing(step, same_variance, clean=0.0)


def constant_output_moves_straight(subject: SchedulerUnderTest, given: Given) -> None:
    """A network whose output is constant (noise, or the velocity of a flow) moves the sample along a straight line,
    which every method without noise of its own follows exactly, from a·x_0 + b·noise to x_0."""
    require_runs(subject)
    kind = choice(subject, {}).get("prediction_type", "epsilon")
    if kind not in ("epsilon", "flow_prediction"):
        raise NotApplicable(f"prediction_type={kind!r}: the network predicts neither noise nor a flow")
    if is_stochastic(subject, {}, {}):
        raise NotApplicable(f"{subject.name} adds noise in its steps")
    steps = measured_steps(subject, STEPS, {})
    if steps[-1].start[1] > steps[0].start[1]:
        raise NotApplicable(f"{subject.name} runs from data to noise")
    scheduler = subject.prepared(STEPS)
    x0, noise = independent_patterns(0)
    a, b = subject.levels(scheduler, scheduler.timesteps[0])

    def constant(x: torch.Tensor, a: float, b: float) -> torch.Tensor:
        return (x - b * noise) / a if a else x0

    run = subject.run(scheduler, a * x0 + b * noise, constant)
    first_slope = rounding([(a, b), (1.0, 0.0)], 0) if a else rounding([(1.0, b), (1.0, 0.0)], 0)
    left = _last_noise(subject, {}) * float(noise.abs().max())
    bound = (left + first_slope * float(noise.abs().max())) / float(x0.abs().max())
    require_close(run.final, x0, "the end of the path", bound=bound, step=len(run.samples) - 1)


def _runs(subject: SchedulerUnderTest, given: Given) -> Iterator[tuple[dict[str, Any], list[Step]]]:
    """Every option and every pair of options at one number of steps, every spacing at another: the configuration and
    its measured steps."""
    cases = [(config, STEPS) for config in (*every_option(subject), *combinations_of(subject))]
    cases += [(config, UNEVEN_STEPS) for config, _ in cases if not config or [*config] == ["timestep_spacing"]]
    for config, steps in cases:
        given.note("steps", steps)
        given.note("options", config)
        yield config, measured_steps(subject, steps, config)


def _require_landing(step: Step, same_variance: bool, clean: float) -> None:
    """clean: noise that counts as part of the data when a step draws anew, as consistency models do it."""
    assert step.end is not None
    a, b = step.end
    least = max(0.0, b * b - clean * clean) ** 0.5
    signal_off, noise_off = abs(step.signal - a), max(step.noise - b, least - step.noise)
    if signal_off <= step.allowed and (not same_variance or noise_off <= step.allowed_noise):
        return
    raise Violation(
        f"after evaluation {step.index} the sample is {step.signal:.6g}·x_0 + {step.noise:.6g}·noise, but the next "
        f"timestep has {a:.6g}·x_0 + {b:.6g}·noise (allowed: ±{step.allowed:.1g}, ±{step.allowed_noise:.1g})",
        step=step.index,
        max_abs=max(signal_off, noise_off if same_variance else 0.0),
    )


def _last_noise(subject: SchedulerUnderTest, config: dict[str, Any]) -> float:
    """The noise-to-signal ratio that may be left after the last step."""
    scheduler = subject.prepared(STEPS, **config)
    if scheduler.config.get("final_sigmas_type") == "zero" or scheduler.config.get("set_alpha_to_one") is True:
        return 0.0
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is not None:
        left = float((1 / table[0].double() - 1).sqrt())
        return left / (1 - left) if scheduler.config.get("use_flow_sigmas") else left
    a, b = subject.levels(scheduler, scheduler.timesteps[-1])
    return b / a


CONTRACTS = (
    Contract(steps_land_on_their_levels),
    Contract(runs_end_at_the_data),
    Contract(runs_begin_without_signal),
    Contract(constant_output_moves_straight),
)
