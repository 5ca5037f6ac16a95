"""DPM-Solver-12 and -23 with adaptive steps, in σ space: `sample_dpm_adaptive` of crowsonkb/k-diffusion.

DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (arXiv 2206.00927), appendix
C (algorithms 3 and 4), with a PID controller of the step's length (Söderlind, 2003) in the place of their rule.

    code                  paper (α is 1 in x = x_0 + σ·n coordinates)
    s, t                  λ_{i−1} and λ_i = λ_{i−1} + h, λ = −log σ
    sample                x̃_{i−1}, then u_1, u_2
    low, high             x̃ of order k−1 and k at λ_i, of the same evaluations
    x_prev                the last accepted x̃ of order k−1
    delta                 δ = max(ε_atol, ε_rtol max(|low|, |x_prev|))
    error                 E_k, the root mean square of (low − high)/δ over the batch
    up                    the deviation of the noise after an accepted step

A trial has k evaluations. It is accepted where the controller does not shorten the step by much; else it begins again
at s, with another evaluation there. Sampling ends at sigma_min, not at 0. With η > 0, a step goes down to λ(σ_down) and
back by noise; a noise is drawn after every accepted step, also with η = 0.

In float32 the first error estimates are rounding noise: another machine takes other steps, and ends 1e-3 away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers import sigmas as grids
from diffusers_ref.schedulers.adaptive import AdaptiveScheduler
from diffusers_ref.schedulers.ancestral import check_noise_options
from diffusers_ref.schedulers.conventions import SigmaSchedule
from diffusers_ref.schedulers.exponential import (
    THIRD,
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
from diffusers_ref.schedulers.sigma_scheduler import At, Evaluation, SigmaScheduler

ARRIVED = 1e-5
"""How close to the end λ has to be."""

TINY = 1e-8
"""What is added to an error before it is inverted."""


class StepSizeControl:
    """A PID controller: the length h of the next step, from the errors of the last trial and the two accepted before.

    order: of the error in h. accept_safety: a trial is accepted if it changes h by at least this factor.
    """

    def __init__(
        self, h: float, pcoeff: float, icoeff: float, dcoeff: float, order: float, accept_safety: float
    ) -> None:
        self.h = h
        self._powers = (pcoeff + icoeff + dcoeff) / order, -(pcoeff + 2 * dcoeff) / order, dcoeff / order
        self._accept_safety = accept_safety
        self._inverse_errors: list[float] = []

    def accepts(self, error: float) -> bool:
        """Whether a trial with this error is good enough; sets h for the next."""
        inverse = 1 / (error + TINY)
        before = self._inverse_errors or [inverse, inverse]
        factor = inverse ** self._powers[0] * before[0] ** self._powers[1] * before[1] ** self._powers[2]
        factor = 1 + math.atan(factor - 1)  # limited to 1 ± pi/2
        accepted = factor >= self._accept_safety
        self._inverse_errors = [inverse, before[0]] if accepted else before
        self.h *= factor
        return accepted


class _Plain(NamedTuple):
    """An evaluation about which there is nothing more to say."""


class _Trial(NamedTuple):
    """A step from s to t, as numbers but for t."""

    t: Tensor
    low: Transfer
    high: Transfer
    up: float
    at: list[At]  # of each evaluation
    times: list[float]


class DPMAdaptiveScheduler(AdaptiveScheduler, SigmaScheduler):
    """DPM-Solver with error control. How many evaluations it takes is not known beforehand:

        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(output, t, x, generator=generator).prev_sample

    Options beside those of `SigmaScheduler` for the chain and the network, which is given crowsonkb's time:
        sigma_min, sigma_max: the ends, by default those of the table.
        order: 2 or 3, of the step taken; the error is that of the order below.
        rtol, atol: ε_rtol and ε_atol. h_init: the first h.
        pcoeff, icoeff, dcoeff, accept_safety: of the controller, see `StepSizeControl`.
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
        order: int = 3,
        rtol: float = 0.05,
        atol: float = 0.0078,
        h_init: float = 0.05,
        pcoeff: float = 0.0,
        icoeff: float = 1.0,
        dcoeff: float = 0.0,
        accept_safety: float = 0.81,
        eta: float = 0.0,
        s_noise: float = 1.0,
        coefficients: str | None = None,
        quantize: bool = False,
    ) -> None:
        if order not in (2, 3):
            raise ConfigError(f"order={order!r} is not allowed; it must be 2 or 3")
        for name, value in (("rtol", rtol), ("atol", atol), ("h_init", h_init), ("accept_safety", accept_safety)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ConfigError(f"{name}={value!r} is not allowed; it must be a positive number")
        for name, value in (("pcoeff", pcoeff), ("icoeff", icoeff), ("dcoeff", dcoeff)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{name}={value!r} is not allowed; it must be a number")
        check_noise_options(eta, s_noise)
        # Tolerances are rounded to float32 whatever the arithmetic is.
        self._rtol, self._atol = (torch.tensor(value, dtype=torch.float32).item() for value in (rtol, atol))
        self._prepare()

    def _choose_schedule(self) -> SigmaSchedule:
        return SigmaSchedule.EXPONENTIAL

    def _first_level(self) -> float:
        return ends_of(self.config, self._sigma_table)[1]

    # --- the course of a run -----------------------------------------------------------------------------------------

    def set_timesteps(  # type: ignore[override]  # There is no grid.
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        """Begin a run, as if the scheduler had just been made.

        num_inference_steps: taken from common loops, and of no effect, as the tolerances decide.
        device: where the time of an evaluation lies.
        dtype: of the arithmetic of the samples to come, float32 or float64 (or its name), in which the time of the
            first evaluation is computed.
        """
        if dtype not in _DTYPES:
            raise ValueError(f"dtype={dtype!r} is not allowed: float32 or float64 is needed")
        low, high = ends_of(self.config, self._sigma_table)
        self._ends = [time_of(torch.tensor(level, dtype=torch.float32)) for level in (high, low)]
        self._begin(self._start(_DTYPES[dtype]), device)

    def _start(self, dtype: torch.dtype) -> float:
        """Plan the first trial in `dtype`; the time of its first evaluation."""
        config = self.config
        coefficients = config.pcoeff, config.icoeff, config.dcoeff
        order = 1.5 if config.eta else config.order
        self._control = StepSizeControl(config.h_init, *coefficients, order, config.accept_safety)
        self._dtype = dtype
        self._s, self._end = (time.to(dtype) for time in self._ends)
        self._x_prev: Tensor | None = None
        return self._plan_trial()

    def _plan_trial(self) -> float:
        """Plan the trial of a step from s; the time of its first evaluation."""
        s, order = self._s, self.config.order
        t = torch.minimum(self._end, s + self._control.h)
        if not t > s:
            level = level_of(s).item()
            raise ValueError(f"the step has become too short to move on at sigma={level:g}; take a larger rtol or atol")
        t_down, up = noisy_end(s, t, self._end, self.config.eta)
        h = t_down - s
        levels = torch.stack([level_of(s), *(level_of(s + stage / order * h) for stage in range(1, order))])
        times = grids.time_at_level(self._log_sigma_table, levels, bool(self.config.quantize)).tolist()
        pair = (first_order, second_order) if order == 2 else (_second_at_a_third, third_order)
        low, high = (transfer(s, t_down) for transfer in pair)
        at = self._as_numbers([Evaluation(level, _Plain()) for level in levels])
        self._trial = _Trial(t, low, high, (up * self.config.s_noise).item(), at, times)
        self._stage = 0
        return times[0]

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

        model_output, sample: (B, C, ...). timestep: the time of this evaluation, from `timesteps`.
        generator, variance_noise (B, C, ...): the noise, or where it is drawn from, after an accepted trial.
        Returns the next sample, which after a rejected trial is the one before it, and the denoised one, in the dtype
        of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, after the end, for another timestep, for shapes that do not fit, and
        where the error is not finite.
        """
        dtype = self._check(model_output, sample)
        self._expect(timestep)
        self._agree_on(dtype)
        trial, stage, order = self._trial, self._stage, self.config.order
        x = sample.to(dtype)
        denoised = self._denoised(model_output.to(dtype), x, trial.at[stage])
        eps = (x - denoised) / trial.at[stage].sigma
        if not stage:
            self._base, self._eps = x, eps
        if stage == order - 2:
            self._low = trial.low.advance(order - 1, stage, self._base, self._eps, eps)
        prev_sample = trial.high.advance(order, stage, self._base, self._eps, eps)
        self._stage += 1
        next_time: float | None = None
        if self._stage < order:
            next_time = trial.times[self._stage]
        else:
            prev_sample, accepted = self._judged(prev_sample)
            if accepted:
                noise = self._noise(sample, generator, variance_noise, dtype)
                prev_sample = prev_sample + trial.up * noise
            if self._s < self._end - ARRIVED:
                next_time = self._plan_trial()
        self._continue(next_time)

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _judged(self, high: Tensor) -> tuple[Tensor, bool]:
        """The state after a trial, without noise, and whether the trial is accepted."""
        low, x_prev = self._low, self._base if self._x_prev is None else self._x_prev
        delta = (self._rtol * torch.maximum(low.abs(), x_prev.abs())).clamp_min(self._atol)
        error = float(torch.linalg.norm((low - high) / delta) / high.numel() ** 0.5)
        if not math.isfinite(error):
            raise ValueError(f"the error of a step is {error}: the sample or the model output is not finite")
        if not self._control.accepts(error):
            self.rejected += 1
            return self._base, False
        self.accepted += 1
        self._x_prev, self._s = low, self._trial.t
        return high, True

    def _agree_on(self, dtype: torch.dtype) -> None:
        """Plan the first trial again where the samples have another precision than was expected."""
        if dtype != self._dtype:
            if self.evaluations:
                raise ValueError(f"the samples of a run have one precision: it began in {self._dtype}, now {dtype}")
            self._start(dtype)

    def scale_model_input(self, sample: Tensor, timestep: Time | Tensor | None = None) -> Tensor:
        """The network's input c_in · x, (B, C, ...), at the next evaluation."""
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        if timestep is not None:
            self._expect(timestep)
        self._agree_on(dtype)
        return (sample.to(dtype) * self._trial.at[self._stage].c_in).to(sample.dtype)

    def _level_for(self, time: Time) -> Tensor:
        if self.next_time is not None and time == self.next_time:
            return torch.tensor(self._trial.at[self._stage].sigma, dtype=self._dtype)
        return super()._level_for(time)

    def _entry(self, time: Time) -> int | None:
        return None  # There is no list of times.


def _second_at_a_third(t: Tensor, t_next: Tensor) -> Transfer:
    return second_order(t, t_next, THIRD)


_DTYPES = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    "float32": torch.float32,
    "float64": torch.float64,
}
