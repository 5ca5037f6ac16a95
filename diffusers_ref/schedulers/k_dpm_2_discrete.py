"""A second-order method after DPM-Solver-2 (arXiv 2206.00927, Algorithm 1), in the coordinates of EDM (2206.00364) and
with its churn (Algorithm 2): crowsonkb's `sample_dpm_2`.

    code                  papers
    sigmas                σ_0 > ... > σ_n
    at.sigma              σ̂_i, the level after churn; in the second evaluation σ_mid, the geometric mean of σ̂_i and
                          σ_{i+1}, as s_i of DPM-Solver-2 is the middle in λ = −log σ
    sample                x̂_i; in the second evaluation u_i
    denoised              D at these
    derivative            (x − D) / σ, which is ε_θ
    prev_sample           x_{i+1}

A step takes two evaluations of the network, and one where it ends at level 0; `timesteps` lists them in order.
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
    dt: Tensor | float  # from σ̂_i, to σ_mid in the first evaluation and to σ_{i+1} in the second
    is_first: bool
    churn: Tensor | float = 0.0


class KDPM2DiscreteScheduler(ChurnedScheduler):
    """A midpoint method in log σ, with churn. The options are those of `SigmaScheduler` and `ChurnedScheduler`.

    With `use_karras_sigmas` the times of the grid, not those between, are rounded to whole ones, as published.
    """

    _base: Tensor  # the sample that a step under way began from

    order = 2
    convention_options = SIGMA_CONVENTIONS | CHURN_OPTIONS
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
            whole = sigma_next - sigma_hat
            if sigma_next == 0:
                evaluations.append(Evaluation(sigma_hat, _Step(whole, is_first=True, churn=churn), level=i))
                continue
            sigma_mid = sigma_hat.log().lerp(sigma_next.log(), 0.5).exp()
            evaluations.append(Evaluation(sigma_hat, _Step(sigma_mid - sigma_hat, is_first=True, churn=churn), level=i))
            second = _Step(whole, is_first=False)
            evaluations.append(Evaluation(sigma_mid, second, begins=False))
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
        derivative = (x - denoised) / at.sigma
        if at.step.is_first:
            self._base = x
        prev_sample = self._base + derivative * at.step.dt

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()
