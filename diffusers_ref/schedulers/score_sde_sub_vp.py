"""Score-Based Generative Modeling through Stochastic Differential Equations (arXiv 2011.13456): the sub-VP SDE, eq. 12,
in the predictor samplers of Algorithm 1.

Notation as in `score_sde` and `score_sde_vp`. The network returns F, and the score is −F / std, std = 1 − e^{−∫β}.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.schedulers.score_sde import Corrector, Predictor, Rule, ScoreSdeScheduler, rows
from diffusers_ref.schedulers.score_sde_vp import (
    LABEL_SCALE,
    beta_at,
    check_betas,
    euler_maruyama,
    log_mean_factor,
)


class _ReverseDiffusion(NamedTuple):
    """x − (f·x/N − (g²/N)·s): eq. 46 with the Euler–Maruyama discretisation."""

    drift: float
    dt: float
    gain: float
    noise: float

    def __call__(self, x: Tensor, score: Tensor) -> Tensor:
        return x - (self.drift * x * self.dt - self.gain * score)


class ScoreSdeSubVpScheduler(ScoreSdeScheduler):
    """Sampling of the sub-VP SDE with a predictor.

    Options of the original (yang-song/score_sde_pytorch); HF diffusers has no such class:
        num_train_timesteps: N where `set_timesteps` is not told another.
        beta_min, beta_max: β at t = 0 and t = 1.
        sampling_eps: ε, where sampling ends.
        predictor: "euler_maruyama" or "reverse_diffusion".
        corrector: "none"; the original's correctors fail with this SDE.
        probability_flow: "reverse_diffusion" follows the probability flow ODE (eq. 13) instead of the SDE.
        noise_removal: the predictor adds no noise in the last step.

    The network is given t · 999. Quirk of the original: Euler–Maruyama steps are 1/N long, although the levels are
    (1−ε)/(N−1) apart.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 2000,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        sampling_eps: float = 1e-3,
        predictor: str = "euler_maruyama",
        corrector: str = "none",
        probability_flow: bool = False,
        noise_removal: bool = True,
    ) -> None:
        crashes = (Predictor.ANCESTRAL_SAMPLING, Corrector.LANGEVIN, Corrector.ALD)
        self._choose(predictor, corrector, probability_flow, correct_steps=1, crashes=crashes)
        check_betas(beta_min, beta_max)

    # --- the SDE -----------------------------------------------------------------------------------------------------

    def _marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_mean = log_mean_factor(t, self.config.beta_min, self.config.beta_max)
        return torch.exp(log_mean), 1 - torch.exp(2.0 * log_mean)

    def labels(self, t: Tensor) -> Tensor:
        return t * LABEL_SCALE

    def score_divisors(self, t: Tensor) -> Tensor:
        return -self._marginal(t)[1]

    def drift_and_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.config.beta_min, self.config.beta_max
        beta = beta_at(t, low, high)
        discount = 1.0 - torch.exp(-2 * low * t - (high - low) * t**2)
        return -0.5 * beta, torch.sqrt(beta * discount)

    def _make_tables(self, count: int) -> None:
        pass  # This SDE has no discrete chain.

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _rules(self, t: Tensor) -> list[Rule]:
        drift, diffusion = self.drift_and_diffusion(t)
        if self._predictor is Predictor.EULER_MARUYAMA:
            return euler_maruyama(drift, diffusion)
        step = 1 / len(t)
        diffusion = diffusion * torch.sqrt(torch.tensor(step, dtype=t.dtype))
        noise = torch.zeros_like(t) if self.config.probability_flow else diffusion
        return rows(_ReverseDiffusion, drift, step, diffusion**2 * self._score_weight, noise)
