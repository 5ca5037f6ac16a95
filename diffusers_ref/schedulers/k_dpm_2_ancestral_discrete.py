"""Ancestral sampling with second-order steps after DPM-Solver-2 (arXiv 2206.00927, Algorithm 1), in the coordinates of
EDM (arXiv 2206.00364): crowsonkb's `sample_dpm_2_ancestral`.

    code                  meaning
    sigmas                σ_0 > ... > σ_n
    at.sigma              σ_i; in the second evaluation σ_mid, the geometric mean of σ_i and σ_down
    sigma_down, sigma_up  the level of the deterministic step, and of the noise that then makes σ_{i+1}:
                          σ_down² + σ_up² = σ_{i+1}²
    eta                   η: 0 adds no noise, 1 as much as ancestral sampling of DDPM does (arXiv 2010.02502, eq. 16)
    variance_noise        ε_i

A step takes two evaluations of the network, and one where σ_down is 0; `timesteps` lists them in order.
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
    dt: Tensor | float  # from σ_i, to σ_mid in the first of two evaluations and else to σ_down
    sigma_up: Tensor | float
    is_first: bool


class KDPM2AncestralDiscreteScheduler(SigmaScheduler):
    """A midpoint method in log σ down to σ_down, then noise. The published options are those of `SigmaScheduler`.

    Conventions of originals (crowsonkb), besides those of `SigmaScheduler`:
        eta, s_noise: η and the standard deviation of the noise.

    A draw is made after every second evaluation, also with η = 0. With `use_karras_sigmas` the times of the grid, not
    those between, are rounded to whole ones, as published.

    Quirk of the original, kept: where σ_down is 0, the step is Euler's and ends at level 0, without noise. That is the
    last step; with η above 1, or on crowsonkb's grids where a level is thousands of times below the last one, it is an
    earlier one, too.
    """

    _base: Tensor  # the sample that a step under way began from

    order = 2
    convention_options = SIGMA_CONVENTIONS | {"eta", "s_noise"}
    _rounds_karras_times = True

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
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
        published, eta = self._schedule is None, self.config.eta
        rounded = sigmas.double() if published else sigmas.float()
        levels = rounded if published else sigmas
        for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
            sigma_down, sigma_up = ancestral_step(sigma, sigma_next, eta)
            # In float64 runs the original's float32 decides which steps are Euler's.
            is_euler = bool(ancestral_step(rounded[i], rounded[i + 1], eta)[0] == 0)
            sigma_end = sigma_down if is_euler else sigma.log().lerp(sigma_down.log(), 0.5).exp()
            first = _Step(sigma_end - sigma, sigma_up * 0, is_first=True)
            evaluations.append(Evaluation(sigmas[i], first, level=i))
            if not is_euler:
                second = _Step(sigma_down - sigma, sigma_up, is_first=False)
                evaluations.append(Evaluation(sigma_end.to(sigmas.dtype), second, begins=False))
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
        """Take the output of one evaluation; return the state at the next.

        model_output, sample: (B, C, ...), the network's output and the state that it saw, before scaling.
        timestep: an entry of `timesteps`. generator: where the noise is drawn from. variance_noise: (B, C, ...), the
        noise itself, instead of a draw, in a second evaluation.
        Returns the next state and D in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and for `variance_noise` where nothing is drawn.
        """
        dtype = self._check(model_output, sample)
        index = self._place(timestep)
        at = self._numbers_for(dtype)[index]
        noise = self._noise_if(not at.step.is_first, sample, generator, variance_noise, dtype)
        self._pass(index)
        x = sample.to(dtype)

        denoised = self._denoised(model_output.to(dtype), x, at)
        derivative = (x - denoised) / at.sigma
        if at.step.is_first:
            self._base = x
        prev_sample = self._base + derivative * at.step.dt
        if noise is not None:
            prev_sample = prev_sample + noise * self.config.s_noise * at.step.sigma_up

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()
