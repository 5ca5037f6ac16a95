"""DPM-Solver++(2M) in σ space: `sample_dpmpp_2m` of crowsonkb/k-diffusion.

DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (arXiv 2211.01095), algorithm 2.

    code                  paper (α is 1 in x = x_0 + σ·n coordinates)
    sample                x̃_{i−1}
    denoised, earlier     x_θ at t_{i−1} and at t_{i−2}
    h, h_last             h_i, h_{i−1}, steps in λ = −log σ
    r                     r_i = h_{i−1} / h_i
    now, before           1 + 1/(2 r_i) and 1/(2 r_i), the weights of D_i
    ratio, decay          σ_i/σ_{i−1} and e^{−h_i} − 1

The first step, and a step to σ = 0, are of first order. Nothing lowers the order of the step before the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.schedulers.exponential import lengths_before, level_of, time_of
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step
from diffusers_ref.schedulers.sigma_scheduler import SIGMA_CONVENTIONS, Evaluation, SigmaScheduler


class _Step(NamedTuple):
    ratio: float
    decay: float
    now: float
    before: float


class DPMPP2MScheduler(SigmaScheduler):
    """The multistep solver of second order for the probability flow ODE.

    Options: those of `SigmaScheduler`; all choose the levels and what the network is given and returns.
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
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        coefficients: str | None = None,
        sigma_schedule: str | None = None,
        sigma_options: Mapping[str, float] | None = None,
        quantize: bool = False,
    ) -> None:
        self._prepare()

    def _evaluations(self, sigmas: Tensor) -> list[Evaluation]:
        t, t_next = time_of(sigmas[:-1]), time_of(sigmas[1:])
        h = t_next - t
        h_last = lengths_before(h, 1)
        r = h_last / h
        # Also of first order after a step of no length.
        before = torch.where((h_last > 0) & (sigmas[1:] > 0), 1 / (2 * r), 0)
        steps = by_step(level_of(t_next) / level_of(t), (-h).expm1(), 1 + before, before)
        return [Evaluation(sigmas[i], _Step._make(step), level=i) for i, step in enumerate(steps)]

    def _restart(self) -> None:
        self._earlier: Tensor | None = None

    def step(
        self, model_output: Tensor, timestep: Time | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One step of algorithm 2; nothing is drawn.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`.
        Returns x̃_i and the denoised sample x_θ in the dtype of `sample`; the arithmetic is in that dtype, at least in
        float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list and for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        index = self._advance(timestep)
        at = self._numbers_for(dtype)[index]
        x, step = sample.to(dtype), at.step
        denoised = self._denoised(model_output.to(dtype), x, at)
        mixed = denoised
        if step.before and self._earlier is not None:
            mixed = step.now * denoised - step.before * self._earlier  # D_i
        prev_sample = step.ratio * x - step.decay * mixed
        self._earlier = denoised

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()
