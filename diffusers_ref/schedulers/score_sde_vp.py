"""Score-Based Generative Modeling through Stochastic Differential Equations (arXiv 2011.13456): the variance preserving
SDE, eq. 11 and 32, in the predictor–corrector samplers of Algorithms 1, 3 and 5.

    code                  paper
    beta                  β(t) = β_min + t·(β_max − β_min)
    discrete_betas        β_i, i = 1 … N, evenly spaced from β_min/N to β_max/N
    std                   √(1 − e^{−∫β}), the standard deviation of x_t given x_0

and further as in `score_sde`. The network returns F, and the score is −F / std.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.schedulers.score_sde import EulerMaruyama, Predictor, Rule, ScoreSdeScheduler, rows

LABEL_SCALE = 999
"""The network is given t · 999: continuously trained networks expect the times of a chain of 1000."""


class _ReverseDiffusion(NamedTuple):
    """x − ((√(1−β_i)·x − x) − β_i·s): eq. 46 with the discretisation of DDPM."""

    root: float
    gain: float
    noise: float

    def __call__(self, x: Tensor, score: Tensor) -> Tensor:
        return x - ((self.root * x - x) - self.gain * score)


class _Ancestral(NamedTuple):
    """(x + β_i·s) / √(1−β_i): eq. 4."""

    gain: float
    root: float
    noise: float

    def __call__(self, x: Tensor, score: Tensor) -> Tensor:
        return (x + self.gain * score) / self.root


class ScoreSdeVpScheduler(ScoreSdeScheduler):
    """Predictor–corrector sampling of the VP SDE.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: N where `set_timesteps` is not told another.
        beta_min, beta_max: β at t = 0 and t = 1.
        sampling_eps: ε, where sampling ends.
    Conventions of the original (yang-song/score_sde_pytorch):
        predictor, corrector: see `Predictor` and `Corrector`; by default the published class's Euler–Maruyama alone.
        snr, correct_steps: r of the corrector, and its sub-steps at every level.
        probability_flow: "reverse_diffusion" follows the probability flow ODE (eq. 13) instead of the SDE.
        noise_removal: the predictor adds no noise in the last step. Without a predictor it changes nothing.
        continuous: the network is given t · 999 and the score is −F / std(t); else t · (N−1), and std is that of the
            discrete chain (DDPM).

    Quirks of the original: Langevin step sizes depend on the whole batch; Euler–Maruyama steps are 1/N long, although
    the levels are (1−ε)/(N−1) apart.
    """

    convention_options = frozenset(
        {"predictor", "corrector", "snr", "correct_steps", "probability_flow", "noise_removal", "continuous"}
    )

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 2000,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        sampling_eps: float = 1e-3,
        predictor: str = "euler_maruyama",
        corrector: str = "none",
        snr: float = 0.16,
        correct_steps: int = 1,
        probability_flow: bool = False,
        noise_removal: bool = True,
        continuous: bool = True,
    ) -> None:
        self._choose(predictor, corrector, probability_flow, correct_steps)
        check_betas(beta_min, beta_max)

    # --- the SDE -----------------------------------------------------------------------------------------------------

    def _marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_mean = log_mean_factor(t, self.config.beta_min, self.config.beta_max)
        return torch.exp(log_mean), torch.sqrt(1.0 - torch.exp(2.0 * log_mean))

    def _make_tables(self, count: int) -> None:
        self.discrete_betas = torch.linspace(self.config.beta_min / count, self.config.beta_max / count, count)
        self._discrete_alphas = 1.0 - self.discrete_betas
        self.alphas_cumprod = torch.cumprod(self._discrete_alphas, dim=0)
        largest, ancestral = self.discrete_betas[-1], self._predictor is Predictor.ANCESTRAL_SAMPLING
        steps_of_chain = self._predictor is Predictor.REVERSE_DIFFUSION or ancestral or self._correct_steps
        if (steps_of_chain and (largest > 1 or (ancestral and largest == 1))) or not (
            self.config.continuous or (self.alphas_cumprod < 1).all()
        ):
            raise ValueError(
                f"num_inference_steps={count} gives beta = {largest:g} at the first level, where the original takes "
                f"the root of a negative number or divides by 0; take more than beta_max={self.config.beta_max:g} steps"
            )

    def labels(self, t: Tensor) -> Tensor:
        return t * (LABEL_SCALE if self.config.continuous else len(self._levels) - 1)

    def score_divisors(self, t: Tensor) -> Tensor:
        if self.config.continuous:
            return -self._marginal(t)[1]
        return -torch.sqrt(1.0 - self.alphas_cumprod)[self.labels(self._levels).long()]

    def drift_and_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = beta_at(t, self.config.beta_min, self.config.beta_max)
        return -0.5 * beta, torch.sqrt(beta)

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _rules(self, t: Tensor) -> list[Rule]:
        if self._predictor is Predictor.EULER_MARUYAMA:
            return euler_maruyama(*self.drift_and_diffusion(t))
        index = self._table_index()
        beta, alpha = (table.to(t.dtype)[index] for table in (self.discrete_betas, self._discrete_alphas))
        diffusion = torch.sqrt(beta)
        if self._predictor is Predictor.ANCESTRAL_SAMPLING:
            return rows(_Ancestral, beta, torch.sqrt(1.0 - beta), diffusion)
        noise = torch.zeros_like(t) if self.config.probability_flow else diffusion
        return rows(_ReverseDiffusion, torch.sqrt(alpha), diffusion**2 * self._score_weight, noise)

    def _alphas(self, t: Tensor) -> Tensor:
        return self._discrete_alphas[self._table_index()]


# --- shared with the sub-VP SDE --------------------------------------------------------------------------------------


def check_betas(beta_min: float, beta_max: float) -> None:
    """Raises ConfigError unless 0 < beta_min <= beta_max."""
    if not 0 < beta_min <= beta_max:
        raise ConfigError(f"beta_min={beta_min} and beta_max={beta_max}: 0 < beta_min <= beta_max is needed")


def log_mean_factor(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """−½∫β, the logarithm of the mean factor of p(x_t | x_0) (eq. 29)."""
    return -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min


def beta_at(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """β(t)."""
    return beta_min + t * (beta_max - beta_min)


def euler_maruyama(drift: Tensor, diffusion: Tensor) -> list[Rule]:
    """The rule at every level, from (N,) f(t) and g(t)."""
    step = 1.0 / len(drift)
    return rows(EulerMaruyama, drift, diffusion**2, -step, diffusion * step**0.5)
