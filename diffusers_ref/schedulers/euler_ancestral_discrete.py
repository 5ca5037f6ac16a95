"""Ancestral sampling with Euler steps, in the coordinates of EDM (arXiv 2206.00364): `sample_euler_ancestral`.

The original is crowsonkb/k-diffusion.

code                  meaning
sigmas                σ_0 > ... > σ_n
at.sigma              σ_i
sigma_down, sigma_up  the level of the Euler step, and of the noise that then makes σ_{i+1}:
                      σ_down² + σ_up² = σ_{i+1}²
eta                   η: 0 adds no noise, 1 as much as ancestral sampling of DDPM does (arXiv 2010.02502, eq. 16)
variance_noise        ε_i
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.ancestral import ancestral_step, check_noise_options
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time
from diffusers_ref.schedulers.sigma_scheduler import SIGMA_CONVENTIONS, Evaluation, SigmaScheduler


class _Step(NamedTuple):
    dt: Tensor | float  # σ_down − σ_i
    sigma_up: Tensor | float
    draws: bool


class EulerAncestralDiscreteScheduler(SigmaScheduler):
    """Euler steps to σ_down, then noise. The published options are those of `SigmaScheduler`.

    Conventions of originals (crowsonkb), besides those of `SigmaScheduler`:
        eta, s_noise: η and the standard deviation of the noise.

    A draw is made after every step but the one to 0, also with η = 0.
    """

    convention_options = SIGMA_CONVENTIONS | {"eta", "s_noise"}

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        coefficients: str | None = None,
        sigma_schedule: str | None = None,
        sigma_options: Mapping[str, Any] | None = None,
        quantize: bool = False,
        eta: float = 1.0,
        s_noise: float = 1.0,
    ) -> None:
        check_noise_options(eta, s_noise)
        self._prepare()

    def _evaluations(self, sigmas: Tensor) -> list[Evaluation]:
        evaluations = []
        # σ_down is a difference of squares: crowsonkb's grids take it as the original rounds it, others exactly.
        levels = sigmas.double() if self._schedule is None else sigmas
        for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
            sigma_down, sigma_up = ancestral_step(sigma, sigma_next, self.config.eta)
            step = _Step(sigma_down - sigma, sigma_up, draws=bool(sigma_next > 0))
            evaluations.append(Evaluation(sigmas[i], step, level=i))
        return evaluations

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """One ancestral step.

        model_output, sample: (B, C, ...), the network's output and the state that it saw, before scaling.
        timestep: an entry of `timesteps`. generator: where the noise is drawn from. variance_noise: (B, C, ...), the
        noise itself, instead of a draw.
        Returns the next state and D in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and for `variance_noise` in the last step, where nothing is drawn.
        """
        dtype = self._check(model_output, sample)
        index = self._place(timestep)
        at = self._numbers_for(dtype)[index]
        noise = self._noise_if(at.step.draws, sample, generator, variance_noise, dtype)
        self._pass(index)
        x = sample.to(dtype)

        denoised = self._denoised(model_output.to(dtype), x, at)
        derivative = (x - denoised) / at.sigma
        prev_sample = x + derivative * at.step.dt
        if noise is not None:
            prev_sample = prev_sample + noise * self.config.s_noise * at.step.sigma_up

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()
