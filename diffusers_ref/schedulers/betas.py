"""Tables of the forward process q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), abar_t = prod_{s<=t} (1 - beta_s).

The recipe and precision of these tables belong to the definition of an original: `Coefficients` names the recipes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.schedulers.conventions import BetaSchedule, Coefficients


@dataclass(frozen=True)
class NoiseTable:
    """The variances of a forward process of T steps. Nobody writes into these arrays.

    coefficients: the recipe in which the tables below were made.
    exact_betas, exact_alphas_cumprod: (T,) float64, before any rounding.
    betas, alphas_cumprod: (T,) on the CPU; float64 for the recipe "float64", float32 for the others.
    """

    coefficients: Coefficients
    exact_betas: np.ndarray
    exact_alphas_cumprod: np.ndarray
    betas: Tensor
    alphas_cumprod: Tensor

    @classmethod
    def from_betas(cls, betas: np.ndarray, coefficients: Coefficients) -> NoiseTable:
        """Build the tables of `coefficients` from float64 betas."""
        exact = np.cumprod(1.0 - betas)
        table, alphas_cumprod = torch.from_numpy(betas), torch.from_numpy(exact)
        if coefficients is not Coefficients.FLOAT64:
            table, alphas_cumprod = table.float(), alphas_cumprod.float()
        if coefficients in _FLOAT32_PRODUCTS:
            alphas_cumprod = (1.0 - table).cumprod(dim=0)
        return cls(coefficients, betas, exact, table, alphas_cumprod)

    def forward_coefficients(self, timesteps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) at each of `timesteps` (any shape, on the CPU), in `dtype`."""
        if self.coefficients in _FLOAT32_PRODUCTS:
            abar = self.alphas_cumprod[timesteps].to(dtype)
            return abar.sqrt(), (1.0 - abar).sqrt()
        signal = torch.from_numpy(np.sqrt(self.exact_alphas_cumprod))
        noise = torch.from_numpy(np.sqrt(1.0 - self.exact_alphas_cumprod))
        return signal[timesteps].float().to(dtype), noise[timesteps].float().to(dtype)


def make_betas(
    schedule: BetaSchedule,
    beta_start: float,
    beta_end: float,
    num_train_timesteps: int,
    *,
    trained_betas: Sequence[float] | None = None,
    rescale_zero_snr: bool = False,
    coefficients: Coefficients = Coefficients.FLOAT64,
) -> np.ndarray:
    """The T = `num_train_timesteps` forward variances, (T,) float64. Raises ConfigError if one is not in (0, 1]."""
    if isinstance(num_train_timesteps, bool) or not isinstance(num_train_timesteps, int) or num_train_timesteps < 1:
        raise ConfigError(f"num_train_timesteps must be an integer of at least 1, not {num_train_timesteps!r}")
    if trained_betas is None:
        betas = _named_betas(schedule, beta_start, beta_end, num_train_timesteps, coefficients)
        source = f"beta_schedule={schedule.value!r} from beta_start={beta_start} to beta_end={beta_end}"
    else:
        betas = np.array(trained_betas, dtype=np.float64)
        source = "trained_betas"
        if betas.shape != (num_train_timesteps,):
            raise ConfigError(
                f"trained_betas has the shape {betas.shape}, but num_train_timesteps={num_train_timesteps}: "
                "one beta per training timestep is needed"
            )
    if not ((betas > 0) & (betas <= 1)).all():
        raise ConfigError(f"{source} gives betas from {betas.min()} to {betas.max()}; allowed: above 0, at most 1")
    if coefficients is Coefficients.FLOAT32:
        betas = betas.astype(np.float32)
    if rescale_zero_snr:
        betas = rescale_to_zero_terminal_snr(betas)
    return betas.astype(np.float64)


def _named_betas(
    schedule: BetaSchedule, start: float, end: float, count: int, coefficients: Coefficients
) -> np.ndarray:
    if schedule is BetaSchedule.LINEAR:
        return _linspace(start, end, count, coefficients)
    if schedule is BetaSchedule.SCALED_LINEAR:
        if min(start, end) < 0:
            raise ConfigError(f"beta_start={start} and beta_end={end} must not be negative")
        return _linspace(start**0.5, end**0.5, count, coefficients) ** 2
    if schedule is BetaSchedule.SQUAREDCOS_CAP_V2:
        # Improved DDPM (arXiv 2102.09672), eq. 17.
        return _capped(count, lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2)
    if schedule is BetaSchedule.EXP:
        return _capped(count, lambda u: math.exp(-12.0 * u))
    if schedule is BetaSchedule.SIGMOID:
        return 1 / (np.exp(-np.linspace(-6, 6, count)) + 1) * (end - start) + start
    if schedule is BetaSchedule.JSD:
        return 1.0 / np.linspace(count, 1, count, dtype=np.float64)
    betas = end * np.ones(count, dtype=np.float64)
    if schedule is not BetaSchedule.CONST:
        warmup = int(count * (0.1 if schedule is BetaSchedule.WARMUP10 else 0.5))
        betas[:warmup] = np.linspace(start, end, warmup, dtype=np.float64)
    return betas


def _linspace(start: float, end: float, count: int, coefficients: Coefficients) -> np.ndarray:
    # CompVis alone fills its float64 table with torch, whose linspace rounds a third of the entries differently.
    if coefficients is Coefficients.COMPVIS:
        return torch.linspace(start, end, count, dtype=torch.float64).numpy()
    if coefficients is Coefficients.FLOAT32:
        return torch.linspace(start, end, count, dtype=torch.float32).numpy()
    return np.linspace(start, end, count, dtype=np.float64)


def _capped(count: int, abar: Callable[[float], float], max_beta: float = 0.999) -> np.ndarray:
    """beta_t = 1 - abar(t/T) / abar((t-1)/T), capped."""
    return np.array([min(1 - abar((i + 1) / count) / abar(i / count), max_beta) for i in range(count)])


def rescale_to_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Common Diffusion Noise Schedules and Sample Steps are Flawed (arXiv 2305.08891), Algorithm 1, in the dtype given.

    sqrt(abar) is shifted so that its last entry is 0 and scaled so that its first entry stays.
    """
    sqrt_abar = torch.from_numpy(1.0 - betas).cumprod(dim=0).sqrt()
    first, last = sqrt_abar[0], sqrt_abar[-1]
    if len(betas) < 2 or first == last:
        raise ConfigError("rescale_betas_zero_snr needs at least two timesteps with falling signal")
    abar = ((sqrt_abar - last) * (first / (first - last))) ** 2
    return (1.0 - torch.cat([abar[:1], abar[1:] / abar[:-1]])).numpy()


_FLOAT32_PRODUCTS = (Coefficients.FLOAT32, Coefficients.FLOAT32_CUMPROD)
"""The recipes that multiply betas of float32."""
