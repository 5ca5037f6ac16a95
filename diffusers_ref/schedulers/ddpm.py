"""Denoising Diffusion Probabilistic Models (arXiv 2006.11239), Algorithm 2: ancestral sampling.

Extensions: learned variances and chains with fewer steps (Improved DDPM, arXiv 2102.09672), dynamic thresholding
(Imagen, arXiv 2205.11487), v-prediction (arXiv 2202.00512), zero terminal SNR (arXiv 2305.08891), classifier guidance
(arXiv 2105.05233, Algorithm 1).

    code                  paper
    sample                x_t
    prev_sample           x_{t-1}, where t-1 stands for the next timestep of the grid
    x0                    x̂_0, the prediction of x_0
    betas                 β_t
    alphas_cumprod        ᾱ_t = Π (1 − β_s)
    mean                  μ̃_t(x_t, x̂_0)
    std, variance         σ_t, σ_t²
    variance_noise        z
    classifier_gradient   s ∇_x log p(y | x_t), s the scale of the guidance

Two originals are reproduced bit for bit, see `Coefficients`: "float64" is hojonathanho's and openai's sampler,
"float32_cumprod" the `ddpm_noisy` sampler of ermongroup.
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
    Coefficients,
    PredictionType,
    VarianceType,
    choose,
)
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step
from diffusers_ref.schedulers.thresholding import limit_x0


class _Step(NamedTuple):
    """The coefficients of one step, rounded as the recipe rounds them."""

    x0_sample: float  # x̂_0 = x0_sample · x_t − x0_output · output
    x0_output: float
    mean_x0: float  # μ̃ = (mean_x0 · x̂_0 + mean_sample · x_t) / mean_divisor
    mean_sample: float
    mean_divisor: float
    noise_mask: float  # 0 in the step that ends the chain, else 1
    std: float  # σ_t of the fixed variances, masked
    variance: float  # σ_t² of the fixed variances, not masked
    min_log: float  # log β̃_t
    max_log: float  # log β_t


class DDPMScheduler(ChainScheduler):
    """Ancestral sampling from q(x_{t-1} | x_t, x̂_0).

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T.
        beta_start, beta_end, beta_schedule, trained_betas: the forward variances, see `BetaSchedule`.
        variance_type: see `VarianceType`. "float32_cumprod" always takes β_t, whichever fixed variance is named.
        clip_sample, clip_sample_range: clamp x̂_0 to ±clip_sample_range.
        prediction_type: what the network returns, see `PredictionType`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x̂_0 instead of clipping.
        timestep_spacing, steps_offset: the grid, see `TimestepSpacing`.
        rescale_betas_zero_snr: rescale the betas so that ᾱ_T = 0.
    Conventions of originals:
        coefficients: "float64" (default; "compvis" has the same tables here) or "float32_cumprod".
        rescale_timesteps: give the network t · 1000/T as float32 (openai), see `network_timestep`.

    The step that ends the chain adds no noise. A draw is made in every step, also in that one, as the originals do.
    """

    convention_options = frozenset({"coefficients", "rescale_timesteps"})

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        coefficients: str | None = None,
        rescale_timesteps: bool = False,
    ) -> None:
        self._prediction = choose(PredictionType, "prediction_type", prediction_type)
        self._variance = choose(VarianceType, "variance_type", variance_type)
        self._large_variance = self._variance in (VarianceType.FIXED_LARGE, VarianceType.FIXED_LARGE_LOG)
        self._prepare(default_coefficients=Coefficients.FLOAT64)
        if self._variance.is_learned and self._table.coefficients is Coefficients.FLOAT32_CUMPROD:
            raise ConfigError(
                f"variance_type={variance_type!r} needs coefficients='float64': 'float32_cumprod' knows fixed variances"
            )

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        classifier_gradient: Tensor | None = None,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """One step of Algorithm 2.

        model_output: (B, C, ...), or (B, 2C, ...) with a learned variance. timestep: an entry of `timesteps`.
        sample: (B, C, ...). generator: where z is drawn from. variance_noise: (B, C, ...), z itself, instead of a draw.
        classifier_gradient: (B, C, ...), the gradient of log p(y | x_t) by x_t at `sample`, times the guidance scale;
            the mean moves by σ_t² times it. The classifier is given `network_timestep(timestep)` as time.
        Returns x_{t-1} and x̂_0 in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit.
        """
        dtype = self._check(model_output, sample, channel_factor=2 if self._variance.is_learned else 1)
        coefficients = self._coefficients(dtype)
        z = self._noise(sample, generator, variance_noise, dtype)
        c = coefficients[self._advance(timestep)]
        x, output = sample.to(dtype), model_output.to(dtype)
        variance_values = None
        if self._variance.is_learned:
            output, variance_values = output.chunk(2, dim=1)

        x0 = output
        if self._prediction is not PredictionType.SAMPLE:
            x0 = c.x0_sample * x - c.x0_output * output  # eq. 9 solved for x_0, eq. 15
        x0 = limit_x0(x0, self.config)

        mean = output
        if self._prediction is not PredictionType.PREVIOUS_SAMPLE:
            mean = c.mean_x0 * x0 + c.mean_sample * x  # eq. 7
            if c.mean_divisor != 1:
                mean = mean / c.mean_divisor

        log_variance = None if variance_values is None else self._learned_log_variance(variance_values, c)
        if classifier_gradient is not None:
            variance = c.variance if log_variance is None else torch.exp(log_variance)
            mean = mean + variance * self._gradient(classifier_gradient, x)  # 2105.05233, Algorithm 1
        std = c.std if log_variance is None else c.noise_mask * torch.exp(0.5 * log_variance)
        prev_sample = mean + std * z  # Algorithm 2, line 4

        result = SchedulerOutput(prev_sample.to(sample.dtype), x0.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _learned_log_variance(self, values: Tensor, c: _Step) -> Tensor:
        """Improved DDPM, eq. 15: the log variance interpolates between log β̃_t and log β_t."""
        if self._variance is not VarianceType.LEARNED_RANGE:
            return values
        fraction = (values + 1) / 2
        return fraction * c.max_log + (1 - fraction) * c.min_log

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _coefficients(self, dtype: torch.dtype) -> list[_Step]:
        """The coefficients of every step for arithmetic in `dtype`."""
        self._require_timesteps()
        if dtype not in self._coefficient_cache:
            if self._table.coefficients is Coefficients.FLOAT32_CUMPROD:
                steps = self._float32_cumprod_steps(dtype)
            else:
                steps = self._float64_steps(dtype)
            for t, c in zip(self._grid, steps, strict=True):
                if not (math.isfinite(c.x0_sample) and math.isfinite(c.x0_output)):
                    raise ValueError(
                        f"at timestep {t}, x_0 cannot be derived from prediction_type={self._prediction.value!r} "
                        "without a division by 0; use a grid without that timestep, or another prediction type"
                    )
            self._coefficient_cache[dtype] = steps
        return self._coefficient_cache[dtype]

    def _float64_steps(self, dtype: torch.dtype) -> list[_Step]:
        """hojonathanho, openai: float64 tables of the chain, rounded to float32 when used; exp is arithmetic."""
        chain = Chain.along(self._table, self._grid, self._spacing)
        of_sample = of_output = np.zeros(len(self._grid))
        if self._prediction is PredictionType.PREVIOUS_SAMPLE:
            output_factor, sample_factor = chain.x0_from_previous
            of_sample, of_output = -sample_factor, -output_factor
        elif self._prediction is PredictionType.V_PREDICTION:
            of_sample, of_output = chain.x0_from_velocity
        elif self._prediction is PredictionType.EPSILON:
            of_sample, of_output = chain.x0_from_epsilon
        variance, logs = chain.variance(self._large_variance), (chain.log_posterior_variance, chain.log_beta)
        tables = (of_sample, of_output, *chain.posterior_mean, variance, *logs)
        rounded = (torch.from_numpy(table.astype(np.float32)).to(dtype) for table in tables)
        *factors, variances, min_log, max_log = rounded

        mask = self._noise_mask(dtype)
        std = mask * torch.exp(0.5 * (max_log if self._large_variance else min_log))
        columns = (*factors, torch.ones_like(mask), mask, std, variances, min_log, max_log)
        return [_Step(*row) for row in by_step(*columns)]

    def _float32_cumprod_steps(self, dtype: torch.dtype) -> list[_Step]:
        """ermongroup, `ddpm_steps`: everything is arithmetic on the float32 ᾱ; σ_t² is always β_t."""
        a = self.alphas_cumprod[self._grid].to(dtype)
        a_prev = torch.cat([a[1:], a.new_ones(1)])
        beta = 1 - a / a_prev
        mean_x0 = a_prev.sqrt() * beta
        mean_sample = (1 - beta).sqrt() * (1 - a_prev)
        mean_divisor = 1.0 - a
        of_sample = of_output = torch.zeros_like(a)
        if self._prediction is PredictionType.PREVIOUS_SAMPLE:
            of_sample, of_output = -mean_sample / mean_x0, -mean_divisor / mean_x0
        elif self._prediction is PredictionType.V_PREDICTION:
            of_sample, of_output = a.sqrt(), (1 - a).sqrt()
        elif self._prediction is PredictionType.EPSILON:
            of_sample, of_output = (1.0 / a).sqrt(), (1.0 / a - 1).sqrt()

        mask, log_beta = self._noise_mask(dtype), beta.log()
        std = mask * torch.exp(0.5 * log_beta)
        columns = (of_sample, of_output, mean_x0, mean_sample, mean_divisor, mask, std, beta, log_beta, log_beta)
        return [_Step(*row) for row in by_step(*columns)]

    def _noise_mask(self, dtype: torch.dtype) -> Tensor:
        """0 where the chain ends, and at every repeat of timestep 0; else 1."""
        mask = (torch.tensor(self._grid) != 0).to(dtype)
        mask[-1] = 0
        return mask
