"""How much noise a step adds: the posterior of the forward process, its published relatives, and eta in between."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_finite
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import LEARNED, SchedulerUnderTest, generators
from conformance.contracts.scheduler.probes import (
    EPS,
    STEPS,
    choice,
    independent_patterns,
    measure_steps,
    prepared,
)
from conformance.contracts.scheduler.support import REFUSALS, TINY, noise, require_runs

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
TABLE_ROUNDINGS = 8
"""Of the float32 products and differences between a table of alphas_cumprod and a variance."""

LARGE_VARIANCE = 100.0
"""What a network may say of its variance where nothing depends on it: far out of range, but no exponential of it
overflows."""


def variance_types_are_the_published(subject: SchedulerUnderTest, given: Given) -> None:
    """Every step but the last adds noise with the variance that `variance_type` names, between this timestep and the
    next of the list: beta~ ("fixed_small", DDPM eq. 7), beta ("fixed_large"), the exponential of the network's second
    half ("learned"), or of a mean of log beta and log beta~ that it weighs ("learned_range", arXiv 2102.09672 eq. 15).

    The names with "_log" mean the same variances. A last step at timestep 0 adds none, whatever the network says.
    """
    require_runs(subject)
    if "variance_type" not in subject.options or subject.takes("step", "eta"):
        raise NotApplicable(f"{subject.name} has no choice of variances")
    tried = 0
    precisions = subject.options.get("coefficients", ())[1:]
    cases = [{"variance_type": kind} for kind in VARIANCES]
    cases += [{"variance_type": kind, "coefficients": precision} for kind in LEARNED for precision in precisions]
    for config in cases:
        kind = config["variance_type"]
        given.note("options", config)
        try:
            scheduler = subject.prepared(STEPS, **config)
        except REFUSALS:
            continue
        levels = [subject.levels(scheduler, t) for t in scheduler.timesteps]
        for k in range(len(levels) - 1):
            second_half = (-0.6, 0.5)[k % 2] - (3.0 if kind == "learned" else 0.0)
            wanted, allowed = _wanted(kind, levels[k], levels[k + 1], second_half)
            try:
                found = added_noise(subject, scheduler, k, levels[k], second_half if kind in LEARNED else None)
            except REFUSALS:
                break
            tried += 1
            if not math.isfinite(found) or abs(found - wanted) > allowed * wanted:
                raise Violation(
                    f"step {k} adds noise of standard deviation {found:.6g} instead of {wanted:.6g} "
                    f"(relative {abs(found / wanted - 1):.2g}, allowed {allowed:.1g})",
                    step=k,
                    max_abs=abs(found - wanted),
                )
        if kind in LEARNED and float(scheduler.timesteps[-1]) == 0 and not subject.takes("step", "prev_timestep"):
            found = added_noise(subject, scheduler, len(levels) - 1, levels[-1], LARGE_VARIANCE)
            if found > EPS:
                raise Violation(f"the last step adds noise of standard deviation {found:.6g}", step=len(levels) - 1)
    if not tried or "fixed_small" not in str(choice(subject, {})["variance_type"]):
        raise NotApplicable(f"{subject.name} takes a variance_type, but its steps do not use one")


def eta_goes_from_ode_to_posterior(subject: SchedulerUnderTest, given: Given) -> None:
    """With eta = 0 a step adds no noise, with eta = 1 that of the posterior of the forward process, in between eta
    times its standard deviation; the sample keeps the level of the next timestep (DDIM, arXiv 2010.02502, eq. 16)."""
    require_runs(subject)
    parameter = inspect.signature(subject.cls.step).parameters.get("eta")  # type: ignore[attr-defined]
    if parameter is None or parameter.default != 0.0:
        raise NotApplicable(f"step of {subject.name} has no eta with the default 0")
    for spacing in ({}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}):
        for eta in (0.0, 0.5, 1.0):
            given.note("options", spacing)
            given.note("eta", eta)
            scheduler = prepared(subject, STEPS, spacing)
            if scheduler is None:
                continue
            for step in measure_steps(subject, scheduler, step_options={"eta": eta})[:-1]:
                assert step.end is not None
                posterior, allowed = _wanted("fixed_small", step.start, step.end, 0.0)
                wanted = eta * posterior
                if abs(step.fresh - wanted) > allowed * wanted + step.allowed:
                    raise Violation(
                        f"step {step.index} adds noise of standard deviation {step.fresh:.6g} instead of {wanted:.6g}",
                        step=step.index,
                        max_abs=abs(step.fresh - wanted),
                    )
                if abs(step.noise - step.end[1]) > step.allowed_noise:
                    raise Violation(
                        f"after step {step.index} the noise is {step.noise:.6g} instead of {step.end[1]:.6g}",
                        step=step.index,
                        max_abs=abs(step.noise - step.end[1]),
                    )


def noise_fits_its_level(subject: SchedulerUnderTest, given: Given) -> None:
    """An eta that asks for more noise than the level of the next timestep has is refused, or the sample keeps that
    level; eta = 1 never asks for more, also where a step begins without signal (arXiv 2305.08891)."""
    require_runs(subject)
    if not subject.takes("step", "eta"):
        raise NotApplicable(f"step of {subject.name} takes no eta")
    for eta in (1.5, 30.0):
        given.note("eta", eta)
        try:
            measured = measure_steps(subject, subject.prepared(STEPS), step_options={"eta": eta})
        except REFUSALS:
            continue
        for step in measured[:-1]:
            assert step.end is not None
            if abs(step.noise - step.end[1]) > step.allowed_noise:
                raise Violation(
                    f"after step {step.index} the noise is {step.noise:.6g} instead of {step.end[1]:.6g}",
                    step=step.index,
                    max_abs=abs(step.noise - step.end[1]),
                )
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    if any(value not in subject.options.get(name, ()) for name, value in config.items()):
        return
    given.note("eta", 1.0)
    schedules = subject.options.get("beta_schedule", ())
    for options in ({**config, "beta_schedule": schedule} for schedule in schedules) if schedules else (config,):
        given.note("options", options)
        for steps in range(1, STEPS):
            given.note("steps", steps)
            scheduler = subject.prepared(steps, **options)
            run = subject.run(scheduler, noise(1, TINY), None, generator=generators(2), step_options={"eta": 1.0})
            require_finite(run.final, "the result")


def _wanted(kind: str, start: tuple[float, float], end: tuple[float, float], second_half: float) -> tuple[float, float]:
    """The standard deviation that a step from one level to another adds, and its relative rounding error."""
    (a, b), (a_end, b_end) = start, end
    beta = 1 - (a / a_end) ** 2
    posterior = beta * (b_end / b) ** 2
    variance = {
        "fixed_large": beta,
        "fixed_large_log": beta,
        "learned": math.exp(second_half),
        "learned_range": math.exp(
            (1 + second_half) / 2 * math.log(beta) + (1 - second_half) / 2 * math.log(posterior)
            if posterior
            else -math.inf
        ),
    }.get(kind, posterior)
    return math.sqrt(variance), TABLE_ROUNDINGS * EPS * (1 / beta + 1 / b_end**2)


def added_noise(
    subject: SchedulerUnderTest, scheduler: Any, k: int, level: tuple[float, float], second_half: float | None
) -> float:
    """The standard deviation of what entry k adds: by the difference of two runs of one step with known draws."""
    t = scheduler.timesteps[k]
    x0, noise = independent_patterns(k)
    x = level[0] * x0 + level[1] * noise
    output = subject.output_for(scheduler, x, x0, t)
    if second_half is not None:
        output = torch.cat([output[:, : x.shape[1]], torch.full_like(x, second_half)], 1)
    options = {"prev_timestep": scheduler.timesteps[k + 1]} if subject.takes("step", "prev_timestep") else {}

    def stepped(seed: int) -> torch.Tensor:
        result = copy.deepcopy(scheduler).step(output, t, x, generator=generators(seed), **options)
        sample = result[0] if isinstance(result, tuple) else result.prev_sample
        require_finite(sample, f"with variance_type={scheduler.config['variance_type']!r} the sample", k)
        return sample

    gap = (stepped(1) - stepped(2)).reshape(-1)
    for dtype in (torch.float64, torch.float32):
        draws = [torch.randn(x.shape, generator=generators(seed), dtype=dtype).double() for seed in (1, 2)]
        change = (draws[0] - draws[1]).reshape(-1)
        factor = float(gap @ change / (change @ change))
        if float((gap - factor * change).abs().max()) <= 1e-5 * max(float(gap.abs().max()), 1e-30):
            return factor
    return float(gap.square().mean().sqrt() / math.sqrt(2))


CONTRACTS = (
    Contract(variance_types_are_the_published),
    Contract(eta_goes_from_ode_to_posterior),
    Contract(noise_fits_its_level),
)
