"""SDE-DPM-Solver++(2M) in σ space: `sample_dpmpp_2m_sde` of crowsonkb/k-diffusion.

DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (arXiv 2211.01095), section 5, in which
η = 1 is the reverse SDE; η between 0 and 1 is an SDE with less noise, η = 0 the ODE.

    code                  paper (α is 1 in x = x_0 + σ·n coordinates)
    denoised, earlier     x_θ now, and at the evaluation before
    h, h_last             steps in λ = −log σ
    eta_h                 η h
    ratio, gain           of x and of x_θ: σ_next/σ e^{−ηh} and 1 − e^{−(1+η)h}
    slope                 of x_θ − x_θ(before)
    level, root           σ_next and √(1 − e^{−2ηh}), whose product is the deviation of the noise
    variance_noise        z

The first step is of first order; a step to σ = 0 returns x_θ and draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.ancestral import check_noise_options
from diffusers_ref.schedulers.brownian import BrownianScheduler, NoiseSampler
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.exponential import lengths_before, time_of
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step
from diffusers_ref.schedulers.sigma_scheduler import SIGMA_CONVENTIONS, Evaluation


class SecondOrder(str, Enum):
    """How the change of x_θ over a step is weighed."""

    MIDPOINT = "midpoint"
    """Half of the weight of x_θ itself."""
    HEUN = "heun"
    """The exact integral of a straight line."""


class _Step(NamedTuple):
    ratio: float
    gain: float
    slope: float
    sigma: float
    level: float
    root: float
    is_last: bool


class DPMPP2MSDEScheduler(BrownianScheduler):
    """The multistep solver of second order for the reverse SDE.

    Options beside those of `SigmaScheduler` and `BrownianScheduler`:
        eta: how much of the SDE's noise is added, at least 0. s_noise: a factor on it, at least 0.
        solver_type: "midpoint" or "heun", see `SecondOrder`.
    """

    convention_options = SIGMA_CONVENTIONS

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        noise_sampler_seed: int | Sequence[int] | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        eta: float = 1.0,
        s_noise: float = 1.0,
        solver_type: str = "midpoint",
        coefficients: str | None = None,
        sigma_schedule: str | None = None,
        sigma_options: Mapping[str, float] | None = None,
        quantize: bool = False,
    ) -> None:
        check_noise_options(eta, s_noise)
        self._second_order = choose(SecondOrder, "solver_type", solver_type)
        self._prepare()

    def _evaluations(self, sigmas: Tensor) -> list[Evaluation]:
        sigma, level = sigmas[:-1], sigmas[1:]
        h = time_of(level) - time_of(sigma)
        h_last = lengths_before(h, 1)
        eta_h = self.config.eta * h
        gain = (-h - eta_h).expm1().neg()
        half = gain / (-h - eta_h) + 1 if self._second_order is SecondOrder.HEUN else 0.5 * gain
        # Also of first order after a step of no length.
        slope = torch.where((h > 0) & (h_last > 0), half * (1 / (h_last / h)), 0)
        root = (-2 * eta_h).expm1().neg().sqrt()
        steps = by_step(level / sigma * (-eta_h).exp(), gain, slope, sigma, level, root, level == 0)
        return [Evaluation(sigmas[i], _Step._make(step), level=i) for i, step in enumerate(steps)]

    def _restart(self) -> None:
        self._earlier: Tensor | None = None
        super()._restart()

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        noise_sampler: NoiseSampler | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One step.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`.
        generator, variance_noise (B, C, ...), noise_sampler: one source of the noise, see `BrownianScheduler`; nothing
        is drawn with η = 0 and in a step to σ = 0.
        Returns the next sample and x_θ in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list and for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        index = self._place(timestep)
        at = self._numbers_for(dtype)[index]
        x, step = sample.to(dtype), at.step
        interval = (step.sigma, step.level) if self.config.eta and not step.is_last else None
        noise = self._increment(index, interval, sample, generator, variance_noise, noise_sampler)
        denoised = self._denoised(model_output.to(dtype), x, at)
        prev_sample = denoised
        if not step.is_last:
            prev_sample = step.ratio * x + step.gain * denoised
            if step.slope and self._earlier is not None:
                prev_sample = prev_sample + step.slope * (denoised - self._earlier)
            if noise is not None:
                prev_sample = prev_sample + noise * step.level * step.root * self.config.s_noise
        self._earlier = denoised

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()
