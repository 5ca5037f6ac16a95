"""Adaptive DPM-Solver (arXiv 2206.00927, section 3.4 and appendix: "DPM-Solver-12", "DPM-Solver-23"), also for ++.

Two solvers of neighbouring orders share their evaluations; their difference says whether the step is accepted, and how
large the next one is. The number of evaluations is not known beforehand: `timesteps` tells each when it is due.

    code              algorithm (appendix, "adaptive step size")
    x                 x̃_{t_{i−1}}
    x_lower, x_higher x_A, x_B
    x_prev            x_prev, the lower solution of the last accepted step
    s, t, h           s, t, and h in λ
    error             E_n, largest of the batch
    atol, rtol, theta ε_atol, ε_rtol, θ

LuChengTHU/dpm-solver's `method="adaptive"`, bit for bit; error control after "Gotta Go Fast" (arXiv 2105.14080).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.schedulers.adaptive import AdaptiveScheduler
from diffusers_ref.schedulers.dpm_solver_updates import (
    LUCHENGTHU,
    AlgorithmType,
    SinglestepUpdate,
    choose_algorithm,
    singlestep_updates,
)
from diffusers_ref.schedulers.log_snr import DiscreteLogSnr, Levels
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time
from diffusers_ref.schedulers.solver_outputs import OutputConversion
from diffusers_ref.schedulers.solver_tables import chain_of, log_snr_of


class DPMSolverAdaptiveScheduler(AdaptiveScheduler):
    """DPM-Solver with step sizes by error control.

    Options named as those of `DPMSolverSinglestepScheduler`, with the same meaning:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, coefficients, log_snr, log_alpha_from.
        solver_order: 2 or 3, of the higher of the two solutions.
        prediction_type, variance_type, algorithm_type ("dpmsolver++" or "dpmsolver"), solver_type.
        thresholding, dynamic_thresholding_ratio, sample_max_value, sample_min_value.
        final_sigmas_type: "sigma_min" ends at 1/N; "zero" evaluates there, and the result is that x_0.
    Options of its own:
        atol, rtol: tolerances, absolute and relative to the solution; the scale of each element's error is the larger.
        h_init: the first step, in λ.
        theta: a step is this fraction of the one that would have just been accepted.
        t_err: the run ends when t is so near its end.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        solver_order: int = 3,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float | None = None,
        sample_min_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        final_sigmas_type: str = "sigma_min",
        variance_type: str | None = None,
        coefficients: str | None = None,
        log_snr: str = "discrete_clipped",
        log_alpha_from: str | None = None,
        atol: float = 0.0078,
        rtol: float = 0.05,
        h_init: float = 0.05,
        theta: float = 0.9,
        t_err: float = 1e-5,
    ) -> None:
        self._algorithm, self._solver_type = choose_algorithm(self.config, _ALGORITHMS)
        if solver_order not in (2, 3):
            raise ConfigError(f"solver_order={solver_order!r} is not allowed; allowed: 2, 3")
        if final_sigmas_type not in ("sigma_min", "zero"):
            raise ConfigError(f"final_sigmas_type={final_sigmas_type!r} is not allowed; allowed: 'sigma_min', 'zero'")
        for name in ("atol", "rtol", "h_init", "theta", "t_err"):
            if not self.config[name] > 0:
                raise ConfigError(f"{name}={self.config[name]!r} is not allowed; it must be above 0")
        self._table = chain_of(self.config)
        schedule = log_snr_of(self.config, self.config_keys(), self._table, LUCHENGTHU)
        if schedule is None:
            raise ConfigError("log_snr=None is not allowed: an adaptive sampler has no published grid")
        self._schedule = schedule
        self._convert = OutputConversion(self.config, self._algorithm.is_of_data, through_epsilon=True)
        if thresholding and not self._algorithm.is_of_data and final_sigmas_type != "zero":
            raise ConfigError("thresholding has an effect on a solver of the noise only if it ends at zero")

    @property
    def log_alphas(self) -> Tensor:
        """(N,) float32, log α of the chain as a discrete `log_snr` interpolates it."""
        if not isinstance(self._schedule, DiscreteLogSnr):
            raise AttributeError("log_alphas needs a discrete log_snr")
        return self._schedule.log_alphas

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        t_start: float | None = None,
        t_end: float | None = None,
    ) -> None:
        """Begin anew, as if the scheduler had just been made.

        num_inference_steps: taken from common loops, and of no effect, as the tolerances decide.
        device: where the times are handed out. t_start, t_end: the continuous times in (0, T] where the run begins and
        ends; by default T and 1/N.
        """
        lowest = 1.0 / self._schedule.steps
        self._begin_time = self._schedule.end if t_start is None else t_start
        self._end_time = lowest if t_end is None else t_end
        least = lowest if isinstance(self._schedule, DiscreteLogSnr) else 0.0
        if not (least <= self._end_time < self._begin_time <= self._schedule.end and self._end_time > 0):
            raise ValueError(
                f"t_start={self._begin_time} and t_end={self._end_time} are out of range; allowed: from "
                f"{self._schedule.end} down to {least}, the first above the second"
            )
        self._begin(self._network_time(torch.full((1,), self._begin_time)), device)

    def _restart(self) -> None:
        self._s: Tensor | None = None
        self._outputs: list[Tensor] = []
        self._is_last = False

    # --- one evaluation ----------------------------------------------------------------------------------------------

    def step(
        self, model_output: Tensor, timestep: Time | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take the output of one evaluation; return the input of the next, in this trial or another.

        model_output: (B, C, ...), or (B, 2C, ...) with a learned variance. sample: (B, C, ...). timestep: the entry of
        `timesteps` that has just been handed out. Returns the next input and, for ++, x_0, in the dtype of `sample`;
        the arithmetic is in that dtype, at least in float32. Decisions read the error, so a device is waited for.

        Raises ValueError before `set_timesteps`, for another timestep, and for shapes that do not fit.
        """
        dtype = self._check(model_output, sample, channel_factor=self._convert.channel_factor)
        self._expect(timestep)
        x, output = sample.to(dtype), model_output.to(dtype)
        if self._is_last:
            return self._finish(output, x, sample.dtype, return_dict)
        if self._s is None:
            self._start(x, dtype)
        if not self._outputs:
            self._x = x
            self._plan_trial(dtype)
        place = len(self._outputs)
        output, x0 = self._convert(output, x, self._levels.alpha[place].item(), self._levels.sigma[place].item())
        self._outputs.append(output)
        if place + 1 < self.config.solver_order:
            x = self._updates[place](self._x, self._outputs, None)
            self._continue(self._network_time(self._points[place + 1]))
        else:
            x = self._finish_trial()
        result = SchedulerOutput(x.to(sample.dtype), None if x0 is None else x0.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _start(self, x: Tensor, dtype: torch.dtype) -> None:
        one = torch.ones(1, dtype=dtype)
        self._s, self._h = self._begin_time * one, self.config.h_init * one
        self._lambda_s = self._schedule.half_log_snr(self._s)
        self._lambda_end = self._schedule.half_log_snr(self._end_time * one)
        self._x_prev = x

    def _plan_trial(self, dtype: torch.dtype) -> None:
        """The levels and updates of a step of `h` from `s`, and of its rival of the order below."""
        assert self._s is not None
        schedule, order = self._schedule, self.config.solver_order
        t = schedule.time(self._lambda_s + self._h)
        h = schedule.half_log_snr(t) - self._lambda_s
        r = [k / order for k in range(1, order)]
        within = [schedule.time(self._lambda_s + distance * h) for distance in r]
        self._points = [self._s, *within, t]
        self._levels = schedule.levels(torch.cat(self._points), dtype)
        self._updates = self._updates_of(self._levels, r)
        self._lower = self._updates_of(self._levels.at([*range(order - 1), order]), r[:-1])[-1]

    def _updates_of(self, levels: Levels, r: Sequence[float]) -> Sequence[SinglestepUpdate]:
        (updates,) = singlestep_updates(self._algorithm, self._solver_type, levels.at(None), r, midpoint_within=False)
        return updates

    def _finish_trial(self) -> Tensor:
        """Accept or reject; returns the state from which it goes on."""
        config, order = self.config, self.config.solver_order
        assert self._s is not None
        x_lower = self._lower(self._x, self._outputs[: order - 1], None)
        x_higher = self._updates[-1](self._x, self._outputs, None)
        self._outputs = []

        scale = torch.maximum(x_lower.abs(), self._x_prev.abs()) * config.rtol
        scale = torch.maximum(torch.full_like(scale, config.atol), scale)
        norms = torch.sqrt(torch.square(((x_higher - x_lower) / scale).reshape(len(x_lower), -1)).mean(dim=-1))
        error = norms.max().cpu()
        if error <= 1.0:
            self.accepted += 1
            self._x, self._x_prev, self._s = x_higher, x_lower, self._points[-1]
            self._lambda_s = self._schedule.half_log_snr(self._s)
        elif error.isfinite():
            self.rejected += 1
        else:
            raise ValueError("the error estimate is not finite: the network's output or the sample is not")
        growth = torch.float_power(error, -1.0 / order).float()
        self._h = torch.minimum(config.theta * self._h * growth, self._lambda_end - self._lambda_s)
        if (self._s - self._end_time).abs().mean() > config.t_err:
            self._continue(self._network_time(self._s))
        elif config.final_sigmas_type == "zero":
            self._is_last = True
            self._continue(self._network_time(torch.full((1,), self._end_time)))
        else:
            self._continue(None)
        return self._x

    def _finish(
        self, output: Tensor, x: Tensor, dtype: torch.dtype, return_dict: bool
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        # This one time is float32 whatever the arithmetic is.
        level = self._schedule.levels(torch.full((1,), self._end_time), torch.float32)
        x0 = self._convert.x0(output, x, level.alpha.item(), level.sigma.item()).to(dtype)
        self._continue(None)
        result = SchedulerOutput(x0, x0)
        return result if return_dict else result.to_tuple()

    def _network_time(self, t: Tensor) -> float:
        """The network's time at t (1,), rounded to float32 whatever the arithmetic is."""
        return self._schedule.network_time(t).float().item()

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | Time) -> Tensor:
        """Draw x_t = α_t·x_0 + σ_t·noise.

        original_samples, noise: (B, ...). timesteps: () or (B,), as the network is given them. Returns (B, ...).
        """
        dtype = self._check(noise, original_samples)
        t = self._schedule.time_of_network(torch.as_tensor(timesteps).cpu().float().reshape(-1))
        if len(t) not in (1, len(original_samples)) or not ((t > 0) & (t <= self._schedule.end)).all():
            raise ValueError(
                f"timesteps {torch.as_tensor(timesteps).tolist()} are not allowed; 1 or {len(original_samples)} times "
                "of the process"
            )
        levels = self._schedule.levels(t, dtype)
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (column.to(original_samples.device).view(shape) for column in (levels.alpha, levels.sigma))
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)


_ALGORITHMS = (AlgorithmType.DPM_SOLVER, AlgorithmType.DPM_SOLVER_PP)
