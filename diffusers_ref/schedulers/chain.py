"""The chain that visits only the timesteps of a grid, in float64, as hojonathanho and openai tabulate it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusers_ref.schedulers.betas import NoiseTable
from diffusers_ref.schedulers.conventions import TimestepSpacing


@dataclass(frozen=True)
class Chain:
    """Float64 tables of a chain, one entry per visited timestep, in sampling order (noisy to clean).

    betas: beta_t of the chain's own steps.
    alphas_cumprod, alphas_cumprod_prev: abar_t, and abar of the step that follows; 1 at the end.
    """

    betas: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray

    @classmethod
    def along(cls, table: NoiseTable, grid: list[int], spacing: TimestepSpacing) -> Chain:
        """The chain through `grid` (descending).

        Over all T timesteps the betas are used as they are. Over fewer, they follow from abar, and abar is then built
        again from them (improved DDPM, arXiv 2102.09672, eq. 19), which rounds it differently. openai's code goes this
        way for all T timesteps too.
        """
        betas = table.exact_betas
        visits_all = grid == list(range(len(betas) - 1, -1, -1))
        if not visits_all or spacing is TimestepSpacing.IMPROVED_DIFFUSION:
            abar = table.exact_alphas_cumprod[grid[::-1]]
            betas = 1.0 - abar / np.append(1.0, abar[:-1])
        alphas_cumprod = np.cumprod(1.0 - betas)
        previous = np.append(1.0, alphas_cumprod[:-1])
        return cls(betas[::-1], alphas_cumprod[::-1], previous[::-1])

    @property
    def x0_from_epsilon(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors of x_t and -epsilon in x_0: 1/sqrt(abar_t), sqrt(1/abar_t - 1); infinite where abar_t = 0."""
        with np.errstate(divide="ignore"):
            inverse = 1.0 / self.alphas_cumprod
        return np.sqrt(inverse), np.sqrt(inverse - 1)

    @property
    def x0_from_velocity(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors of x_t and -v in x_0: sqrt(abar_t), sqrt(1 - abar_t)."""
        return np.sqrt(self.alphas_cumprod), np.sqrt(1.0 - self.alphas_cumprod)

    @property
    def posterior_mean(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors of x_0 and x_t in the mean of q(x_{t-1} | x_t, x_0) (DDPM, eq. 7)."""
        beta_bar = 1.0 - self.alphas_cumprod
        of_x0 = self.betas * np.sqrt(self.alphas_cumprod_prev) / beta_bar
        return of_x0, (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - self.betas) / beta_bar

    @property
    def x0_from_previous(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors of x_{t-1} and -x_t in x_0, `posterior_mean` solved for it; infinite where two steps coincide."""
        of_x0, of_sample = self.posterior_mean
        with np.errstate(divide="ignore"):
            return 1.0 / of_x0, of_sample / of_x0

    def variance(self, large: bool) -> np.ndarray:
        """beta~_t (DDPM, eq. 7), which is 0 at the end; `large`: beta_t, with the last beta~ but one at the end."""
        posterior = self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)
        return np.append(self.betas[:-1], posterior[-2:-1]) if large and len(posterior) > 1 else posterior

    @property
    def log_posterior_variance(self) -> np.ndarray:
        """log beta~_t (DDPM, eq. 7). The last beta~ is 0: its entry repeats its neighbour, no noise is added there."""
        variance = self.variance(large=False)
        if len(variance) > 1:
            variance[-1] = variance[-2]
        return np.log(np.maximum(variance, 1e-20))

    @property
    def log_beta(self) -> np.ndarray:
        """log beta_t of the chain's own steps."""
        return np.log(np.maximum(self.betas, 1e-20))
