"""Elucidating the Design Space of Diffusion-Based Generative Models (arXiv 2206.00364), Algorithm 2, with Heun's steps.

    code                  paper
    sigmas                t_0 > ... > t_N, as σ(t) = t
    at.sigma              t̂_i, the level after churn; in the second evaluation t_{i+1}
    sample                x̂_i; in the second evaluation x_{i+1} as Euler's method has it
    denoised              D_θ at these
    derivative            d_i, d'_i
    prev_sample           x_{i+1}

The original that is reproduced bit for bit is crowsonkb's `sample_heun`. A step takes two evaluations of the network,
and one where it ends at level 0; `timesteps` lists them in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.churn import CHURN_OPTIONS, ChurnedScheduler
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time
from diffusers_ref.schedulers.sigma_scheduler import SIGMA_CONVENTIONS, Evaluation


class _Step(NamedTuple):
    dt: Tensor | float  # t_{i+1} − t̂_i
    is_first: bool
    churn: Tensor | float = 0.0


class HeunDiscreteScheduler(ChurnedScheduler):
    """Heun's method along noise levels, with churn. The options are those of `SigmaScheduler` and `ChurnedScheduler`.

    Published options besides:
        clip_sample, clip_sample_range: clamp D to ±clip_sample_range.
    """

    _first: tuple[Tensor, Tensor]  # x̂_i and d_i of a step that is under way

    order = 2
    convention_options = SIGMA_CONVENTIONS | CHURN_OPTIONS

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        clip_sample: bool | None = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        coefficients: str | None = None,
        sigma_schedule: str | None = None,
        sigma_options: Mapping[str, Any] | None = None,
        quantize: bool = False,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
    ) -> None:
        self._prepare()

    def _evaluations(self, sigmas: Tensor) -> list[Evaluation]:
        evaluations = []
        for i, (sigma_hat, churn) in enumerate(self._churned(sigmas)):
            sigma_next = sigmas[i + 1]
            dt = sigma_next - sigma_hat
            evaluations.append(Evaluation(sigma_hat, _Step(dt, is_first=True, churn=churn), level=i))
            if sigma_next > 0:
                second = _Step(dt, is_first=False)
                evaluations.append(Evaluation(sigma_next, second, level=i + 1, begins=False))
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
        timestep: an entry of `timesteps`. generator, variance_noise: the draw of this step, which has no effect, as
        noise is added by `add_noise_to_input`; where that was called, and in a second evaluation, nothing is drawn.
        Returns the next state and D in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and where churn should have been added before.
        """
        dtype = self._check(model_output, sample)
        index = self._place(timestep)
        self._account_for_noise(index, sample, generator, variance_noise, dtype)
        self._pass(index)
        at = self._numbers_for(dtype)[index]
        x = sample.to(dtype)

        denoised = self._denoised(model_output.to(dtype), x, at)
        if self.config.clip_sample:
            denoised = denoised.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        derivative = (x - denoised) / at.sigma  # lines 7 and 10
        if at.step.is_first:
            self._first = x, derivative
        else:
            x, derivative = self._first[0], (self._first[1] + derivative) / 2
        prev_sample = x + derivative * at.step.dt  # lines 8 and 11

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()
