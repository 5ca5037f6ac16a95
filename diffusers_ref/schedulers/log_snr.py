"""The log-SNR schedule of DPM-Solver (arXiv 2206.00927, section 2 and appendix D) and the grids of times made from it.

    code              paper
    t                 t, continuous: (i + 1)/N for training step i
    log_alpha(t)      log α_t
    std(t)            σ_t = √(1 − α_t²)
    half_log_snr(t)   λ_t = log α_t − log σ_t
    time(λ)           t_λ(·), the inverse function of λ_t
    end               T, where sampling begins; it ends at 1/N

A discrete chain becomes continuous by linear interpolation of log α. DPM-Solver (LuChengTHU/dpm-solver) and UniPC
(wl-zhao/UniPC) share this code; DPM-Solver alone cuts off the noisy end of the chain, see `clip_log_alphas`.

A function keeps the shape of what it is given, as torch rounds `logaddexp` of a vector and of a number differently.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError


class LogSnrKind(str, Enum):
    """Where log α_t comes from."""

    DISCRETE = "discrete"
    """UniPC: the chain, interpolated."""
    DISCRETE_CLIPPED = "discrete_clipped"
    """DPM-Solver: the chain without its first steps of λ < −5.1, stretched to (0, 1] again (a quirk), interpolated."""
    LINEAR = "linear"
    """DPM-Solver, UniPC: the VP SDE (arXiv 2011.13456), β(t) linear from beta_0 to beta_1; the network is given t."""
    COSINE = "cosine"
    """UniPC: the continuous cosine schedule, from T = 0.9946; the network is given t."""


class SkipType(str, Enum):
    """Which times of [1/N, T] are visited."""

    LOG_SNR = "logSNR"
    """Uniform in λ."""
    TIME_UNIFORM = "time_uniform"
    """Uniform in t."""
    TIME_QUADRATIC = "time_quadratic"
    """Uniform in √t."""


class Levels(NamedTuple):
    """Where x_t = α_t·x_0 + σ_t·n is on its way, at n times: each (n,), or rows of them, on the CPU."""

    alpha: Tensor
    sigma: Tensor
    log_alpha: Tensor
    half_log_snr: Tensor

    def at(self, index: Any) -> Levels:
        """Those of some of the times, as a tensor is indexed."""
        return Levels(*(column[index] for column in self))


class LogSnr(ABC):
    """α_t, σ_t and λ_t of a variance preserving process, in float32 (or in the dtype of its table)."""

    end: float = 1.0
    """T."""
    steps: int = 1000
    """N."""

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log α_t; t is a number or (n,)."""

    @abstractmethod
    def time(self, half_log_snr: Tensor) -> Tensor:
        """(n,) the t of each λ, for λ a number or (n,)."""

    def alpha(self, t: Tensor) -> Tensor:
        """α_t."""
        return torch.exp(self.log_alpha(t))

    def std(self, t: Tensor) -> Tensor:
        """σ_t."""
        return torch.sqrt(1.0 - torch.exp(2.0 * self.log_alpha(t)))

    def half_log_snr(self, t: Tensor) -> Tensor:
        """λ_t."""
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * torch.log(1.0 - torch.exp(2.0 * log_alpha))

    def levels(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Levels:
        """The levels at t, (n,): log α, σ and λ are tables, handed out in `dtype`; α is arithmetic on log α."""
        columns = (self.log_alpha(t), self.std(t), self.half_log_snr(t))
        log_alpha, sigma, half_log_snr = (column.reshape(-1).to(dtype) for column in columns)
        return Levels(torch.exp(log_alpha), sigma, log_alpha, half_log_snr)

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is given for t: for a continuous process t itself."""
        return t

    def time_of_network(self, network_time: Tensor) -> Tensor:
        """The t for which the network is given `network_time`."""
        return network_time

    def times(self, skip_type: SkipType, count: int, begin: float | None = None, end: float | None = None) -> Tensor:
        """(count + 1,) times from `begin` (by default T) down to `end` (by default 1/N)."""
        begin = self.end if begin is None else begin
        end = 1.0 / self.steps if end is None else end
        if skip_type is SkipType.LOG_SNR:
            first, last = (self.half_log_snr(torch.tensor(t)).item() for t in (begin, end))
            return self.time(torch.linspace(first, last, count + 1))
        if skip_type is SkipType.TIME_QUADRATIC:
            return torch.linspace(begin**0.5, end**0.5, count + 1).pow(2)
        return torch.linspace(begin, end, count + 1)


class DiscreteLogSnr(LogSnr):
    """A chain of N steps, log α_t piecewise linear in t; beyond the ends the outermost pieces go on.

    log_alphas: (N,), falling. Its dtype is the table's.
    """

    def __init__(self, log_alphas: Tensor) -> None:
        self.steps = len(log_alphas)
        self.log_alphas = log_alphas
        self.grid = torch.linspace(0.0, 1.0, self.steps + 1)[1:].to(log_alphas.dtype)
        self._rising_log_alphas, self._falling_grid = log_alphas.flip(0), self.grid.flip(0)

    def log_alpha(self, t: Tensor) -> Tensor:
        return interpolate(t.reshape(-1), self.grid, self.log_alphas)

    def time(self, half_log_snr: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.logaddexp(torch.zeros(1), -2.0 * half_log_snr)
        return interpolate(log_alpha.reshape(-1), self._rising_log_alphas, self._falling_grid)

    def network_time(self, t: Tensor) -> Tensor:
        """The fractional training step of t, on a scale of 1000 steps whatever N is (a quirk)."""
        return (t - 1.0 / self.steps) * 1000.0

    def time_of_network(self, network_time: Tensor) -> Tensor:
        return network_time / 1000.0 + 1.0 / self.steps


class LinearLogSnr(LogSnr):
    """The VP SDE with β(t) = beta_0 + t (beta_1 − beta_0)."""

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0) -> None:
        self.beta_0, self.beta_1 = beta_0, beta_1

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def time(self, half_log_snr: Tensor) -> Tensor:
        slope = self.beta_1 - self.beta_0
        rise = 2.0 * slope * torch.logaddexp(-2.0 * half_log_snr, torch.zeros(1).to(half_log_snr))
        return rise / (torch.sqrt(self.beta_0**2 + rise) + self.beta_0) / slope


class CosineLogSnr(LogSnr):
    """α_t = cos(π/2 · (t + s)/(1 + s)) / cos(π/2 · s/(1 + s)), s = 0.008."""

    end = 0.9946
    _s = 0.008
    _log_alpha_0 = math.log(math.cos(_s / (1.0 + _s) * math.pi / 2.0))

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(torch.cos((t + self._s) / (1.0 + self._s) * math.pi / 2.0)) - self._log_alpha_0

    def time(self, half_log_snr: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.logaddexp(-2.0 * half_log_snr, torch.zeros(1).to(half_log_snr))
        angle = torch.arccos(torch.exp(log_alpha + self._log_alpha_0))
        return angle * 2.0 * (1.0 + self._s) / math.pi - self._s


def discrete_log_snr(
    *,
    betas: Tensor | None = None,
    alphas_cumprod: Tensor | None = None,
    clipped: bool,
    dtype: torch.dtype = torch.float32,
) -> DiscreteLogSnr:
    """The schedule of a chain given by `betas` or by `alphas_cumprod`, (N,) on the CPU.

    log α is computed in the dtype of what is given and then rounded to `dtype`: from betas as the sum of log(1 − β), so
    the two differ in rounding. clipped: DPM-Solver's cut, see `clip_log_alphas`; False for UniPC.
    """
    if (betas is None) == (alphas_cumprod is None):
        raise ValueError("give either betas or alphas_cumprod")
    if betas is not None:
        log_alphas = 0.5 * torch.log(1 - betas).cumsum(dim=0)
    else:
        assert alphas_cumprod is not None
        log_alphas = 0.5 * torch.log(alphas_cumprod)
    kept = clip_log_alphas(log_alphas) if clipped else log_alphas
    if len(kept) < 2:
        raise ConfigError(f"a chain of at least 2 steps is needed to interpolate log alpha; {len(kept)} left to use")
    if not kept.isfinite().all():
        raise ConfigError("abar falls to 0, where lambda is infinite; 'discrete_clipped' leaves that end out")
    return DiscreteLogSnr(kept.to(dtype))


def clip_log_alphas(log_alphas: Tensor, lowest: float = -5.1) -> Tensor:
    """log α without the steps at the noisy end where λ is below `lowest` (meant for cosine schedules)."""
    half_log_snr = log_alphas - 0.5 * torch.log(1.0 - torch.exp(2.0 * log_alphas))
    cut = int(torch.searchsorted(half_log_snr.flip(0), lowest))
    return log_alphas[: len(log_alphas) - cut]


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """(n,) the piecewise linear function through (xs, ys), (K,) with rising xs, at x (n,); linear beyond the ends.

    A keypoint belongs to the piece that ends there, so its value is computed, not looked up.
    """
    dtype = torch.promote_types(x.dtype, xs.dtype)
    x, xs = x.to(dtype), xs.to(dtype)
    start = (torch.searchsorted(xs, x) - 1).clamp(0, len(xs) - 2)
    x_0, x_1, y_0, y_1 = xs[start], xs[start + 1], ys[start], ys[start + 1]
    return y_0 + (x - x_0) * (y_1 - y_0) / (x_1 - x_0)


def levels_of_ratios(ratios: Tensor, dtype: torch.dtype, flow: bool = False) -> Levels:
    """The levels of σ/α, (n,), 0 included; with `flow` of x_t = (1 − σ)·x_0 + σ·n, where `ratios` holds σ itself."""
    ratios = ratios.to(dtype)
    alpha = 1 - ratios if flow else 1 / (ratios**2 + 1) ** 0.5
    sigma = ratios if flow else ratios * alpha
    return Levels(alpha, sigma, torch.log(alpha), torch.log(alpha) - torch.log(sigma))


def singlestep_orders(steps: int, order: int) -> list[int]:
    """DPM-Solver-fast (section 3.4): the order of each step, at most `order`, with `steps` evaluations together."""
    if steps < 1 or not 1 <= order <= 3:
        raise ValueError(f"steps={steps}, order={order} are not allowed; at least 1 step, and order 1, 2 or 3")
    whole, rest = divmod(steps, order)
    if order < 3 or rest:
        return [order] * whole + ([rest] if rest else [])
    return [3] * (whole - 1) + [2, 1]


def outer_times(
    schedule: LogSnr,
    skip_type: SkipType,
    steps: int,
    orders: Sequence[int],
    begin: float | None = None,
    end: float | None = None,
) -> Tensor:
    """(K + 1,) the ends of K singlestep steps of these orders, `steps` evaluations together; see `LogSnr.times`.

    Uniform in λ, or else those times of the grid of `steps` evaluations at which a step ends.
    """
    if skip_type is SkipType.LOG_SNR:
        return schedule.times(skip_type, len(orders), begin, end)
    return schedule.times(skip_type, steps, begin, end)[torch.cumsum(torch.tensor([0, *orders]), 0)]
