"""The options and requests that choose the levels of `SigmaScheduler`: what is allowed, and what goes with what."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.schedulers import sigmas as grids
from diffusers_ref.schedulers.conventions import SigmaSchedule, choose


def chosen_schedule(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> SigmaSchedule | None:
    """The grid of crowsonkb's that the options choose, if they do. Raises ConfigError for options without effect."""
    for name, allowed in _ALLOWED.items():
        if config.get(name, allowed[0]) not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ConfigError(f"{name}={config[name]!r} is not known here; allowed: {names}")
    published = [name for name in PUBLISHED_RULES if config.get(name)]
    if config.get("interpolation_type", "linear") == "log_linear":
        published.append("interpolation_type='log_linear'")
    if len(published) > 1:
        raise ConfigError(f"{' and '.join(published)} are given; allowed: at most one of them")
    if config.get("timestep_type") == "continuous" and config["prediction_type"] != "v_prediction":
        given = config["prediction_type"]
        raise ConfigError(f"timestep_type='continuous' needs prediction_type='v_prediction', not {given!r}")
    ends = [name for name in ("sigma_min", "sigma_max") if config.get(name) is not None]
    if ends and (not published or published[0] not in PUBLISHED_RULES):
        rules = ", ".join(name for name in PUBLISHED_RULES if name.startswith("use_"))
        raise ConfigError(f"{' and '.join(ends)} without effect: allowed with one of {rules}")
    if config["sigma_schedule"] is None:
        for name in ("sigma_options", "quantize"):
            if config[name]:
                raise ConfigError(f"{name}={config[name]!r} has no effect without sigma_schedule")
        return None
    schedule = choose(SigmaSchedule, "sigma_schedule", config["sigma_schedule"])
    for name in _REPLACED_OPTIONS:
        if name in config and (config[name] or False) != defaults[name]:
            raise ConfigError(f"{name}={config[name]!r} has no effect with sigma_schedule={schedule.value!r}")
    _check_sigma_options(schedule, config["sigma_options"] or {})
    return schedule


def _check_sigma_options(schedule: SigmaSchedule, options: Mapping[str, Any]) -> None:
    allowed = _SIGMA_OPTIONS.get(schedule, ())
    for name, value in options.items():
        if name not in allowed:
            names = ", ".join(allowed) or "none"
            raise ConfigError(f"sigma_options has {name!r}; allowed with sigma_schedule={schedule.value!r}: {names}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"sigma_options has {name}={value!r}; allowed: positive numbers")
    if options.get("sigma_min", 0) >= options.get("sigma_max", math.inf):
        raise ConfigError(f"sigma_options={dict(options)}: sigma_min must be below sigma_max")


# --- explicit requests ------------------------------------------------------------------------------------------------


def count_of(value: Any) -> int:
    """A number of steps, at least 1. Raises ValueError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"num_inference_steps needs a whole number, not {value!r}") from None
    if count < 1:
        raise ValueError(f"num_inference_steps={count} is out of range; allowed: at least 1")
    return count


def explicit_levels(sigmas: Sequence[float] | Tensor) -> Tensor:
    """(n + 1,) float32: positive levels that do not ascend, and the end. Raises ValueError."""
    levels = torch.as_tensor(_numbers("sigmas", sigmas), dtype=torch.float32)
    if len(levels) < 2 or not levels.isfinite().all() or not (levels[:-1] > 0).all() or levels[-1] < 0:
        raise ValueError(
            f"sigmas={levels.tolist()} is not allowed: at least one positive level, then the one where sampling ends"
        )
    _require_descent("sigmas", levels.tolist())
    return levels


def explicit_times(timesteps: Sequence[float] | Tensor, total: int) -> np.ndarray:
    """(n,) float32: times in [0, total - 1] that do not ascend. Raises ValueError."""
    times = np.array(_numbers("timesteps", timesteps), dtype=np.float32)
    if not len(times):
        raise ValueError("timesteps is empty; at least one timestep is needed")
    if not ((times >= 0) & (times <= total - 1)).all():
        raise ValueError(f"timesteps from {times.min():g} to {times.max():g}; allowed: 0 to {total - 1}")
    _require_descent("timesteps", times.tolist())
    return times


def _numbers(name: str, values: Any) -> list[float]:
    listed = values.tolist() if hasattr(values, "tolist") else values
    try:
        return [float(value) for value in listed]
    except (TypeError, ValueError):
        raise ValueError(f"{name} needs a list of numbers, not {values!r}") from None


def _require_descent(name: str, values: list[float]) -> None:
    for earlier, later in pairwise(values):
        if later > earlier:
            raise ValueError(f"{name} must descend, but {earlier:g} is followed by {later:g}")


def published_rule(config: Mapping[str, Any]) -> str | None:
    """Which published option spaces the levels: a key of `PUBLISHED_RULES`, or None for even times."""
    if config.get("interpolation_type") == "log_linear":
        return "log_linear"
    return next((name for name in PUBLISHED_RULES if config.get(name)), None)


PUBLISHED_RULES = {
    "use_karras_sigmas": grids.published_karras,
    "use_exponential_sigmas": grids.published_exponential,
    "use_beta_sigmas": grids.published_beta,
    "log_linear": grids.published_exponential,
}
"""Published option, or value of interpolation_type -> the levels that it makes."""

CROWSONKB_GRIDS: dict[SigmaSchedule, Callable[..., Tensor]] = {
    SigmaSchedule.KARRAS: grids.karras,
    SigmaSchedule.EXPONENTIAL: grids.exponential,
    SigmaSchedule.POLYEXPONENTIAL: grids.polyexponential,
}
_ALLOWED = {
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
    "final_sigmas_type": ("zero", "sigma_min"),
}
_REPLACED_OPTIONS = (
    "timestep_spacing",
    "interpolation_type",
    "timestep_type",
    "final_sigmas_type",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
_SIGMA_OPTIONS = {
    SigmaSchedule.KARRAS: ("sigma_min", "sigma_max", "rho"),
    SigmaSchedule.EXPONENTIAL: ("sigma_min", "sigma_max"),
    SigmaSchedule.POLYEXPONENTIAL: ("sigma_min", "sigma_max", "rho"),
    SigmaSchedule.VP: ("beta_d", "beta_min", "eps_s"),
}
