"""SDE-DPM-Solver++(3M) in σ space: `sample_dpmpp_3m_sde` of crowsonkb/k-diffusion.

No paper; DPM-Solver++ (arXiv 2211.01095), section 5, with the third-order multistep extrapolation of x_θ. η = 1 is the
reverse SDE, η = 0 the ODE.

    code                  meaning (α is 1 in x = x_0 + σ·n coordinates)
    denoised, history     x_θ now, and at the two evaluations before, newest first
    h                     the step in λ = −log σ; h_1, h_2 are those before
    h_eta                 (1 + η) h
    keep, gain            of x and of x_θ: e^{−h_eta} and 1 − e^{−h_eta}
    r_0, r_1              h_1/h and h_2/h
    d1_0, d1_1            differences of x_θ over h_1 and over h_2
    d1, d2                its first and second derivative now, in units of h
    phi_2, phi_3          φ_2 = (e^{−h_eta} − 1)/h_eta + 1 and φ_3 = φ_2/h_eta − 1/2
    level, root           σ_next and √(1 − e^{−2ηh}), whose product is the deviation of the noise

The orders are 1, 2, 3, 3, ..., and nothing lowers that of the step before the last one; a step to σ = 0 returns x_θ and
draws nothing. HF diffusers' third-order "sde-dpmsolver++" has the 1/2 of φ_3 with the other sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.ancestral import check_noise_options
from diffusers_ref.schedulers.brownian import BrownianScheduler, NoiseSampler
from diffusers_ref.schedulers.exponential import lengths_before, time_of
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step
from diffusers_ref.schedulers.sigma_scheduler import SIGMA_CONVENTIONS, Evaluation


class _Step(NamedTuple):
    keep: float
    gain: float
    phi_2: float
    phi_3: float
    r_0: float
    r_1: float
    sum_r: float
    sigma: float
    level: float
    root: float
    order: int
    is_last: bool


class DPMPP3MSDEScheduler(BrownianScheduler):
    """The multistep solver of third order for the reverse SDE.

    Options beside those of `SigmaScheduler` and `BrownianScheduler`:
        eta: how much of the SDE's noise is added, at least 0. s_noise: a factor on it, at least 0.
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
        coefficients: str | None = None,
        sigma_schedule: str | None = None,
        sigma_options: Mapping[str, float] | None = None,
        quantize: bool = False,
    ) -> None:
        check_noise_options(eta, s_noise)
        self._prepare()

    def _evaluations(self, sigmas: Tensor) -> list[Evaluation]:
        eta = self.config.eta
        sigma, level = sigmas[:-1], sigmas[1:]
        h = time_of(level) - time_of(sigma)
        h_1, h_2 = lengths_before(h, 1), lengths_before(h, 2)
        h_eta = h * (eta + 1)
        gain = (-h_eta).expm1().neg()
        phi_2 = h_eta.neg().expm1() / h_eta + 1
        phi_3 = phi_2 / h_eta - 0.5
        r_0, r_1 = h_1 / h, h_2 / h
        root = (-2 * h * eta).expm1().neg().sqrt()
        # Of lower order after a step of no length.
        order = torch.where((h > 0) & (h_1 > 0), torch.where(h_2 > 0, 3, 2), 1)
        columns = (-h_eta).exp(), gain, phi_2, phi_3, r_0, r_1, r_0 + r_1, sigma, level, root, order, level == 0
        return [Evaluation(sigmas[i], _Step._make(step), level=i) for i, step in enumerate(by_step(*columns))]

    def _restart(self) -> None:
        self._history: list[Tensor] = []
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
            prev_sample = step.keep * x + step.gain * denoised
            prev_sample = self._corrected(prev_sample, denoised, step)
            if noise is not None:
                prev_sample = prev_sample + noise * step.level * step.root * self.config.s_noise
        self._history = [denoised, *self._history[:1]]

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _corrected(self, first_order: Tensor, denoised: Tensor, step: _Step) -> Tensor:
        """The step with the derivatives of x_θ, as far as there is a history of it."""
        order = min(step.order, 1 + len(self._history))
        if order == 1:
            return first_order
        d1_0 = (denoised - self._history[0]) / step.r_0
        if order == 2:
            return first_order + step.phi_2 * d1_0
        d1_1 = (self._history[0] - self._history[1]) / step.r_1
        d1 = d1_0 + (d1_0 - d1_1) * step.r_0 / step.sum_r
        d2 = (d1_0 - d1_1) / step.sum_r
        return first_order + step.phi_2 * d1 - step.phi_3 * d2
