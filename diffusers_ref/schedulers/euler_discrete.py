"""Elucidating the Design Space of Diffusion-Based Generative Models (arXiv 2206.00364), Algorithm 2 with Euler steps.

    code                  paper
    sigmas                t_0 > ... > t_N, as σ(t) = t
    at.sigma              t̂_i, the level after churn
    sample                x̂_i
    denoised              D_θ(x̂_i; t̂_i)
    derivative            d_i
    prev_sample           x_{i+1}

The original that is reproduced bit for bit is crowsonkb's `sample_euler`.
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
    churn: Tensor | float
    dt: Tensor | float  # t_{i+1} − t̂_i


class EulerDiscreteScheduler(ChurnedScheduler):
    """Euler's method along noise levels, with churn: options of `SigmaScheduler` and `ChurnedScheduler`."""

    convention_options = SIGMA_CONVENTIONS | CHURN_OPTIONS

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
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
        return [
            Evaluation(sigma_hat, _Step(churn, sigmas[i + 1] - sigma_hat), level=i)
            for i, (sigma_hat, churn) in enumerate(self._churned(sigmas))
        ]

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """One Euler step.

        model_output, sample: (B, C, ...), the network's output and the state that it saw, before scaling.
        timestep: an entry of `timesteps`. generator, variance_noise: the draw of this step, which has no effect, as
        noise is added by `add_noise_to_input`; where that was called, nothing is drawn here.
        Returns x_{i+1} and D in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

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
        derivative = (x - denoised) / at.sigma  # line 7
        prev_sample = x + derivative * at.step.dt  # line 8

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()
