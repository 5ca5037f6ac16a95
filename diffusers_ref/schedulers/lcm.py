"""Latent Consistency Models (arXiv 2310.04378): multistep consistency sampling, algorithm 3.

    code                      paper
    sample                    z_τn
    prev_sample               z_τ(n+1), at the next timestep of the grid; after the last one, the result
    denoised                  f_θ(z, ω, c, t), the consistency function, eq. 8
    x0                        (z − σ_t ε̂_θ) / α_t, the prediction of z_0
    abar                      α_t², with σ_t² = 1 − abar
    c_skip, c_out             c_skip(t), c_out(t)
    original_inference_steps  the steps of the grid that the model was distilled on, every k-th timestep

The authors' code is that of their pipelines, latent_consistency_txt2img and latent_consistency_img2img, which
github.com/luosiallen/latent-consistency-model runs; it is reproduced bit for bit, see `DistilledGrid` and `final_draw`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.chain_scheduler import ChainScheduler
from diffusers_ref.schedulers.conventions import Coefficients, PredictionType, TimestepSpacing, choose
from diffusers_ref.schedulers.requests import whole
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step
from diffusers_ref.schedulers.thresholding import limit_x0
from diffusers_ref.schedulers.timesteps import make_grid


class DistilledGrid(str, Enum):
    """Which n of the timesteps that the model was distilled on are visited, from the noisiest on."""

    EVEN = "even"
    """Published: those at floor(i · N/n)."""
    STRIDED = "strided"
    """luosiallen: every (N // n)-th."""


class _Step(NamedTuple):
    """The coefficients of one step, as numbers, so that no device waits for them."""

    sqrt_abar: float
    sqrt_one_minus_abar: float
    c_skip: float
    c_out: float
    next_signal: float
    next_noise: float


class LCMScheduler(ChainScheduler):
    """z' = √ābar' f_θ(z) + √(1 − abar') n, and f_θ(z) itself at the end.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T.
        beta_start, beta_end, beta_schedule, trained_betas: the forward variances, see `BetaSchedule`.
        original_inference_steps: N, the steps that the model was distilled on: every k-th timestep, k = T // N.
        clip_sample, clip_sample_range: clamp x̂_0 to ±clip_sample_range.
        prediction_type: "epsilon", "sample" or "v_prediction".
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x̂_0 instead of clipping.
        timestep_scaling: s of c_skip = σ_d²/((s t)² + σ_d²) and c_out = s t/√((s t)² + σ_d²), with σ_d = 1/2.
        rescale_betas_zero_snr: rescale the betas so that abar_T = 0.
        set_alpha_to_one, steps_offset, timestep_spacing: of the teacher's scheduler; this grid has no use for them.
    Conventions of originals:
        coefficients: see `Coefficients`; by default "float32", the recipe of the authors and of HF diffusers.
        distilled_grid: see `DistilledGrid`.
        final_draw: a run of more than one step also draws in its last step, and does not use it (luosiallen).
    """

    convention_options = frozenset({"coefficients", "distilled_grid", "final_draw"})
    _recipes = tuple(Coefficients)

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: Sequence[float] | None = None,
        original_inference_steps: int = 50,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        timestep_scaling: float = 10.0,
        rescale_betas_zero_snr: bool = False,
        coefficients: str | None = None,
        distilled_grid: str = "even",
        final_draw: bool = False,
    ) -> None:
        self._prediction = choose(PredictionType, "prediction_type", prediction_type, allowed=_PREDICTION_TYPES)
        self._rule = choose(DistilledGrid, "distilled_grid", distilled_grid)
        self._prepare(default_coefficients=Coefficients.FLOAT32)
        whole("original_inference_steps", original_inference_steps, 1, len(self))

    # --- the grid ----------------------------------------------------------------------------------------------------

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Choose the grid and begin anew, as if the scheduler had just been made.

        Exactly one of these says which timesteps are visited:
        num_inference_steps: n of the timesteps of distillation, by the rule of `distilled_grid`.
        timesteps: the grid itself, strictly descending.

        original_inference_steps: N, instead of the option of that name.
        strength: in (0, 1], for image-to-image: of the N timesteps of distillation only the lowest int(N · strength)
            are there to be chosen from; of explicit timesteps only the last int(n · strength) are visited.
        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give exactly one of num_inference_steps and timesteps")
        if not 0 < strength <= 1:
            raise ValueError(f"strength={strength} is not allowed; it must be above 0 and at most 1")
        if timesteps is not None:
            grid = make_grid(TimestepSpacing.LEADING, len(self), timesteps=timesteps)
            kept = int(len(grid) * strength)
            if not kept:
                raise ValueError(f"strength={strength} leaves none of {len(grid)} steps; take a larger one")
            grid = grid[-kept:]
        else:
            grid = self._distilled(num_inference_steps, original_inference_steps, strength)
        if self._prediction is PredictionType.EPSILON and not self.alphas_cumprod[grid].all():
            raise ValueError(
                f"abar is 0 at timestep {grid[0]}: x_0 cannot be derived from prediction_type='epsilon'; use a grid "
                "without that timestep, or another prediction type"
            )
        self._grid = grid
        self._coefficient_cache = {}
        self._adopt(grid, len(grid), device)

    def _distilled(self, num_inference_steps: Any, original_inference_steps: Any, strength: float) -> list[int]:
        total = original_inference_steps
        if total is None:
            total = self.config.original_inference_steps
        stride = len(self) // whole("original_inference_steps", total, 1, len(self))
        origin = [stride * i - 1 for i in range(int(total * strength), 0, -1)]  # the k-th, 2k-th, ... timestep
        count = whole("num_inference_steps", num_inference_steps, 1, len(origin))
        if self._rule is DistilledGrid.STRIDED:
            return origin[:: len(origin) // count][:count]
        return [origin[int(point)] for point in np.linspace(0, len(origin), count, endpoint=False)]

    # --- one step ----------------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One step of algorithm 3.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`.
        generator: where the noise is drawn from. variance_noise: (B, C, ...), the noise itself, instead of a draw; a
            last step uses none.
        Returns z' and f_θ(z), in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        coefficients = self._coefficients(dtype)
        index = self._advance(timestep)
        c, is_last = coefficients[index], index + 1 == len(coefficients)
        x, output = sample.to(dtype), model_output.to(dtype)
        draws = not is_last or (self.config.final_draw and index > 0)
        noise = self._noise(sample, generator, variance_noise, dtype) if draws else None

        denoised = c.c_out * limit_x0(self._predict_x0(output, x, c), self.config) + c.c_skip * x  # eq. 8
        prev_sample = denoised
        if noise is not None and not is_last:
            prev_sample = c.next_signal * denoised + c.next_noise * noise

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _predict_x0(self, output: Tensor, x: Tensor, c: _Step) -> Tensor:
        if self._prediction is PredictionType.SAMPLE:
            return output
        if self._prediction is PredictionType.V_PREDICTION:
            return c.sqrt_abar * x - c.sqrt_one_minus_abar * output
        return (x - c.sqrt_one_minus_abar * output) / c.sqrt_abar

    def _coefficients(self, dtype: torch.dtype) -> list[_Step]:
        self._require_timesteps()
        if dtype not in self._coefficient_cache:
            abar = self.alphas_cumprod[self._grid].to(dtype)
            scaled = torch.tensor(self._grid, dtype=dtype) * self.config.timestep_scaling
            c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
            c_out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
            signal, noise = abar.sqrt(), (1 - abar).sqrt()
            rows = by_step(signal, noise, c_skip, c_out, signal.roll(-1), noise.roll(-1))
            self._coefficient_cache[dtype] = [_Step(*row) for row in rows]
        return self._coefficient_cache[dtype]


SIGMA_DATA = 0.5
_PREDICTION_TYPES = (PredictionType.EPSILON, PredictionType.SAMPLE, PredictionType.V_PREDICTION)
