"""What a scheduler makes of a network's output: prediction types, the x_0 that it reports, clipping, thresholding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close
from conformance.contracts.result import NotApplicable
from conformance.contracts.scheduler.driver import SchedulerUnderTest, Trajectory, always, generators, mixture
from conformance.contracts.scheduler.options import defaults
from conformance.contracts.scheduler.probes import EPS, OPERATIONS, STEPS, choice, every_option, prepared, rounding
from conformance.contracts.scheduler.support import noise, require_runs

SHAPE = (2, 3, 4, 5)
"""No two sizes are alike, so that a limit along a wrong axis shows."""

LARGEST_NORMAL = 5.0
"""Of the few elements of a sample."""

LIMITS: tuple[dict[str, Any], ...] = (
    {"clip_sample": False, "clip_denoised": False, "thresholding": False},
    {"clip_denoised": True},
    {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False},
    {"clip_sample": True, "clip_sample_range": 0.7, "thresholding": False},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.5, "sample_max_value": 3.0, "clip_sample": False},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "clip_sample": False},
)
"""Options that keep a predicted x_0 in range."""

LIMITING = frozenset().union(*LIMITS)


def prediction_types_agree(subject: SchedulerUnderTest, given: Given) -> None:
    """Networks with one belief about x_0 give one run, whether they say it as noise, as x_0, as a velocity, as a flow
    or as the mean of x_{t-1}; but for rounding, which grows where noise is divided by little signal.

    Without clipping, which a mean of x_{t-1} does not take part in.
    """
    require_runs(subject)
    if "prediction_type" not in subject.options:
        raise NotApplicable(f"{subject.name} has no choice of prediction types")
    runs: dict[str, tuple[Trajectory, list[float]]] = {}
    for kind in subject.options["prediction_type"]:
        config = {"prediction_type": kind} if kind != choice(subject, {})["prediction_type"] else {}
        config |= {"clip_sample": False} if True in subject.options.get("clip_sample", ()) else {}
        scheduler = prepared(subject, STEPS, config)
        if scheduler is None:
            continue
        levels = [subject.levels(scheduler, t) for t in scheduler.timesteps]
        x = subject.start(scheduler, 5, dtype=torch.float64)
        errors = [rounding(levels, k) * LARGEST_NORMAL for k in range(len(levels))]
        bounds = list(accumulate(error if math.isfinite(error) else 0.0 for error in errors))
        torch.default_generator.manual_seed(6)
        runs[kind] = subject.run(scheduler, x, mixture(), generator=generators(6)), bounds
    if len(runs) < 2:
        raise NotApplicable(f"{subject.name} takes {' and '.join(runs) or 'no known prediction type'} only")
    (first, (run, bounds)), *others = runs.items()
    for kind, (other, _) in others:
        given.note("prediction_types", (first, kind))
        for k, (found, wanted) in enumerate(zip(other.samples, run.samples, strict=True)):
            bound = bounds[k] / float(wanted.abs().max())
            require_close(found, wanted, f"the sample with {kind!r}", bound=bound, step=k)


def reported_x0_is_the_belief(subject: SchedulerUnderTest, given: Given) -> None:
    """The x_0 that `step` reports is what the network believes, clipped to ±clip_sample_range or thresholded (arXiv
    2205.11487, section 2.3) as the options say."""
    require_runs(subject)
    x0 = far_reaching()
    reports = 0
    others = [config for config in every_option(subject) if config and not config.keys() & LIMITING]
    others += [
        {"prediction_type": kind, "coefficients": precision}
        for kind in subject.options.get("prediction_type", ())
        for precision in subject.options.get("coefficients", ())[1:]
    ]
    own = {name: value for name, value in {**defaults(subject.cls), **subject.base}.items() if name in LIMITING}
    for config, run in (*_limited_runs(subject, given, x0), *_runs(subject, given, x0, others)):
        wanted = limited(x0, {**own, **config})
        scheduler = subject.prepared(STEPS, **config)
        levels = [subject.levels(scheduler, t) for t in scheduler.timesteps]
        for k, found in enumerate(run.x0):
            if found is not None and levels[k][0] > 0:
                reports += 1
                a, b = levels[k]
                error = OPERATIONS * EPS * (float(run.inputs[k].abs().max()) + b * LARGEST_NORMAL) / a
                require_close(
                    found.double(), wanted, "the reported x_0", bound=error / float(wanted.abs().max()), step=k
                )
    if not reports:
        raise NotApplicable(f"step of {subject.name} reports no x_0")


def limits_hold_in_the_result(subject: SchedulerUnderTest, given: Given) -> None:
    """With a network that believes an x_0 out of range, a run that ends clean ends at that x_0 clipped or thresholded
    as the options say (without them: as it is)."""
    require_runs(subject)
    x0 = far_reaching()
    clean: dict[str, Any] = {"set_alpha_to_one": True, "final_sigmas_type": "zero"}
    clean = {name: value for name, value in clean.items() if name in subject.options}
    compared = 0
    for config, run in _limited_runs(subject, given, x0, clean):
        free = subject.run(*_start(subject, clean), always(0.3 * x0.sign()), generator=generators(3))
        if float((free.final.abs() - 0.3).abs().max()) > 1e-4:
            raise NotApplicable("a run does not end clean")
        compared += 1
        wanted = limited(x0, config)
        last = subject.prepared(STEPS, **config)
        a, b = subject.levels(last, last.timesteps[-1])
        error = OPERATIONS * EPS * (1 + b * LARGEST_NORMAL / a) * float(x0.abs().max()) if a else math.inf
        require_close(
            run.final, wanted, "the result", bound=error / float(wanted.abs().max()), step=len(run.samples) - 1
        )
    if not compared:
        raise NotApplicable(f"{subject.name} has no options that limit x_0")


def far_reaching() -> torch.Tensor:
    """x_0 up to ±2.4, another range in each sample."""
    scale = torch.tensor([0.5, 0.8], dtype=torch.float64).reshape(2, 1, 1, 1)
    return noise(11, SHAPE, torch.float64).clamp(-3, 3) * scale


def _start(subject: SchedulerUnderTest, config: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    scheduler = subject.prepared(STEPS, **config)
    return scheduler, subject.start(scheduler, 2, SHAPE, dtype=torch.float64)


def _limited_runs(
    subject: SchedulerUnderTest, given: Given, x0: torch.Tensor, more: Mapping[str, Any] | None = None
) -> list[tuple[dict[str, Any], Trajectory]]:
    """Runs with a network that knows `x0`, for each way to limit it that the class offers, once each."""
    offered = defaults(subject.cls)
    configs: list[dict[str, Any]] = []
    for limit in LIMITS:
        config = {name: value for name, value in limit.items() if name in offered}
        asked = [name for name in ("clip_sample", "clip_denoised", "thresholding") if limit.get(name)]
        if config not in configs and all(name in config for name in asked):
            configs.append(config)
    return _runs(subject, given, x0, [{**config, **(more or {})} for config in configs])


def _runs(
    subject: SchedulerUnderTest, given: Given, x0: torch.Tensor, configs: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], Trajectory]]:
    """Runs with a network that knows `x0`, for those of the configurations that the class offers."""
    runs = []
    for config in configs:
        given.note("options", config)
        if prepared(subject, STEPS, config) is not None:
            runs.append((config, subject.run(*_start(subject, config), always(x0), generator=generators(3))))
    return runs


def limited(x0: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """x_0 after clipping or dynamic thresholding, which wins."""
    if config.get("thresholding"):
        flat = x0.reshape(len(x0), -1)
        s = torch.quantile(flat.abs(), config["dynamic_thresholding_ratio"], dim=1, keepdim=True)
        s = s.clamp(1, config["sample_max_value"])
        return (flat.clamp(-s, s) / s).reshape(x0.shape)
    if config.get("clip_sample") or config.get("clip_denoised"):
        limit = config.get("clip_sample_range", 1.0)
        return x0.clamp(-limit, limit)
    return x0


CONTRACTS = (
    Contract(prediction_types_agree),
    Contract(reported_x0_is_the_belief),
    Contract(limits_hold_in_the_result),
)
