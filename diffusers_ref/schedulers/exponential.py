"""Exponential integrators in σ space: time is t = −log σ, half the logarithm of the signal-to-noise ratio.

    code                  paper
    time_of(σ)            λ = −log σ (DPM-Solver, arXiv 2206.00927; its σ/α is σ here)
    level_of(t)           σ = e^−λ
    h                     h = λ_next − λ, the length of a step
    eps, eps_1, eps_2     ε_θ at t, t + r_1 h, t + r_2 h
    first_order ...       DPM-Solver-1, -2 (algorithm 1) and -3 (algorithm 2)

In x = x_0 + σ·n coordinates, DPM-Solver's α is 1, and a step with a constant ε is x_next = x − σ_next (e^h − 1) ε. The
coefficients are arithmetic on tensors, in the precision of the levels and in the order of k-diffusion; they become
numbers once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.schedulers.ancestral import ancestral_step

THIRD, TWO_THIRDS = 1 / 3, 2 / 3
"""r_1 and r_2 of DPM-Solver-3."""


def time_of(sigma: Tensor) -> Tensor:
    """t = −log σ, shaped like σ; infinite for σ = 0."""
    return sigma.log().neg()


def level_of(time: Tensor) -> Tensor:
    """σ = exp(−t), shaped like t."""
    return time.neg().exp()


def lengths_before(h: Tensor, count: int) -> Tensor:
    """(n,) from the lengths of n steps: that of the step `count` before each; 0 where there is none."""
    return torch.cat([h.new_zeros(count), h])[: len(h)]


def ends_of(config: Mapping[str, Any], table: Tensor) -> tuple[float, float]:
    """The options sigma_min and sigma_max, by default the ends of the table of levels. Raises ConfigError."""
    low, high = config["sigma_min"], config["sigma_max"]
    low, high = table[0].item() if low is None else low, table[-1].item() if high is None else high
    if not 0 < low < high < math.inf:
        raise ConfigError(f"sigma_min={low!r} and sigma_max={high!r}; allowed: 0 < sigma_min < sigma_max")
    return low, high


def noisy_end(t: Tensor, t_next: Tensor, t_last: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """() where a step with noise goes down to, at most t_last, and the deviation of the noise back to t_next."""
    if not eta:
        return t_next, torch.zeros_like(t_next)
    down, _ = ancestral_step(level_of(t), level_of(t_next), eta)
    t_down = torch.minimum(t_last, time_of(down))
    # Clamped, as rounding can make 0 negative for a tiny η, where the original returns NaN.
    return t_down, (level_of(t_next) ** 2 - level_of(t_down) ** 2).clamp(min=0) ** 0.5


class Transfer(NamedTuple):
    """The coefficients of one step, as numbers."""

    whole: float  # σ_next (e^h − 1)
    inner: float = 0.0  # σ_s1 (e^{r_1 h} − 1)
    curve: float = 0.0  # of the last difference of ε
    inner_2: float = 0.0  # σ_s2 (e^{r_2 h} − 1)
    bend: float = 0.0  # of ε_1 − ε on the way to s_2

    def advance(self, order: int, stage: int, x: Tensor, eps: Tensor, newest: Tensor) -> Tensor:
        """What follows the evaluation `newest`, ε_stage, in a step of `order` from x, where ε is `eps`: u_1 or u_2, at
        which the next one is made, or x_next."""
        if stage == order - 1:
            end = x - self.whole * eps
            return end - self.curve * (newest - eps) if stage else end
        if stage == 0:
            return x - self.inner * eps  # u_1
        return x - self.inner_2 * eps - self.bend * (newest - eps)  # u_2


def first_order(t: Tensor, t_next: Tensor) -> Transfer:
    """DPM-Solver-1, which is DDIM."""
    return Transfer(whole=(level_of(t_next) * (t_next - t).expm1()).item())


def second_order(t: Tensor, t_next: Tensor, r_1: float = 1 / 2) -> Transfer:
    """DPM-Solver-2, with its evaluation at t + r_1 h."""
    h = t_next - t
    return Transfer(
        whole=(level_of(t_next) * h.expm1()).item(),
        inner=(level_of(t + r_1 * h) * (r_1 * h).expm1()).item(),
        curve=(level_of(t_next) / (2 * r_1) * h.expm1()).item(),
    )


def third_order(t: Tensor, t_next: Tensor) -> Transfer:
    """DPM-Solver-3, with its evaluations at t + h/3 and t + 2h/3."""
    h = t_next - t
    s_1, s_2 = t + THIRD * h, t + TWO_THIRDS * h
    return Transfer(
        whole=(level_of(t_next) * h.expm1()).item(),
        inner=(level_of(s_1) * (THIRD * h).expm1()).item(),
        curve=(level_of(t_next) / TWO_THIRDS * _remainder(h)).item(),
        inner_2=(level_of(s_2) * (TWO_THIRDS * h).expm1()).item(),
        bend=(level_of(s_2) * (TWO_THIRDS / THIRD) * _remainder(TWO_THIRDS * h)).item(),
    )


def _remainder(h: Tensor) -> Tensor:
    """(e^h − 1)/h − 1, which vanishes with h."""
    return h.expm1() / h - 1 if h else torch.zeros_like(h)
