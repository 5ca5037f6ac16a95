"""DPM-Solver++ (stochastic) in σ space: `sample_dpmpp_sde` of crowsonkb/k-diffusion.

DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (arXiv 2211.01095), algorithm 1, with
both of its stages made stochastic: down to σ_down, then noise up to the level itself.

    code                  paper (α is 1 in x = x_0 + σ·n coordinates)
    sample                x̃_{i−1}, then u_i
    denoised              x_θ at t_{i−1}, then at s_i
    r                     r_i: s_i = λ_{i−1} + r h_i, λ = −log σ
    ratio, decay          σ_down/σ and e^{λ − λ_down} − 1, for the way to s_i, then for the whole step
    up                    σ_up of that way, the deviation of the noise
    first, second         1 − 1/(2r) and 1/(2r), the weights of D_i

A step has two evaluations and two draws, from σ to σ_s and from σ to σ_next, which overlap. They are increments of one
Brownian path, as k-diffusion takes them, unless a generator or the noise is given. A step to σ = 0 is one Euler step
without a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.ancestral import ancestral_step, check_noise_options
from diffusers_ref.schedulers.brownian import BrownianScheduler, NoiseSampler
from diffusers_ref.schedulers.exponential import level_of, time_of
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step
from diffusers_ref.schedulers.sigma_scheduler import SIGMA_CONVENTIONS, Evaluation


class _Step(NamedTuple):
    ratio: float
    decay: float
    up: float
    sigma: float  # of the noise's interval
    level: float
    is_euler: bool
    is_second: bool


class DPMSolverSDEScheduler(BrownianScheduler):
    """The singlestep solver of second order for the reverse SDE.

    The published options are those of `SigmaScheduler` and `BrownianScheduler`.
    Conventions of crowsonkb beside those of `SigmaScheduler`:
        eta: the share of each stage that is done by noise, at least 0; 0 solves the ODE.
        s_noise: a factor on the noise, at least 0.
        r: where the second evaluation lies, above 0 and at most 1.
    """

    convention_options = SIGMA_CONVENTIONS | {"eta", "s_noise", "r"}

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
        noise_sampler_seed: int | Sequence[int] | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        eta: float = 1.0,
        s_noise: float = 1.0,
        r: float = 0.5,
        coefficients: str | None = None,
        sigma_schedule: str | None = None,
        sigma_options: Mapping[str, float] | None = None,
        quantize: bool = False,
    ) -> None:
        check_noise_options(eta, s_noise)
        if isinstance(r, bool) or not isinstance(r, (int, float)) or not 0 < r <= 1:
            raise ConfigError(f"r={r!r} is not allowed; it must be a number above 0 and at most 1")
        self._weights = 1 - 1 / (2 * r), 1 / (2 * r)
        self._prepare()

    def _evaluations(self, sigmas: Tensor) -> list[Evaluation]:
        plan: list[Evaluation] = []
        # σ_down is a difference of squares: crowsonkb's grids take it as the original rounds it, others exactly.
        times = time_of(sigmas.double() if self._schedule is None else sigmas)
        t, t_next = times[:-1], times[1:]
        s = t + (t_next - t) * self.config.r
        inner = level_of(s).to(sigmas.dtype)
        ways = zip(self._ways(t, s), self._ways(t, t_next), strict=True)
        for i, (first, second) in enumerate(ways):
            is_euler = bool(sigmas[i + 1] == 0)
            plan.append(Evaluation(sigmas[i], _Step._make((*first, is_euler, False)), level=i))
            if not is_euler:
                plan.append(Evaluation(inner[i], _Step._make((*second, is_euler, True)), begins=False))
        return plan

    def _ways(self, t: Tensor, end: Tensor) -> Iterator[tuple[float, ...]]:
        """One stage of every step, from t; levels are read back from times, as k-diffusion does."""
        sigma, level = level_of(t), level_of(end)
        down, up = ancestral_step(sigma, level, self.config.eta)
        t_down = time_of(down)
        return by_step(level_of(t_down) / sigma, (t - t_down).expm1(), up, sigma, level)

    def _restart(self) -> None:
        self._base: Tensor | None = None
        self._first: Tensor | None = None
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
        s_noise: float | None = None,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take the output of one evaluation; return the input of the next.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`.
        generator, variance_noise (B, C, ...), noise_sampler: one source of the noise, see `BrownianScheduler`; drawn
        after every evaluation, also with η = 0, but for a step to σ = 0. s_noise: instead of the option.
        Returns the next sample and x_θ in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list and for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        index = self._place(timestep)
        at = self._numbers_for(dtype)[index]
        x, step = sample.to(dtype), at.step
        interval = None if step.is_euler else (step.sigma, step.level)
        noise = self._increment(index, interval, sample, generator, variance_noise, noise_sampler)
        denoised = self._denoised(model_output.to(dtype), x, at)
        if noise is None:
            prev_sample = x + (x - denoised) / at.sigma * -at.sigma
        else:
            if step.is_second:
                assert self._base is not None and self._first is not None
                x, mixed = self._base, self._weights[0] * self._first + self._weights[1] * denoised  # D_i
            else:
                self._base, self._first, mixed = x, denoised, denoised
            prev_sample = step.ratio * x - step.decay * mixed
            prev_sample = prev_sample + noise * (self.config.s_noise if s_noise is None else s_noise) * step.up

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()
