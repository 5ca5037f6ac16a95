"""The forward process and what refers to it: adding noise, velocities, the scaling of inputs, the first level."""

from __future__ import annotations

import copy
import math

import torch
from hypothesis import strategies as st

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SHAPE, SchedulerUnderTest
from conformance.contracts.scheduler.probes import EPS, STEPS, every_grid
from conformance.contracts.scheduler.support import noise, require_runs

ROUNDINGS = 8 * EPS
"""Of a handful of float32 operations on numbers of size 1."""


def noise_is_added_linearly(subject: SchedulerUnderTest, given: Given) -> None:
    """add_noise (or scale_noise) gives a·x_0 + b·noise for any x_0 and noise, and a and b are those of a published
    process: a² + b² = 1 (variance preserving), a² + b = 1 (sub-VP), a = 1 (exploding) or a + b = 1 (flow), the same one
    at all timesteps.

    In float32 and float64, and for all options.
    """
    require_runs(subject)
    for grid in every_grid(subject, given):
        levels = grid.levels
        deviations = {
            "a² + b² = 1": max(abs(math.hypot(a, b) - 1) for a, b in levels),
            "a² + b = 1": max(abs(a * a + b - 1) for a, b in levels),
            "a = 1": max(abs(a - 1) for a, b in levels),
            "a + b = 1": max(abs(a + b - 1) for a, b in levels),
        }
        if min(deviations.values()) > ROUNDINGS:
            shown = ", ".join(f"({a:.4g}, {b:.4g})" for a, b in levels[:4])
            nearest = min(deviations, key=lambda form: deviations[form])
            raise Violation(
                f"levels (a, b) of no published process: {shown}, …; {nearest} is off by {deviations[nearest]:.2g}"
            )
    scheduler = subject.prepared(STEPS)
    for dtype in (torch.float32, torch.float64):
        x0, n = noise(1, dtype=dtype), noise(2, dtype=dtype)
        for k in (0, len(scheduler.timesteps) // 2, -1):
            t = scheduler.timesteps[k]
            a, b = subject.levels(scheduler, t)
            found = subject.add_noise(scheduler, x0, n, t)
            require_close(found, a * x0 + b * n, f"add_noise in {dtype} at {float(t):g}", bound=ROUNDINGS)


def noise_is_added_per_sample(subject: SchedulerUnderTest, given: Given) -> None:
    """add_noise takes one timestep per sample: a batch with different timesteps is the same as its samples alone."""
    require_runs(subject)
    scheduler = subject.prepared(STEPS)
    seed = given.seed()
    picked = given.draw("entries", st.lists(st.integers(0, len(scheduler.timesteps) - 1), min_size=3, max_size=3))
    shape = (len(picked), *SHAPE[1:])
    x0, n = noise(seed, shape), noise(seed + 1, shape)
    times = torch.as_tensor(scheduler.timesteps)[picked]
    if hasattr(scheduler, "add_noise"):
        together = scheduler.add_noise(x0, n, times)
    elif hasattr(scheduler, "scale_noise"):
        together = scheduler.scale_noise(x0, times, n)
    else:
        raise NotApplicable(f"{subject.name} has neither add_noise nor scale_noise")
    alone = [subject.add_noise(scheduler, x0[i : i + 1], n[i : i + 1], times[i]) for i in range(len(picked))]
    require_close(together, torch.cat(alone), "the batch", bound=EPS)


def levels_are_ordered(subject: SchedulerUnderTest, given: Given) -> None:
    """Along `timesteps` the noise-to-signal ratio b/a of the forward process never rises (for a sampler that runs from
    data to noise: never falls), and it changes from the first entry to the last."""
    require_runs(subject)
    for grid in every_grid(subject, given):
        levels = grid.levels
        share = [b / math.hypot(a, b) for a, b in levels]  # finite where a is 0
        sign = 1 if grid.towards_data else -1
        for k in range(1, len(share)):
            if sign * (share[k] - share[k - 1]) > ROUNDINGS:
                raise Violation(
                    f"the noise share goes from {share[k - 1]:.6g} to {share[k]:.6g}, against the direction of the run",
                    step=k,
                )
        if len(levels) > 1 and levels[0] == levels[-1]:
            raise Violation(f"all timesteps have the same level {levels[0]}")


def velocity_matches_the_levels(subject: SchedulerUnderTest, given: Given) -> None:
    """get_velocity(x_0, noise, t) is a·noise - b·x_0, with the a and b of add_noise (arXiv 2202.00512), in the dtype of
    x_0."""
    require_runs(subject)
    if not hasattr(subject.cls, "get_velocity"):
        raise NotApplicable(f"{subject.name} has no get_velocity")
    scheduler = subject.prepared(STEPS)
    x0, n = noise(1, dtype=torch.float64), noise(2, dtype=torch.float64)
    for t in scheduler.timesteps:
        a, b = subject.levels(scheduler, t)
        times = torch.as_tensor(t).reshape(1).expand(len(x0))
        found = scheduler.get_velocity(x0, n, times)
        scale = math.hypot(a, b)
        require_close(found, (a * n - b * x0) / scale, f"the velocity at {float(t):g}", bound=ROUNDINGS)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        given.note("dtype", str(dtype))
        found = scheduler.get_velocity(noise(1, dtype=dtype), noise(2, dtype=dtype), times)
        if found.dtype != dtype:
            raise Violation(f"the velocity of samples in {dtype} is in {found.dtype}")


def inputs_have_unit_variance(subject: SchedulerUnderTest, given: Given) -> None:
    """scale_model_input multiplies by one number: 1 where a² + b² = 1 or a + b = 1, and where a = 1 that which gives
    data of variance 1 (or of the option `sigma_data`) plus noise the variance 1.

    A class with a choice of preconditionings scales as EDM (arXiv 2206.00364), table 1 says for each."""
    require_runs(subject)
    if not hasattr(subject.cls, "scale_model_input"):
        raise NotApplicable(f"{subject.name} has no scale_model_input")
    for grid in every_grid(subject, given):
        scheduler = grid.scheduler
        exploding = all(abs(a - 1) <= EPS for a, _ in grid.levels)
        data = scheduler.config.get("sigma_data", 1.0)
        for k in (0, len(grid.levels) // 2):
            x = noise(k, dtype=torch.float64)
            factor = 1 / math.hypot(data, grid.levels[k][1]) if exploding else 1.0
            t = scheduler.timesteps[k]
            if kind := scheduler.config.get("preconditioning"):
                a, b = grid.levels[k]
                factor = 1 / a if kind == "ve" else 1 / math.hypot(a * (data if kind == "edm" else 1.0), b)
            found = copy.deepcopy(scheduler).scale_model_input(x, t)
            require_close(found, factor * x, f"the network's input at {float(t):g}", bound=ROUNDINGS, step=k)


def starts_on_the_first_level(subject: SchedulerUnderTest, given: Given) -> None:
    """init_noise_sigma is the standard deviation of x_T: b or sqrt(a² + b²) at the first timestep, or 1 for a process
    that ends in noise of variance 1."""
    require_runs(subject)
    if not hasattr(subject.prepared(STEPS), "init_noise_sigma"):
        raise NotApplicable(f"{subject.name} has no init_noise_sigma")
    for grid in every_grid(subject, given):
        a, b = grid.levels[0]
        found = float(grid.scheduler.init_noise_sigma)
        allowed = [b, math.hypot(a, b)] if abs(a - 1) <= EPS < b else [b, 1.0]
        if min(abs(found / value - 1) for value in allowed if value) > ROUNDINGS:
            raise Violation(f"init_noise_sigma is {found:.9g} instead of {allowed[0]:.9g} or {allowed[1]:.9g}", step=0)


CONTRACTS = (
    Contract(noise_is_added_linearly),
    Contract(noise_is_added_per_sample, examples=8),
    Contract(levels_are_ordered),
    Contract(velocity_matches_the_levels),
    Contract(inputs_have_unit_variance),
    Contract(starts_on_the_first_level),
)
