"""How a sampler in σ talks to a network: the preconditionings of EDM (arXiv 2206.00364), table 1 and equation 7.

    D(x; σ) = c_skip(σ) · x + c_out(σ) · F(c_in(σ) · x; c_noise(σ))

    code                 paper
    sigma                σ, the standard deviation of the noise in x
    c_skip, c_out, c_in  the scalings of the skip connection, of the network's output and of its input
    label                c_noise, what the network is given as time
    sigma_min, sigma_max the noise levels that the network knows

The networks compute in float32, and so does NVlabs' code here: a label is made of σ rounded to float32, whatever the
precision of the sampler's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError

BETA_D, BETA_MIN = 19.9, 0.1
"""The noise schedule of VP, β(t) = β_d · t + β_min."""
NUM_TRAIN_TIMESTEPS = 1000
"""M, the timesteps that networks of DDPM were trained with."""
C_1, C_2 = 0.001, 0.008
"""iDDPM: the smallest ᾱ_(j−1)/ᾱ_j, and the offset of the cosine."""


class Scalings(NamedTuple):
    """Each (n,), in the dtype of σ."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Preconditioning(str, Enum):
    """The columns of table 1: which network a sampler is run with."""

    EDM = "edm"
    """The paper's own: input and target of the network have unit variance; c_noise = ln(σ)/4."""
    VP = "vp"
    """DDPM++ of score SDE: the network predicts the noise; c_noise = 999 · t(σ)."""
    VE = "ve"
    """NCSN++ of score SDE: the network predicts the negative noise; c_noise = ln(σ/2)."""
    IDDPM = "iddpm"
    """improved and guided diffusion: the network predicts the noise (and a variance) at integer timesteps."""


class Preconditioner(Protocol):
    """One preconditioning."""

    @property
    def sigma_min(self) -> float:
        """The smallest noise level that the network knows."""

    @property
    def sigma_max(self) -> float:
        """The largest."""

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """(...) -> (...): the nearest levels that the network knows, in the dtype of `sigma`."""

    def scalings(self, sigma: Tensor) -> Scalings:
        """The scalings at σ (n,), in its dtype."""

    def label(self, sigma: Tensor) -> Tensor:
        """(n,) c_noise at σ (n,) float32."""


@dataclass(frozen=True)
class EDMPreconditioner:
    """The paper's own, section 5.

    sigma_data: standard deviation of the data.
    sign: of c_out; −1 for networks whose output is a velocity, x_0 being the negative part (HF's "v_prediction").
    """

    sigma_data: float = 0.5
    sign: float = 1.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def scalings(self, sigma: Tensor) -> Scalings:
        variance = self.sigma_data**2
        c_skip = variance / (sigma**2 + variance)
        c_out = sigma * (self.sign * self.sigma_data) / (sigma**2 + variance).sqrt()
        return Scalings(c_skip, c_out, 1 / (variance + sigma**2).sqrt())

    def label(self, sigma: Tensor) -> Tensor:
        return each(torch.log, sigma) / 4


@dataclass(frozen=True)
class VPPreconditioner:
    """Appendix C.1; the smallest level is that of t = 10⁻⁵."""

    @property
    def sigma_min(self) -> float:
        return float(_vp_sigma(torch.tensor(1e-5)))

    @property
    def sigma_max(self) -> float:
        return float(_vp_sigma(torch.tensor(1)))

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def scalings(self, sigma: Tensor) -> Scalings:
        return Scalings(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt())

    def label(self, sigma: Tensor) -> Tensor:
        t = ((BETA_MIN**2 + 2 * BETA_D * each(torch.log, 1 + sigma**2)).sqrt() - BETA_MIN) / BETA_D
        return (NUM_TRAIN_TIMESTEPS - 1) * t


@dataclass(frozen=True)
class VEPreconditioner:
    """Appendix C.2."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def scalings(self, sigma: Tensor) -> Scalings:
        return Scalings(torch.ones_like(sigma), sigma.clone(), torch.ones_like(sigma))

    def label(self, sigma: Tensor) -> Tensor:
        return each(torch.log, 0.5 * sigma)


@dataclass(frozen=True)
class ScorePreconditioner(VEPreconditioner):
    """Networks of score SDE as they are, trained on pixels in [0, 1] (eq. 213): their time is σ/2."""

    def label(self, sigma: Tensor) -> Tensor:
        return sigma / 2


@dataclass(frozen=True)
class IDDPMPreconditioner:
    """Appendix C.3: only the M levels u_j of the discrete chain exist, and c_noise is the number of one.

    The nearest level is found as the original finds it, by `torch.cdist` in float32.
    """

    @property
    def sigma_min(self) -> float:
        return float(_iddpm_levels()[NUM_TRAIN_TIMESTEPS - 1])

    @property
    def sigma_max(self) -> float:
        return float(_iddpm_levels()[0])

    def _nearest(self, sigma: Tensor) -> Tensor:
        levels = _iddpm_levels()
        return torch.cdist(sigma.float().reshape(1, -1, 1), levels.reshape(1, -1, 1)).argmin(2).reshape(sigma.shape)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return _iddpm_levels()[self._nearest(sigma)].to(sigma.dtype)

    def scalings(self, sigma: Tensor) -> Scalings:
        return VPPreconditioner().scalings(sigma)

    def label(self, sigma: Tensor) -> Tensor:
        return (NUM_TRAIN_TIMESTEPS - 1 - each(self._nearest, sigma)).float()


def each(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """`function` of every element by itself: of a whole vector, logarithms, powers and the like can differ in the last
    bit, and originals make them one at a time."""
    return torch.stack([function(value) for value in values]) if values.ndim else function(values)


def make_preconditioner(kind: Preconditioning, sigma_data: float) -> Preconditioner:
    """The preconditioner of a kind. Raises ConfigError for a `sigma_data` that a kind has no use for."""
    if kind is Preconditioning.EDM:
        return EDMPreconditioner(sigma_data)
    if sigma_data != EDMPreconditioner.sigma_data:
        raise ConfigError(f"sigma_data={sigma_data} has no effect with preconditioning={kind.value!r}")
    return {
        Preconditioning.VP: VPPreconditioner,
        Preconditioning.VE: VEPreconditioner,
        Preconditioning.IDDPM: IDDPMPreconditioner,
    }[kind]()


def _vp_sigma(t: Tensor) -> Tensor:
    return ((0.5 * BETA_D * t**2 + BETA_MIN * t).exp() - 1).sqrt()


@lru_cache(maxsize=1)
def _iddpm_levels() -> Tensor:
    """(M + 1,) u_0 > u_1 > ... > u_M = 0 in float32, each from the one below it."""
    u = torch.zeros(NUM_TRAIN_TIMESTEPS + 1)
    for j in range(NUM_TRAIN_TIMESTEPS, 0, -1):
        u[j - 1] = next_iddpm_level(u[j], torch.tensor(j), C_1, C_2, NUM_TRAIN_TIMESTEPS)
    return u


def next_iddpm_level(u: Tensor, j: Tensor, c_1: float, c_2: float, steps: int) -> Tensor:
    """u_(j−1) from u_j, in the dtype of `u`; ᾱ of the integer `j` is in float32, as a quotient of integers is there."""
    ratio = _cosine_alpha_bar(j - 1, c_2, steps) / _cosine_alpha_bar(j, c_2, steps)
    return ((u**2 + 1) / ratio.clip(min=c_1) - 1).sqrt()


def _cosine_alpha_bar(j: Tensor, c_2: float, steps: int) -> Tensor:
    return (0.5 * math.pi * j.float() / steps / (c_2 + 1)).sin() ** 2
