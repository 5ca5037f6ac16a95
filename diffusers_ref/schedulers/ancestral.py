"""The split of one step into a deterministic part and fresh noise (DDIM, arXiv 2010.02502, eq. 16, in σ space).

A step from σ to σ' < σ goes down to σ_down and returns to σ' by noise of the deviation σ_up:

    σ_up = min(σ', η √(σ'² (σ² − σ'²) / σ²)),    σ_down² + σ_up² = σ'².

η = 0 adds no noise; η = 1 is as noisy as ancestral sampling of DDPM.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError


def ancestral_step(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """σ_down and σ_up, shaped like the levels, in their precision and in the order of k-diffusion's
    `get_ancestral_step`."""
    if not eta:
        return sigma_next, torch.zeros_like(sigma_next)
    fresh = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    up = torch.where(fresh < sigma_next, fresh, sigma_next)
    return (sigma_next**2 - up**2) ** 0.5, up


def check_noise_options(eta: float, s_noise: float) -> None:
    """Raises ConfigError unless both are finite numbers of at least 0."""
    for name, value in (("eta", eta), ("s_noise", s_noise)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ConfigError(f"{name}={value!r} is not allowed; it must be a number of at least 0")
