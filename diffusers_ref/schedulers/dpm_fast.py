"""DPM-Solver-fast in σ space: `sample_dpm_fast` of crowsonkb/k-diffusion.

DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (arXiv 2206.00927), section
3.4: steps uniform in λ, of third order as far as the number of evaluations allows.

    code                  paper (α is 1 in x = x_0 + σ·n coordinates)
    times                 λ_0 < ... < λ_M, λ = −log σ, from the largest level to the smallest
    transfer              the coefficients of one step, see `exponential.Transfer`
    base, eps             x̃_{i−1} and ε_θ there
    up                    the deviation of the noise after the step

It ends at sigma_min, not at 0. With η > 0, a step goes down to λ(σ_down), at most λ_M, and back by noise. A noise is
drawn after every step, also with η = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.ancestral import check_noise_options
from diffusers_ref.schedulers.conventions import SigmaSchedule
from diffusers_ref.schedulers.exponential import (
    Transfer,
    ends_of,
    first_order,
    level_of,
    noisy_end,
    second_order,
    third_order,
    time_of,
)
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time
from diffusers_ref.schedulers.sigma_options import count_of
from diffusers_ref.schedulers.sigma_scheduler import Evaluation, SigmaScheduler


class _Step(NamedTuple):
    transfer: Transfer
    order: int
    stage: int  # 0, 1, 2: ε, ε_1, ε_2
    up: Tensor | float


class DPMFastScheduler(SigmaScheduler):
    """DPM-Solver of orders 3, 3, ..., on a grid that is uniform in log σ; n steps are n evaluations.

    Options beside those of `SigmaScheduler` for the chain and the network, which is given crowsonkb's time:
        sigma_min, sigma_max: the ends of the grid, by default those of the table.
        eta: the share of a step that is done by noise, at least 0; 0 solves the ODE.
        s_noise: a factor on the noise, at least 0.
    """

    convention_options = frozenset({"coefficients", "quantize"})

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        eta: float = 0.0,
        s_noise: float = 1.0,
        coefficients: str | None = None,
        quantize: bool = False,
    ) -> None:
        check_noise_options(eta, s_noise)
        self._prepare()

    def _choose_schedule(self) -> SigmaSchedule:
        return SigmaSchedule.EXPONENTIAL

    def _first_level(self) -> float:
        return self._ends()[1]

    def _ends(self) -> tuple[float, float]:
        return ends_of(self.config, self._sigma_table)

    def set_timesteps(  # type: ignore[override]  # The grid is its own.
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Choose the grid of n evaluations of the network and begin anew, as if the scheduler had just been made.

        num_inference_steps: n, at least 1. device: where `timesteps` lies. Raises ValueError for another n.
        """
        count = count_of(num_inference_steps)
        low, high = self._ends()
        start, end = (time_of(torch.tensor(level, dtype=torch.float32)) for level in (high, low))
        self._orders = _orders(count)
        self._grid = torch.linspace(start.item(), end.item(), len(self._orders) + 1, dtype=torch.float32)
        self._adopt_levels(torch.stack([level_of(t) for t in self._grid]), None, device)
        self.num_inference_steps = count

    def _evaluations(self, sigmas: Tensor) -> list[Evaluation]:
        times = self._grid.to(sigmas.dtype)
        plan: list[Evaluation] = []
        for i, order in enumerate(self._orders):
            t, t_next = times[i], times[i + 1]
            t_down, up = noisy_end(t, t_next, times[-1], self.config.eta)
            transfer = _TRANSFERS[order](t, t_down)
            h = t_down - t
            for stage in range(order):
                sigma = level_of(t + stage / order * h) if stage else level_of(t)
                step = _Step(transfer, order, stage, up * self.config.s_noise)
                plan.append(Evaluation(sigma, step, level=None if stage else i, begins=not stage))
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
        generator: where the noise is drawn from, after the last evaluation of a step. variance_noise: (B, C, ...), the
        noise itself, instead of a draw.
        Returns the next sample and the denoised one in the dtype of `sample`; the arithmetic is in that dtype, at least
        in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list and for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        index = self._place(timestep)
        at = self._numbers_for(dtype)[index]
        noise = self._noise_if(at.step.stage == at.step.order - 1, sample, generator, variance_noise, dtype)
        self._pass(index)
        x, step = sample.to(dtype), at.step
        denoised = self._denoised(model_output.to(dtype), x, at)
        eps = (x - denoised) / at.sigma
        if not step.stage:
            self._base, self._eps = x, eps
        assert self._base is not None
        prev_sample = step.transfer.advance(step.order, step.stage, self._base, self._eps, eps)
        if noise is not None:
            prev_sample = prev_sample + step.up * noise

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()


def _orders(count: int) -> list[int]:
    """The orders of the steps, which sum to the number of evaluations."""
    thirds, rest = divmod(count, 3)
    return [3] * thirds + [rest] if rest else [3] * (thirds - 1) + [2, 1]


_TRANSFERS = {1: first_order, 2: second_order, 3: third_order}
