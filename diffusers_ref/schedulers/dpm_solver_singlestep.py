"""Singlestep DPM-Solver (arXiv 2206.00927, algorithms 1, 2, 4, 5; "DPM-Solver-fast") and DPM-Solver++ 2S (2211.01095).

A step of order k evaluates the network k times, within the step, and then goes from where it began to its end; nothing
is kept from step to step. Orders 1 to 3, along the ODE or (++) the SDE; the updates are in `dpm_solver_updates`.

    code              paper
    base              x̃_{t_{i−1}}, where the step began
    outputs           the outputs at s_0 = t_{i−1}, s_1, s_2
    sample            x̃_{t_{i−1}}, u_1 or u_2
    inner             λ at s_0, s_1, s_2 and at the end: r_1, r_2 are the distances of s_1, s_2

`timesteps` has one entry for each evaluation. LuChengTHU/dpm-solver is reproduced bit for bit with `log_snr`,
`orders="fast"` or "fixed", `taylor_within`, and, where it thresholds, `sample_max_value=None`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.dpm_solver_updates import (
    LUCHENGTHU,
    AlgorithmType,
    SinglestepUpdate,
    choose_algorithm,
    singlestep_updates,
)
from diffusers_ref.schedulers.log_snr import Levels, LogSnr, outer_times, singlestep_orders
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time
from diffusers_ref.schedulers.solver_scheduler import SolverScheduler


class OrderPlan(str, Enum):
    """Of which orders the steps are, where the published `lower_order_final` does not say it."""

    FAST = "fast"
    """LuChengTHU, "singlestep": as many of `solver_order` as fit, and lower ones so that all evaluations are used."""
    FIXED = "fixed"
    """LuChengTHU, "singlestep_fixed": all of `solver_order`, which divides the evaluations (there: rounded down)."""


class _Evaluation(NamedTuple):
    """What follows one evaluation: α and σ there, its place within its step, and the step's updates.

    No updates: the prediction of x_0 is the result.
    """

    alpha: float
    sigma: float
    place: int
    updates: Sequence[SinglestepUpdate]


class DPMSolverSinglestepScheduler(SolverScheduler):
    """Singlestep DPM-Solver and DPM-Solver++.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T.
        beta_start, beta_end, beta_schedule, trained_betas: the forward variances, see `BetaSchedule`.
        solver_order: 1, 2 or 3; evaluations of the grid are taken together by so many.
        prediction_type: what the network returns, see `SolverPrediction`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x_0; its scale is at most
            `sample_max_value` (None: any).
        algorithm_type: what is integrated, see `AlgorithmType`, of which "sde-dpmsolver" is not offered; "deis" is
            "dpmsolver++".
        solver_type: the form of updates of order 2 and 3, see `SolverType`; "logrho", "bh1", "bh2" are "midpoint".
        lower_order_final: the last steps are of lower orders. Always so where the orders would not fill the grid, or
            the run ends at 0.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: which σ/α are visited, at the nearest integer times.
        use_flow_sigmas, flow_shift, use_dynamic_shifting, time_shift_type: a flow, x_t = (1 − σ)·x_0 + σ·n.
        final_sigmas_type: the run ends at 0 by a step of order 1 (++ only), or at the level of the first timestep.
        lambda_min_clipped: timesteps of a smaller λ are not visited.
        variance_type: "learned" and "learned_range" take outputs of 2C channels and leave the second half unused.
    Conventions of originals:
        coefficients: see `Coefficients`; by default the recipe of the original that such weights come from.
        log_snr: LuChengTHU: continuous times from T to 1/N and what the network is given there, fractional training
            timesteps; see `LogSnrKind`. Every output is turned into ε first. Replaces the published grids, but for
            final_sigmas_type: "sigma_min" ends at 1/N, and "zero" is `denoise_to_zero`: there the last
            evaluation takes place, whose x_0 is the result. For "linear" β(t) goes from T · beta_start to T · beta_end.
        skip_type: which continuous times are visited, see `SkipType`; by default "time_uniform".
        log_alpha_from: see `AlphaSource`; by default ᾱ for "compvis", else β.
        orders: see `OrderPlan`; refused together with `lower_order_final`. "fixed" needs `log_snr`.
        taylor_within: LuChengTHU: the second evaluation of a step of order 3 lies where the Taylor form puts it, also
            with solver_type="midpoint".
        sample_min_value: the scale of dynamic thresholding is at least this; `thresholding_max_val` of LuChengTHU.

    Sampling can begin at any evaluation; within a step, its remaining ones make a step of lower order.
    """

    convention_options = frozenset(
        {
            "coefficients",
            "log_snr",
            "skip_type",
            "log_alpha_from",
            "orders",
            "taylor_within",
            "sample_min_value",
        }
    )

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float | None = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        coefficients: str | None = None,
        log_snr: str | None = None,
        skip_type: str | None = None,
        log_alpha_from: str | None = None,
        orders: str | None = None,
        taylor_within: bool = False,
        sample_min_value: float = 1.0,
    ) -> None:
        self._algorithm, self._solver_type = choose_algorithm(self.config, _ALGORITHMS)
        self._prepare(self._algorithm.is_of_data, is_sde=self._algorithm.is_sde, kinds=LUCHENGTHU)
        self._order_plan = None if orders is None else choose(OrderPlan, "orders", orders)
        if self._order_plan is not None:
            self._refuse(("lower_order_final",), f"has no effect with orders={orders!r}")
        if self._order_plan is OrderPlan.FIXED and self._log_snr is None:
            raise ConfigError("orders='fixed' needs log_snr: published grids take all evaluations")
        self._inner: dict[int, Tensor] = {}

    # --- the plan ----------------------------------------------------------------------------------------------------

    def _orders_of(self, count: int) -> list[int]:
        """The order of each step, for `count` evaluations."""
        order = self.config.solver_order
        if self._order_plan is OrderPlan.FIXED:
            if count % order:
                raise ValueError(f"num_inference_steps: orders='fixed' takes multiples of {order}, not {count}")
            return [order] * (count // order)
        if self._order_plan is OrderPlan.FAST:
            return singlestep_orders(count, order)
        ends_at_zero = self._log_snr is None and self.config.final_sigmas_type == "zero"
        if not (self.config.lower_order_final or ends_at_zero or count % order):
            return [order] * (count // order)
        if order == 2 and count % 2 == 0:
            return [2] * (count // 2 - 1) + [1, 1]
        return singlestep_orders(count, order)

    def _spaced_points(self, schedule: LogSnr, count: int, begin: float, end: float) -> Tensor:
        orders = self._orders_of(count)
        if self._order_plan is OrderPlan.FIXED:
            outer = schedule.times(self._skip_type, len(orders), begin, end)
        else:
            outer = outer_times(schedule, self._skip_type, count, orders, begin, end)
        points: list[Tensor] = []
        self._inner = {}
        for step, order in enumerate(orders):
            s, t = outer[step], outer[step + 1]
            begin = len(points)
            points.append(s.reshape(1))
            if order > 1:
                start = schedule.half_log_snr(s)
                h = schedule.half_log_snr(t) - start
                inner = schedule.half_log_snr(schedule.times(self._skip_type, order, s.item(), t.item()))
                points += [schedule.time(start + distance * h).reshape(1) for distance in _distances(inner)]
                self._inner[begin] = inner
        return torch.cat([*points, outer[-1:]])

    def _plan(self, times: list[Time]) -> None:
        lambdas = self._levels(torch.float32).half_log_snr.tolist()
        orders = self._orders_of(len(times))
        self._steps: list[int] = []
        begin = 0
        for order in orders:
            visited = lambdas[begin : begin + order + 1]
            # No derivative can be taken where levels repeat, or from one without signal.
            if len(set(visited[:-1])) < order or visited[0] == -float("inf"):
                self._steps += [1] * order
            elif visited[-1] == float("inf") and order > 1:  # Nothing is a fraction of an infinite step.
                self._steps += [order - 1, 1]
            else:
                self._steps.append(order)
            begin += order

    def _restart(self) -> None:
        self._outputs: list[Tensor] = []

    # --- one evaluation ----------------------------------------------------------------------------------------------

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

        model_output: (B, C, ...), or (B, 2C, ...) with a learned variance. sample: (B, C, ...).
        timestep: an entry of `timesteps`. generator, variance_noise: (B, C, ...) the draw of an SDE's evaluation.
        Returns the next input and, where the data is integrated or thresholded, x_0, in the dtype of `sample`; the
        arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and for `variance_noise` where nothing is drawn.
        """
        dtype = self._check(model_output, sample, channel_factor=self._convert.channel_factor)
        self._require_timesteps()
        coefficients: list[_Evaluation] = self._coefficients(dtype)
        noise = self._draw(sample, generator, variance_noise, dtype)
        index = self._advance(timestep)
        alpha, sigma, place, updates = coefficients[index]
        x, output = sample.to(dtype), model_output.to(dtype)
        if not updates:
            result = self._convert.x0(output, x, alpha, sigma)
            return self._result(result, result, sample.dtype, return_dict)

        output, x0 = self._convert(output, x, alpha, sigma)
        if place == 0 or not self._outputs:
            self._base, self._outputs, self._skipped = x, [], place
        self._outputs.append(output)
        if self._skipped:
            updates = self._late_updates(index - place + self._skipped, len(updates) - self._skipped, dtype)
        prev_sample = updates[place - self._skipped](self._base, self._outputs, noise)
        return self._result(prev_sample, x0, sample.dtype, return_dict)

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _make_coefficients(self, dtype: torch.dtype) -> list[_Evaluation]:
        levels = self._levels(dtype)
        begins = [0, *accumulate(self._steps)]
        updates: dict[int, Sequence[SinglestepUpdate]] = {}
        for order in set(self._steps):
            of_order = [begin for begin, k in zip(begins, self._steps, strict=False) if k == order]
            inner = {} if self._explicit else self._inner
            updates |= zip(of_order, self._updates(levels, of_order, order, inner), strict=True)
        alphas, sigmas = levels.alpha.tolist(), levels.sigma.tolist()
        rows = [
            _Evaluation(alphas[begin + k], sigmas[begin + k], k, updates[begin])
            for begin, order in zip(begins, self._steps, strict=False)
            for k in range(order)
        ]
        return [*rows, *(_Evaluation(*level, 0, ()) for level in self._last_level(dtype))]

    def _late_updates(self, begin: int, order: int, dtype: torch.dtype) -> Sequence[SinglestepUpdate]:
        """The updates of a step of which only the last `order` evaluations are made."""
        key = (dtype, begin)
        if key not in self._coefficient_cache:
            (self._coefficient_cache[key],) = self._updates(self._levels(dtype), [begin], order, {})
        updates: Sequence[SinglestepUpdate] = self._coefficient_cache[key]
        return updates

    def _updates(
        self, levels: Levels, begins: Sequence[int], order: int, inner: Mapping[int, Tensor]
    ) -> list[tuple[SinglestepUpdate, ...]]:
        """The updates of steps of one order, which begin at these evaluations.

        inner: the λ of the grid within a step, where it is not that of its evaluations.
        """
        at = [range(begin, begin + order + 1) for begin in begins]
        levels = levels.at(torch.tensor(at))
        lambdas = levels.half_log_snr
        if order > 1 and inner:
            lambdas = torch.stack([inner[begin] for begin in begins]).to(lambdas)
        within = not self.config.taylor_within
        return singlestep_updates(
            self._algorithm, self._solver_type, levels, _distances(lambdas), midpoint_within=within
        )


def _distances(inner: Tensor) -> list[Tensor]:
    """r_1, ... of the λ (..., k + 1) of a step's evaluations and end."""
    first, *within, last = inner.unbind(-1)
    return [(point - first) / (last - first) for point in within]


_ALGORITHMS = (AlgorithmType.DPM_SOLVER, AlgorithmType.DPM_SOLVER_PP, AlgorithmType.SDE_DPM_SOLVER_PP)
