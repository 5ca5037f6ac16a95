"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) for flow matching, as Stability-AI/sd3.5 runs it.

    code               paper
    sample             x̃_{t_{i−1}}, here x_σ = (1 − σ) x_0 + σ n
    denoised           x_θ(x̃_{t_{i−1}}, t_{i−1}), here x̂_0 = x_σ − σ v
    earlier            x_θ(x̃_{t_{i−2}}, t_{i−2})
    h                  h_i = λ_i − λ_{i−1}
    r                  r_i = h_{i−1} / h_i

`sample_dpmpp_2m` is k-diffusion's, with λ = −log σ and α = 1, although the signal of a flow is 1 − σ. A step of first
order is exact all the same: x' = (σ'/σ) x + (1 − σ'/σ) x̂_0 holds along straight paths, too. The first step, a step
after a new beginning and the step to σ = 0 are of first order.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.flow_scheduler import FlowScheduler
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step


class _Step(NamedTuple):
    """What one step needs, as numbers, so that no device waits for them."""

    rounded_sigma: float  # in `time_dtype`
    ratio: float  # σ'/σ, through λ
    expm1: float  # e^{−h} − 1
    newer: float  # 1 + 1/(2r), the weight of x_θ of this evaluation
    older: float  # 1/(2r), that of the evaluation before


class FlowMatchDPMPP2MScheduler(FlowScheduler):
    """x' = (σ'/σ) x − (e^{−h} − 1) D, D = (1 + 1/(2r)) x̂_0 − 1/(2r) x̂_0 of the evaluation before.

    Options: those of the levels, see `FlowScheduler`, but for `invert_sigmas`. HF diffusers has no such class.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        flow_grid: str = "published",
        network_time: str = "timestep",
        time_dtype: str = "float32",
    ) -> None:
        self._prepare()

    def _restart(self) -> None:
        self._earlier: Tensor | None = None

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One step of DPM-Solver++(2M).

        model_output: (B, C, ...) the velocity. timestep: an entry of `timesteps`. sample: (B, C, ...) x_σ.
        generator: taken as by other samplers; nothing is drawn.
        Returns x_σ' and x̂_0 in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        coefficients = self._coefficients(dtype)
        c = coefficients[self._advance(timestep)]
        x = sample.to(dtype)

        denoised = x - model_output.to(dtype) * c.rounded_sigma
        estimate = denoised
        if self._earlier is not None:
            estimate = c.newer * denoised - c.older * self._earlier
        prev_sample = c.ratio * x - c.expm1 * estimate
        self._earlier = denoised

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _make_coefficients(self, sigmas: Tensor) -> list[_Step]:
        t = sigmas.log().neg()
        level, h = t.neg().exp(), t.diff()
        # Not finite at σ' = 0, where the order is 1, and where a level repeats. That of the first step is never read.
        older = (1 / (2 * (h.roll(1) / h))).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        rounded = sigmas[:-1].to(self._time_dtype).to(sigmas.dtype)
        columns = (rounded, level[1:] / level[:-1], (-h).expm1(), 1 + older, older)
        return [_Step(*row) for row in by_step(*columns)]
