"""Score-Based Generative Modeling through Stochastic Differential Equations (arXiv 2011.13456): the variance exploding
SDE, eq. 9 and 30, in the predictor–corrector samplers of Algorithms 1, 2 and 4.

    code                  paper
    sigmas                σ(t) = σ_min (σ_max / σ_min)^t, the standard deviation of x_t − x_0
    discrete_sigmas       σ_i, i = 1 … N, evenly spaced in log σ
    adjacent              σ_{i−1}; 0 before the first

and further as in `score_sde`. The network returns the score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.schedulers.score_sde import Predictor, Rule, ScoreSdeScheduler, rows


class _EulerMaruyama(NamedTuple):
    """x + g²·s/N."""

    gain: float
    dt: float  # 1/N
    noise: float

    def __call__(self, x: Tensor, score: Tensor) -> Tensor:
        return x + self.gain * score * self.dt


class _Discrete(NamedTuple):
    """x_i + (σ_i² − σ_{i−1}²)·s: eq. 47, and Algorithm 2, line 5."""

    gain: float
    noise: float

    def __call__(self, x: Tensor, score: Tensor) -> Tensor:
        return x + self.gain * score


class ScoreSdeVeScheduler(ScoreSdeScheduler):
    """Predictor–corrector sampling of the VE SDE.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: N where `set_timesteps` is not told another.
        snr: r of the correctors.
        sigma_min, sigma_max: σ at t = 0 and t = 1.
        sampling_eps: ε, where sampling ends.
        correct_steps: the corrector's sub-steps at every level (`n_steps_each` of the original); 0 for no corrector.
    Conventions of the original (yang-song/score_sde_pytorch); the defaults are its settings for NCSN++:
        predictor, corrector: see `Predictor` and `Corrector`.
        probability_flow: "reverse_diffusion" follows the probability flow ODE (eq. 13) instead of the SDE.
        noise_removal: the predictor adds no noise in the last step. Without a predictor it changes nothing.
        continuous: the network is given σ(t); else the number of the level, 0 at the noisiest (SMLD).

    Quirks of the original: Langevin step sizes depend on the whole batch; σ_i of the predictors is read at a truncated
    index, so that the first level alone reaches σ_max, and it is σ_min if there is only one level.
    """

    convention_options = frozenset({"predictor", "corrector", "probability_flow", "noise_removal", "continuous"})

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 2000,
        snr: float = 0.15,
        sigma_min: float = 0.01,
        sigma_max: float = 1348.0,
        sampling_eps: float = 1e-5,
        correct_steps: int = 1,
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        probability_flow: bool = False,
        noise_removal: bool = True,
        continuous: bool = True,
    ) -> None:
        self._choose(predictor, corrector, probability_flow, correct_steps)
        if not 0 < sigma_min < sigma_max:
            raise ConfigError(f"sigma_min={sigma_min} and sigma_max={sigma_max}: 0 < sigma_min < sigma_max is needed")
        self.init_noise_sigma = sigma_max

    # --- the SDE -----------------------------------------------------------------------------------------------------

    def _sigma(self, t: Tensor) -> Tensor:
        """σ(t), for t of shape (n,); each power by itself, as torch rounds those of long tensors otherwise."""
        start, ratio = self.config.sigma_min, self.config.sigma_max / self.config.sigma_min
        return torch.cat([start * ratio**time for time in t.split(1)])

    def _marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self._sigma(t)

    def _make_tables(self, count: int) -> None:
        start, end = np.log(self.config.sigma_min), np.log(self.config.sigma_max)
        self.sigmas = self._sigma(self._levels)
        self.discrete_sigmas = torch.exp(torch.linspace(start, end, count))

    def labels(self, t: Tensor) -> Tensor:
        if self.config.continuous:
            return self._sigma(t)
        return torch.round((1 - t) * (len(self._levels) - 1)).long()

    def drift_and_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_ratio = np.log(self.config.sigma_max) - np.log(self.config.sigma_min)
        return torch.zeros_like(t), self._sigma(t) * torch.sqrt(torch.tensor(2 * log_ratio))

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _rules(self, t: Tensor) -> list[Rule]:
        if self._predictor is Predictor.EULER_MARUYAMA:
            _, diffusion = self.drift_and_diffusion(t)
            step = 1 / len(t)
            return rows(_EulerMaruyama, diffusion**2, step, diffusion * np.sqrt(step))
        index, table = self._table_index(), self.discrete_sigmas.to(t.dtype)
        sigma, adjacent = table[index], torch.where(index == 0, 0.0, table[index - 1])
        if self._predictor is Predictor.ANCESTRAL_SAMPLING:
            gain = sigma**2 - adjacent**2
            return rows(_Discrete, gain, torch.sqrt(adjacent**2 * gain / sigma**2))
        diffusion = torch.sqrt(sigma**2 - adjacent**2)
        noise = torch.zeros_like(t) if self.config.probability_flow else diffusion
        return rows(_Discrete, diffusion**2 * self._score_weight, noise)

    def _alphas(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _stds(self, t: Tensor) -> Tensor:
        return self.sigmas.to(t.dtype)
