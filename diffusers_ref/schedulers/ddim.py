"""Denoising Diffusion Implicit Models (arXiv 2010.02502), section 4: generalised sampling, eq. 12 and 16.

Extensions: clipping and dynamic thresholding of x̂_0 (Imagen, arXiv 2205.11487), v-prediction (arXiv 2202.00512), zero
terminal SNR (arXiv 2305.08891), classifier guidance (arXiv 2105.05233, Algorithm 2).

    code                  paper (its α_t is written ᾱ_t here)
    sample                x_τi
    prev_sample           x_τ(i−1), the next timestep of the grid
    x0                    f_θ(x_τi), "predicted x_0"
    epsilon               ε_θ(x_τi)
    abar, abar_prev       ᾱ_τi, ᾱ_τ(i−1)
    sigma                 σ_τi(η)
    eta                   η: 0 is deterministic (DDIM), 1 is as noisy as DDPM
    variance_noise        ε_τi
    classifier_gradient   s ∇_x log p(y | x_τi), s the scale of the guidance

Three originals are reproduced bit for bit, see `Coefficients`: "float32_cumprod" is ermongroup's, "float64" openai's,
"compvis" CompVis' sampler. They differ in the rounding of the tables and in the order of the three terms of eq. 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.chain import Chain
from diffusers_ref.schedulers.chain_scheduler import ChainScheduler
from diffusers_ref.schedulers.conventions import (
    BetaSchedule,
    Coefficients,
    PredictionType,
    VarianceType,
    choose,
)
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step
from diffusers_ref.schedulers.thresholding import limit_x0


class _Step(NamedTuple):
    """The coefficients of one step, rounded as the recipe rounds them."""

    sqrt_abar: float
    sqrt_one_minus_abar: float
    inverse_sqrt_abar: float  # 1/√ᾱ and √(1/ᾱ − 1), from which only "float64" starts
    inverse_noise: float
    previous_sample: float  # x̂_0 = previous_output · output − previous_sample · x_t where the output is x_{t−1}
    previous_output: float
    root: float  # √(1 − ᾱ) from the rounded ᾱ, with which "float64" weighs a classifier's gradient
    sqrt_abar_prev: float
    direction: float  # √(1 − ᾱ_prev − σ²)
    sigma: float


class DDIMScheduler(ChainScheduler):
    """Generalised sampling on a grid of timesteps.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T.
        beta_start, beta_end, beta_schedule, trained_betas: the forward variances, see `BetaSchedule`.
        clip_sample, clip_sample_range: clamp x̂_0 to ±clip_sample_range.
        set_alpha_to_one: the ᾱ that follows the last timestep is 1 (else ᾱ_0, as CompVis has it).
        timestep_spacing, steps_offset: the grid, see `TimestepSpacing`.
        prediction_type: what the network returns, see `PredictionType`; "previous_sample" with "float64" only.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x̂_0 instead of clipping.
        rescale_betas_zero_snr: rescale the betas so that ᾱ_T = 0.
    Conventions of originals:
        coefficients: see `Coefficients`. By default the recipe of the original that such weights come from: "compvis"
            for scaled_linear, "float64" for squaredcos_cap_v2, "float32_cumprod" for the rest.
        rederive_epsilon: always derive ε from the (clipped) x̂_0 (openai).
        variance_type: "learned" and "learned_range" take outputs of 2C channels and leave the variance half unused.
        rescale_timesteps: give the network t · 1000/T as float32 (openai), see `network_timestep`.

    A draw is made in every step, also with η = 0 and in the last one, as the originals do.
    """

    convention_options = frozenset({"coefficients", "rederive_epsilon", "variance_type", "rescale_timesteps"})

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        coefficients: str | None = None,
        rederive_epsilon: bool = False,
        variance_type: str = "fixed_small",
        rescale_timesteps: bool = False,
    ) -> None:
        self._prediction = choose(PredictionType, "prediction_type", prediction_type)
        self._variance = choose(VarianceType, "variance_type", variance_type)
        self._prepare(default_coefficients=_DEFAULT_COEFFICIENTS.get(beta_schedule, Coefficients.FLOAT32_CUMPROD))
        self._always_rederive = rederive_epsilon
        self._starts_from_inverse = self._table.coefficients is Coefficients.FLOAT64
        if self._prediction is PredictionType.PREVIOUS_SAMPLE and not self._starts_from_inverse:
            recipe = self._table.coefficients.value
            raise ConfigError(f"prediction_type='previous_sample' needs coefficients='float64', not {recipe!r}")

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        classifier_gradient: Tensor | None = None,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """One step of eq. 12.

        model_output: (B, C, ...), or (B, 2C, ...) with a learned variance. timestep: an entry of `timesteps`.
        sample: (B, C, ...). eta: η, at least 0. use_clipped_model_output: derive ε from the clipped x̂_0 in this step.
        generator: where the noise is drawn from. variance_noise: (B, C, ...), the noise itself, instead of a draw.
        classifier_gradient: (B, C, ...), the gradient of log p(y | x_τi) by x_τi at `sample`, times the guidance scale;
            √(1 − ᾱ) times it is taken off the ε of the limited x̂_0, and the x̂_0 that follows is not limited again.
            The classifier is given `network_timestep(timestep)` as time.
        Returns x_τ(i−1) and x̂_0 in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and for an η so large that σ² exceeds 1 − ᾱ_prev.
        """
        dtype = self._check(model_output, sample, channel_factor=2 if self._variance.is_learned else 1)
        coefficients = self._coefficients(dtype, float(eta))
        noise = self._noise(sample, generator, variance_noise, dtype)
        c = coefficients[self._advance(timestep)]
        x, output = sample.to(dtype), model_output.to(dtype)
        if self._variance.is_learned:
            output = output.chunk(2, dim=1)[0]

        x0 = self._predict_x0(output, x, c)
        limited = limit_x0(x0, self.config)
        if use_clipped_model_output or self._always_rederive:
            epsilon = self._epsilon_from_x0(limited, x, c)
        else:
            epsilon = self._predict_epsilon(output, x0, x, c)
        if classifier_gradient is not None:
            limited, epsilon = self._guided(limited, self._gradient(classifier_gradient, x), x, c)

        signal, direction, noise = c.sqrt_abar_prev * limited, c.direction * epsilon, c.sigma * noise
        if self._table.coefficients is Coefficients.FLOAT32_CUMPROD:
            prev_sample = signal + noise + direction  # eq. 12, in ermongroup's order
        else:
            prev_sample = signal + direction + noise  # eq. 12

        result = SchedulerOutput(prev_sample.to(sample.dtype), limited.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    # --- x̂_0 and ε ---------------------------------------------------------------------------------------------------

    def _predict_x0(self, output: Tensor, x: Tensor, c: _Step) -> Tensor:
        if self._prediction is PredictionType.SAMPLE:
            return output
        if self._prediction is PredictionType.V_PREDICTION:
            return c.sqrt_abar * x - c.sqrt_one_minus_abar * output
        if self._prediction is PredictionType.PREVIOUS_SAMPLE:
            return c.previous_output * output - c.previous_sample * x
        return self._x0_from_epsilon(output, x, c)

    def _x0_from_epsilon(self, epsilon: Tensor, x: Tensor, c: _Step) -> Tensor:
        if self._starts_from_inverse:
            return c.inverse_sqrt_abar * x - c.inverse_noise * epsilon
        return (x - c.sqrt_one_minus_abar * epsilon) / c.sqrt_abar  # eq. 9

    def _guided(self, x0: Tensor, gradient: Tensor, x: Tensor, c: _Step) -> tuple[Tensor, Tensor]:
        """x̂_0 and ε under a classifier's gradient (arXiv 2105.05233, Algorithm 2)."""
        if c.sqrt_abar == 0:
            raise ValueError("abar is 0 at this timestep: there, no x_0 follows from a classifier's gradient")
        weight = c.root if self._starts_from_inverse else c.sqrt_one_minus_abar
        epsilon = self._epsilon_from_x0(x0, x, c) - weight * gradient
        x0 = self._x0_from_epsilon(epsilon, x, c)
        return x0, self._epsilon_from_x0(x0, x, c)

    def _predict_epsilon(self, output: Tensor, x0: Tensor, x: Tensor, c: _Step) -> Tensor:
        if self._prediction is PredictionType.EPSILON:
            return output
        if self._prediction is PredictionType.V_PREDICTION:
            return c.sqrt_abar * output + c.sqrt_one_minus_abar * x
        return self._epsilon_from_x0(x0, x, c)

    def _epsilon_from_x0(self, x0: Tensor, x: Tensor, c: _Step) -> Tensor:
        """Eq. 9 solved for ε."""
        if self._starts_from_inverse and math.isfinite(c.inverse_sqrt_abar):
            return (c.inverse_sqrt_abar * x - x0) / c.inverse_noise
        return (x - c.sqrt_abar * x0) / c.sqrt_one_minus_abar

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _coefficients(self, dtype: torch.dtype, eta: float = 0.0) -> list[_Step]:
        """The coefficients of every step for arithmetic in `dtype`."""
        self._require_timesteps()
        if (dtype, eta) not in self._coefficient_cache:
            self._coefficient_cache[dtype, eta] = self._make_coefficients(dtype, eta)
        return self._coefficient_cache[dtype, eta]

    def _make_coefficients(self, dtype: torch.dtype, eta: float) -> list[_Step]:
        if not eta >= 0:
            raise ValueError(f"eta={eta} is not allowed; it must be at least 0")
        if self._table.coefficients is Coefficients.FLOAT64:
            chain = Chain.along(self._table, self._grid, self._spacing)
            levels = _float64_levels(chain, self.final_alpha_cumprod.item(), eta, dtype)
        else:
            a = self.alphas_cumprod[self._grid]
            a_prev = torch.cat([a[1:], self.final_alpha_cumprod.view(1)])
            make = _compvis_levels if self._table.coefficients is Coefficients.COMPVIS else _float32_cumprod_levels
            levels = make(a, a_prev, eta, dtype)
        if self._prediction is PredictionType.EPSILON and not levels.sqrt_abar.all():
            t = self._grid[int(levels.sqrt_abar.argmin())]
            raise ValueError(
                f"abar is 0 at timestep {t}: x_0 cannot be derived from prediction_type='epsilon'; use a grid without "
                "that timestep, or another prediction type"
            )
        rest = 1.0 - levels.abar_prev - levels.sigma**2
        if (rest < -1e-6).any():
            t = self._grid[int(rest.argmin())]
            raise ValueError(f"eta={eta} is too large: sigma² exceeds 1 - abar_prev at timestep {t}; at most 1 is safe")
        # Clamped, as rounding can make 0 negative where abar falls to (almost) 0 in one step; the originals return NaN.
        direction = rest.clamp(min=0).sqrt()
        columns = (*levels[:2], *levels.chain_factors, levels.abar_prev.sqrt(), direction, levels.sigma)
        return [_Step(*row) for row in by_step(*columns)]


class _Levels(NamedTuple):
    """Per step (n,), in the dtype of the arithmetic."""

    sqrt_abar: Tensor
    sqrt_one_minus_abar: Tensor
    abar_prev: Tensor
    sigma: Tensor  # eq. 16
    chain_factors: tuple[Tensor, ...]  # the five factors of `_Step` that only "float64" reads


def _float64_levels(chain: Chain, final_abar: float, eta: float, dtype: torch.dtype) -> _Levels:
    """openai: float64 tables of the chain, rounded to float32 when used; σ is arithmetic on the rounded ᾱ."""

    def rounded(table: np.ndarray) -> Tensor:
        return torch.from_numpy(table.astype(np.float32)).to(dtype)

    a, a_prev = rounded(chain.alphas_cumprod), rounded(np.append(chain.alphas_cumprod_prev[:-1], final_abar))
    sigma = eta * torch.sqrt((1 - a_prev) / (1 - a)) * torch.sqrt(1 - a / a_prev)
    sqrt_abar, sqrt_one_minus = chain.x0_from_velocity
    previous_output, previous_sample = chain.x0_from_previous
    factors = tuple(rounded(table) for table in (*chain.x0_from_epsilon, previous_sample, previous_output))
    return _Levels(rounded(sqrt_abar), rounded(sqrt_one_minus), a_prev, sigma, (*factors, (1 - a).sqrt()))


def _float32_cumprod_levels(a: Tensor, a_prev: Tensor, eta: float, dtype: torch.dtype) -> _Levels:
    """ermongroup, `generalized_steps`: everything is arithmetic on the float32 ᾱ."""
    a, a_prev = a.to(dtype), a_prev.to(dtype)
    sigma = eta * ((1 - a / a_prev) * (1 - a_prev) / (1 - a)).sqrt()
    return _Levels(a.sqrt(), (1 - a).sqrt(), a_prev, sigma, (torch.zeros_like(a),) * 5)


def _compvis_levels(a: Tensor, a_prev: Tensor, eta: float, dtype: torch.dtype) -> _Levels:
    """CompVis, `make_schedule`: √(1 − ᾱ) and σ are tables made by NumPy, √ᾱ is arithmetic.

    σ is made in float64, but with 1/(1 − ᾱ) rounded to float32: there a NumPy array is divided by a tensor, which
    torch takes as a product with the reciprocal. On a grid of one step all of it is float32.
    """
    wide = torch.float64 if len(a) > 1 else a.dtype
    variance = (1 - a_prev.to(wide)) * (1 - a).reciprocal().to(wide) * (1 - a.to(wide) / a_prev.to(wide))
    sigma = eta * torch.from_numpy(np.sqrt(variance.numpy()))
    sqrt_one_minus = torch.from_numpy(np.sqrt((1.0 - a).numpy()))
    a, a_prev = a.to(dtype), a_prev.to(dtype)
    return _Levels(a.sqrt(), sqrt_one_minus.to(dtype), a_prev, sigma.to(dtype), (torch.zeros_like(a),) * 5)


_DEFAULT_COEFFICIENTS = {
    BetaSchedule.SCALED_LINEAR.value: Coefficients.COMPVIS,
    BetaSchedule.SQUAREDCOS_CAP_V2.value: Coefficients.FLOAT64,
}
