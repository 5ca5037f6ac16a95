"""Ancestral sampling with DPM-Solver++(2S) steps in σ space: `sample_dpmpp_2s_ancestral` of crowsonkb/k-diffusion.

DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (arXiv 2211.01095), algorithm 1, down to
σ_down; then noise up to the next level.

    code                  paper (α is 1 in x = x_0 + σ·n coordinates)
    sample                x̃_{i−1}, then u_i
    denoised              x_θ at t_{i−1}, then at s_i
    h                     h_i = λ_down − λ_{i−1}, λ = −log σ
    ratio, decay          of the way to s_i: σ_s/σ and e^{−h/2} − 1; of the whole step: σ_down/σ and e^{−h} − 1
    up                    σ_up, the deviation of the noise

A step has two evaluations, at t_{i−1} and at its midpoint in λ (r = 1/2). Where σ_down is 0, it is one Euler step. The
noise is drawn after the last evaluation of a step, also with η = 0, but not in a step to σ = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.ancestral import ancestral_step, check_noise_options
from diffusers_ref.schedulers.exponential import level_of, time_of
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step
from diffusers_ref.schedulers.sigma_scheduler import SIGMA_CONVENTIONS, Evaluation, SigmaScheduler

R = 1 / 2
"""r_i, where the second evaluation lies."""


class _Step(NamedTuple):
    ratio: float
    decay: float
    dt: float  # of an Euler step
    up: float
    is_euler: bool
    is_second: bool
    draws: bool


class DPMPP2SAncestralScheduler(SigmaScheduler):
    """The singlestep solver of second order, with fresh noise after every step.

    Options beside those of `SigmaScheduler`:
        eta: the share of the step that is done by noise, at least 0; 0 solves the ODE.
        s_noise: a factor on the noise, at least 0.
    """

    convention_options = SIGMA_CONVENTIONS

    order = 2

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
        plan: list[Evaluation] = []
        # σ_down is a difference of squares: crowsonkb's grids take it as the original rounds it, others exactly.
        published, eta = self._schedule is None, self.config.eta
        rounded = sigmas.double() if published else sigmas.float()
        levels = rounded if published else sigmas
        down, up = ancestral_step(levels[:-1], levels[1:], eta)
        # In float64 runs the original's float32 decides which steps are Euler's.
        is_euler = ancestral_step(rounded[:-1], rounded[1:], eta)[0] == 0
        t, t_next = time_of(levels[:-1]), time_of(down)
        h = t_next - t
        middle = level_of(t + R * h)
        firsts = by_step(middle / level_of(t), (-h * R).expm1())
        lasts = by_step(level_of(t_next) / level_of(t), (-h).expm1())
        ends = by_step(down - levels[:-1], up, is_euler)
        for i, (first, last, end) in enumerate(zip(firsts, lasts, ends, strict=True)):
            draws = bool(sigmas[i + 1] > 0)
            only = bool(is_euler[i])
            plan.append(Evaluation(sigmas[i], _Step(*(*first, *end, False, draws and only)), level=i))
            if not only:
                second = _Step(*(*last, *end, True, draws))
                plan.append(Evaluation(middle[i].to(sigmas.dtype), second, begins=False))
        return plan

    def _restart(self) -> None:
        self._base: Tensor | None = None

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take the output of one evaluation; return the input of the next.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`.
        generator: where the noise is drawn from. variance_noise: (B, C, ...), the noise itself, instead of a draw.
        Returns the next sample and x_θ in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list and for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        index = self._place(timestep)
        at = self._numbers_for(dtype)[index]
        noise = self._noise_if(at.step.draws, sample, generator, variance_noise, dtype)
        self._pass(index)
        x, step = sample.to(dtype), at.step
        denoised = self._denoised(model_output.to(dtype), x, at)
        if step.is_euler:
            prev_sample = x + (x - denoised) / at.sigma * step.dt
        elif step.is_second:
            assert self._base is not None
            prev_sample = step.ratio * self._base - step.decay * denoised
        else:
            self._base = x
            prev_sample = step.ratio * x - step.decay * denoised  # u_i
        if noise is not None:
            prev_sample = prev_sample + noise * self.config.s_noise * step.up

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()
