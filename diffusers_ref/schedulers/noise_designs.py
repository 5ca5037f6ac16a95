"""The design choices of a sampling ODE, EDM (arXiv 2206.00364), table 1: time steps, schedule σ(t), scaling s(t).

    x = s(t) · (x_0 + σ(t) · n)        dx/dt = (σ'/σ + s'/s) · x − (σ' · s/σ) · D(x/s; σ)        (eq. 4 and 81)

    code                       paper
    NoiseSchedule              σ(t), σ'(t) and its inverse t(σ)
    Scaling                    s(t) and s'(t)
    vp_, ve_, iddpm_, edm_levels   the discretisation: σ(t_i) for i = 0 ... N−1

Everything is float64. NVlabs' code makes its time steps at once, and all else one step at a time, which shows in the
last bit of exponentials: `at_once` says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.schedulers.preconditioning import BETA_D, BETA_MIN, each, next_iddpm_level


class Discretization(str, Enum):
    """Where the time steps lie."""

    VP = "vp"
    """Linear in the time of VP, from 1 to epsilon_s."""
    VE = "ve"
    """Geometric in σ²."""
    IDDPM = "iddpm"
    """Evenly among the levels of a chain of M timesteps."""
    EDM = "edm"
    """Linear in σ^(1/ρ), eq. 5."""


class ScheduleKind(str, Enum):
    """How the noise level depends on the time of the ODE."""

    VP = "vp"
    """σ(t) = √(exp(½ β_d t² + β_min t) − 1)."""
    VE = "ve"
    """σ(t) = √t."""
    LINEAR = "linear"
    """σ(t) = t (iDDPM, EDM)."""


class ScalingKind(str, Enum):
    """How the signal is scaled."""

    VP = "vp"
    """s(t) = 1/√(1 + σ(t)²): the state has unit variance."""
    NONE = "none"
    """s(t) = 1."""


class NoiseSchedule(Protocol):
    """σ(t); every method takes () or (n,) and returns the like, or a number that is the same everywhere."""

    def sigma(self, t: Tensor, at_once: bool = False) -> Tensor: ...

    def derivative(self, t: Tensor) -> Tensor | float: ...

    def time(self, sigma: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class VPSchedule:
    """beta_d, beta_min: of β(t), so chosen that σ(epsilon_s) and σ(1) are the ends of the range (eq. 199)."""

    beta_d: float
    beta_min: float

    @classmethod
    def between(cls, sigma_min: float, sigma_max: float, epsilon_s: float) -> VPSchedule:
        low, high = (float(np.log(sigma**2 + 1)) for sigma in (sigma_min, sigma_max))
        beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
        return cls(beta_d, high - 0.5 * beta_d)

    def sigma(self, t: Tensor, at_once: bool = False) -> Tensor:
        exponent = 0.5 * self.beta_d * t**2 + self.beta_min * t
        power = _exponential(exponent) if at_once else each(_exponential, exponent)
        return (power - 1) ** 0.5

    def derivative(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return 0.5 * (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma)

    def time(self, sigma: Tensor) -> Tensor:
        log = (sigma**2 + 1).log()
        return ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() - self.beta_min) / self.beta_d


@dataclass(frozen=True)
class VESchedule:
    def sigma(self, t: Tensor, at_once: bool = False) -> Tensor:
        return t.sqrt()

    def derivative(self, t: Tensor) -> Tensor:
        return 0.5 / t.sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return sigma**2


@dataclass(frozen=True)
class LinearSchedule:
    def sigma(self, t: Tensor, at_once: bool = False) -> Tensor:
        return t

    def derivative(self, t: Tensor) -> float:
        return 1.0

    def time(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class Scaling:
    """s(t), of the kind `kind`, for a noise schedule."""

    kind: ScalingKind
    schedule: NoiseSchedule

    def scale(self, t: Tensor) -> Tensor | float:
        if self.kind is ScalingKind.NONE:
            return 1.0
        return 1 / (1 + self.schedule.sigma(t) ** 2).sqrt()

    def derivative(self, t: Tensor) -> Tensor | float:
        if self.kind is ScalingKind.NONE:
            return 0.0
        return -self.schedule.sigma(t) * self.schedule.derivative(t) * (self.scale(t) ** 3)


LINEAR = LinearSchedule()
UNSCALED = Scaling(ScalingKind.NONE, LINEAR)


def slope_factors(schedule: NoiseSchedule, scaling: Scaling, t: Tensor) -> tuple[Tensor, Tensor]:
    """Of x and of D(x/s; σ) in dx/dt, eq. 81, at t: (n,)."""
    sigma, derivative, scale = schedule.sigma(t), schedule.derivative(t), scaling.scale(t)
    return derivative / sigma + scaling.derivative(t) / scale, derivative * scale / sigma


def _exponential(exponent: Tensor) -> Tensor:
    return math.e**exponent


def default_range(discretization: Discretization, epsilon_s: float) -> tuple[float, float]:
    """σ_min and σ_max of table 1; those of VP are σ(epsilon_s) and σ(1)."""
    if discretization is Discretization.VP:
        low, high = (math.e ** (0.5 * BETA_D * t**2 + BETA_MIN * t) for t in (epsilon_s, 1))
        return (low - 1) ** 0.5, (high - 1) ** 0.5
    return {
        Discretization.VE: (0.02, 100.0),
        Discretization.IDDPM: (0.002, 81.0),
        Discretization.EDM: (0.002, 80.0),
    }[discretization]


def edm_levels(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """(n,) eq. 5."""
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (first + _ramp(steps) * (last - first)) ** rho


def vp_levels(steps: int, schedule: VPSchedule, epsilon_s: float) -> Tensor:
    """(n,) σ at times that fall evenly from 1 to epsilon_s."""
    return schedule.sigma(1 + _ramp(steps) * (epsilon_s - 1), at_once=True)


def ve_levels(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """(n,) the root of σ², which falls geometrically."""
    return ((sigma_max**2) * ((sigma_min**2 / sigma_max**2) ** _ramp(steps))).sqrt()


def iddpm_levels(steps: int, sigma_min: float, sigma_max: float, c_1: float, c_2: float, num_levels: int) -> Tensor:
    """(n,) even positions among those levels u_j of the chain that lie in the range; equal ones where they are few."""
    u = chain_levels(c_1, c_2, num_levels)
    inside = u[(u >= sigma_min) & (u <= sigma_max)]
    if not len(inside):
        raise ValueError(f"no level of the chain of {num_levels} lies between sigma_min={sigma_min} and {sigma_max}")
    stride = (len(inside) - 1) / max(steps - 1, 1)
    return inside[(stride * torch.arange(steps, dtype=torch.float64)).round().long()]


def _ramp(steps: int) -> Tensor:
    """(n,) 0 to 1; 0 for one step, where the original divides by zero."""
    return torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)


@lru_cache(maxsize=8)
def chain_levels(c_1: float, c_2: float, num_levels: int) -> Tensor:
    """(M + 1,) u_j of iDDPM in float64, each from the one below it; C_1 makes u_0 only."""
    u = torch.zeros(num_levels + 1, dtype=torch.float64)
    for j in torch.arange(num_levels, 0, -1):
        u[j - 1] = next_iddpm_level(u[j], j, c_1, c_2, num_levels)
    return u
