"""Noise levels sigma of x = x_0 + sigma · n: grids of them, and the maps between a level and a training timestep.

    originals                                          here
    crowsonkb/k-diffusion, sampling.get_sigmas_*       discrete, karras, exponential, polyexponential, vp
    crowsonkb/k-diffusion, external.DiscreteSchedule   discrete, level_at_time, time_at_level
    published (HF diffusers' discrete schedulers)      the functions named published_*

Precision belongs to the definition. k-diffusion works in float32 tensors throughout, with end points that are Python
floats. The published functions work in NumPy float64 on a float32 table; their results are rounded once, by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sigma_table(alphas_cumprod: Tensor) -> Tensor:
    """sigma_t = sqrt((1 - abar_t) / abar_t), ascending, (T,) float32: of abar rounded to float32, in float32."""
    abar = alphas_cumprod.float()
    return ((1 - abar) / abar) ** 0.5


# --- the grids of k-diffusion: (n + 1,) float32, descending, then 0 ---------------------------------------------------


def discrete(table: Tensor, count: int) -> Tensor:
    """`get_sigmas(n)`: the levels at n times, evenly from T-1 to 0. table: (T,) float32."""
    return _with_zero(level_at_time(table.log(), torch.linspace(len(table) - 1, 0, count)))


def karras(count: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """`get_sigmas_karras`: EDM (arXiv 2206.00364), eq. 5."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _with_zero((high + torch.linspace(0, 1, count) * (low - high)) ** rho)


def exponential(count: int, sigma_min: float, sigma_max: float) -> Tensor:
    """`get_sigmas_exponential`: evenly in log sigma."""
    return _with_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), count).exp())


def polyexponential(count: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """`get_sigmas_polyexponential`: polynomial in log sigma."""
    ramp = torch.linspace(1, 0, count) ** rho
    return _with_zero(torch.exp(ramp * (math.log(sigma_max) - math.log(sigma_min)) + math.log(sigma_min)))


def vp(count: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3) -> Tensor:
    """`get_sigmas_vp`: score SDE's variance-preserving process (EDM, table 1), evenly in time from 1 to eps_s."""
    t = torch.linspace(1, eps_s, count)
    return _with_zero(torch.sqrt(torch.exp(beta_d * t**2 / 2 + beta_min * t) - 1))


def _with_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros([1])])


# --- the maps of k-diffusion: float32 ---------------------------------------------------------------------------------


def level_at_time(log_table: Tensor, times: Tensor) -> Tensor:
    """`t_to_sigma`: linear in log sigma between whole times, in the dtype of the table.

    log_table: (T,). times: (...) within [0, T-1]; their fractions are float32 whatever the dtype of the table is.
    """
    times = times.float()
    low, high, weight = times.floor().long(), times.ceil().long(), times.frac()
    return ((1 - weight) * log_table[low] + weight * log_table[high]).exp()


def time_at_level(log_table: Tensor, levels: Tensor, quantize: bool = False) -> Tensor:
    """`sigma_to_t`: the inverse map, which stops at 0 and T-1; the nearest whole time with `quantize`.

    log_table: (T,) float32, T >= 2. levels: (n,) float32, positive. Returns (n,), float32, or int64 with `quantize`.
    """
    log_level = levels.log()
    distances = log_level - log_table[:, None]
    if quantize:
        return distances.abs().argmin(dim=0)
    low = distances.ge(0).cumsum(dim=0).argmax(dim=0).clamp(max=len(log_table) - 2)
    high = low + 1
    log_low, log_high = log_table[low], log_table[high]
    weight = ((log_low - log_level) / (log_low - log_high)).clamp(0, 1)
    return (1 - weight) * low + weight * high


# --- published: float64 on a float32 table; (n,) without the last level -----------------------------------------------


def published_level_at_time(table: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Linear in sigma between whole times. table: (T,) float32. times: (n,)."""
    return np.interp(times, np.arange(len(table)), table)


def published_time_at_level(table: np.ndarray, levels: Sequence[float] | np.ndarray) -> np.ndarray:
    """Linear in log sigma between whole times, stopping at 0 and T-1. table: (T,) float32, T >= 2. levels: (n,)."""
    log_table = np.log(table)
    log_level = np.log(np.maximum(levels, 1e-10))
    low = np.clip(np.searchsorted(log_table, log_level, side="right") - 1, 0, len(table) - 2)
    weight = np.clip((log_table[low] - log_level) / (log_table[low] - log_table[low + 1]), 0, 1)
    return (1 - weight) * low + weight * (low + 1)


def published_karras(count: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """`use_karras_sigmas`: EDM (arXiv 2206.00364), eq. 5."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + np.linspace(0, 1, count) * (low - high)) ** rho


def published_exponential(count: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """`use_exponential_sigmas`: evenly in log sigma."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), count))


def published_beta(count: int, sigma_min: float, sigma_max: float, shape: float = 0.6) -> np.ndarray:
    """`use_beta_sigmas`: at quantiles of the distribution Beta(0.6, 0.6), dense at both ends (arXiv 2407.12173)."""
    return sigma_min + _symmetric_beta_quantiles(1 - np.linspace(0, 1, count), shape) * (sigma_max - sigma_min)


def _symmetric_beta_quantiles(p: np.ndarray, a: float) -> np.ndarray:
    """x with P(X <= x) = p for X ~ Beta(a, a), by bisection of the series of the incomplete beta function."""
    lower = np.minimum(p, 1 - p)  # The rest by symmetry: the series converges fast where x <= 1/2.
    goal = lower * math.gamma(a) ** 2 / math.gamma(2 * a)
    low, high = np.zeros_like(p), np.full_like(p, 0.5)
    for _ in range(60):
        x = (low + high) / 2
        term, total = np.ones_like(x), np.full_like(x, 1 / a)
        for k in range(1, 60):
            term *= (k - a) / k * x
            total += term / (a + k)
        below = x**a * total < goal
        low, high = np.where(below, x, low), np.where(below, high, x)
    return np.where(p > 0.5, 1 - low, low)
