"""The published grids of high-order solvers: which times are visited, and the noise-to-signal ratio sigma at each.

These are the options that HF diffusers gives its DPM-Solver, UniPC and DEIS schedulers alike. In contrast to its other
schedulers, n steps take the first n of n + 1 evenly spaced times, and the last step goes from there to `final_sigma`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from diffusers_ref.configuration import ConfigError
from diffusers_ref.schedulers import sigmas as levels

SIGMA_GRIDS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)
"""Options of which at most one is on; with none, the grid follows `timestep_spacing`."""


class SolverGrid(NamedTuple):
    """n visited levels, from noisy to clean.

    times: (n,) training timesteps. sigmas: (n + 1,) float32, σ/α (of a flow σ itself), the last where the run ends.
    """

    times: list[int]
    sigmas: np.ndarray


def check_grid_options(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for values of the grid options that are unknown or exclude each other."""
    chosen = [name for name in SIGMA_GRIDS if config.get(name)]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other; at most one of {', '.join(SIGMA_GRIDS)} is on")
    for name, allowed in _ALLOWED.items():
        if (value := config.get(name, allowed[0])) not in allowed:
            raise ConfigError(f"{name}={value!r} is not allowed; allowed: {', '.join(map(repr, allowed))}")
    if not config.get("flow_shift", 1.0) > 0:
        raise ConfigError(f"flow_shift={config['flow_shift']} is not allowed; it must be above 0")


def solver_grid(
    config: Mapping[str, Any],
    table: np.ndarray,
    num_inference_steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> SolverGrid:
    """The grid that `config` asks for.

    table: (T,) float32, σ/α of every training timestep. Exactly one of these is given:
    num_inference_steps: n, at least 1.
    timesteps: the visited training timesteps, not ascending, where no option chooses other levels than theirs.
    sigmas: the visited σ/α (of a flow σ, at most 1), descending and positive, where no option does.
    mu: the shift of a flow is exp(mu) instead of `flow_shift`; needs `use_dynamic_shifting`.

    Raises ValueError that says what was given and what is allowed.
    """
    requests = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
    given = [name for name, value in requests.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(f"give exactly one of num_inference_steps, timesteps and sigmas; given: {found}")
    chosen = next((name for name in SIGMA_GRIDS if config.get(name)), None)
    of_sigmas = (None,) if sigmas is None else (None, "use_flow_sigmas")
    if num_inference_steps is None and chosen not in of_sigmas:
        raise ValueError(f"{given[0]} cannot be given with {chosen}, which chooses the levels itself")
    shift = _shift(config, mu)
    if timesteps is not None:
        times = _checked_times(timesteps, len(table))
        visited = table[times].astype(np.float64)
    elif sigmas is not None:
        visited = _checked_sigmas(sigmas, most=1.0 if chosen else math.inf)
        times = _flow_times(visited, len(table)) if chosen else _nearest_times(table, visited)
    elif chosen == "use_flow_sigmas":
        visited = _flow(_count(num_inference_steps), len(table), shift)
        times = _flow_times(visited, len(table))
    elif chosen is not None:
        low, high = config.get("sigma_min"), config.get("sigma_max")
        ends = (float(table[0]) if low is None else low, float(table[-1]) if high is None else high)
        visited = _RULES[chosen](_count(num_inference_steps), *ends)
        times = _nearest_times(table, visited)
    else:
        times = _spaced_times(config, table, _count(num_inference_steps))
        visited = table[times].astype(np.float64)
    final = table[0] if config["final_sigmas_type"] == "sigma_min" else 0.0
    return SolverGrid(times, np.append(visited, final).astype(np.float32))


def _shift(config: Mapping[str, Any], mu: float | None) -> float:
    if mu is None:
        return float(config["flow_shift"])
    if not config["use_dynamic_shifting"]:
        raise ValueError(f"mu={mu} needs use_dynamic_shifting=True")
    return math.exp(mu)


def _spaced_times(config: Mapping[str, Any], table: np.ndarray, count: int) -> list[int]:
    """The first n of n + 1 times (Table 2 of arXiv 2305.08891), without those of λ below `lambda_min_clipped`."""
    total, spacing = len(table), config.get("timestep_spacing", "linspace")
    half_log_snr = -np.log(table)
    lowest = config.get("lambda_min_clipped", -math.inf)
    last = total - int(np.searchsorted(half_log_snr[::-1], lowest))
    if last < 1:
        raise ValueError(f"lambda_min_clipped={lowest} leaves none of the {total} timesteps")
    if spacing == "linspace":
        grid = np.linspace(0, last - 1, count + 1).round()[:0:-1].astype(int)
    elif spacing == "leading":
        grid = np.arange(count, 0, -1) * (last // (count + 1)) + config["steps_offset"]
    else:
        # At most n, as np.arange can add one more, near 0.
        grid = np.arange(last, 0, -total / count)[:count].round().astype(int) - 1
    if count > total or grid[0] >= total or grid[-1] < 0 or (spacing == "leading" and last <= count):
        raise ValueError(
            f"{count} steps spaced {spacing!r} do not fit into {last} timesteps; take fewer steps"
            + (f" or another steps_offset than {config['steps_offset']}" if spacing == "leading" else "")
        )
    return grid.tolist()


def _nearest_times(table: np.ndarray, visited: np.ndarray) -> list[int]:
    """The training timestep nearest to each level, in log σ."""
    return levels.published_time_at_level(table, visited).round().astype(int).tolist()


def _flow(count: int, total: int, shift: float) -> np.ndarray:
    sigmas = 1.0 - np.linspace(1, 1 / total, count + 1)
    return (shift * sigmas / (1 + (shift - 1) * sigmas))[:0:-1]


def _flow_times(visited: np.ndarray, total: int) -> list[int]:
    """Truncated, as published flow models have it (their own code too)."""
    return (visited * total).astype(int).tolist()


def _uniform_lambdas(count: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """`use_lu_lambdas`: evenly in λ, which is evenly in log σ/α."""
    return levels.published_exponential(count, sigma_min, sigma_max)


def _checked_times(timesteps: Sequence[int], total: int) -> list[int]:
    times = [operator.index(time) for time in timesteps]
    falling = all(a >= b for a, b in pairwise(times))
    if not times or not falling or times[0] >= total or times[-1] < 0:
        raise ValueError(
            f"timesteps {times} are not allowed; at least one, none larger than the one before, 0 to {total - 1}"
        )
    return times


def _checked_sigmas(sigmas: Sequence[float], most: float) -> np.ndarray:
    visited = np.array([float(sigma) for sigma in sigmas])
    in_range = np.isfinite(visited) & (visited > 0) & (visited <= most)
    if not len(visited) or not in_range.all() or (np.diff(visited) > 0).any():
        raise ValueError(
            f"sigmas {visited.tolist()} are not allowed; at least one, all positive, none larger than before"
            + (", and of a flow at most 1" if most == 1.0 else "")
        )
    return visited


def _count(num_inference_steps: int | None) -> int:
    try:
        count = operator.index(num_inference_steps)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"num_inference_steps must be a whole number, not {num_inference_steps!r}") from None
    if count < 1 or isinstance(num_inference_steps, bool):
        raise ValueError(f"num_inference_steps={num_inference_steps} is out of range; at least 1")
    return count


_RULES = {
    "use_karras_sigmas": levels.published_karras,
    "use_exponential_sigmas": levels.published_exponential,
    "use_beta_sigmas": levels.published_beta,
    "use_lu_lambdas": _uniform_lambdas,
}

_ALLOWED: dict[str, tuple[Any, ...]] = {
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential",),
}
