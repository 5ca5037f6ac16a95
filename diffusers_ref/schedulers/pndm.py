"""Pseudo Numerical Methods for Diffusion Models on Manifolds (arXiv 2202.09778), Algorithm 2.

    code                  paper
    sample                x_t
    epsilon               ε_θ(x_t, t), or e_t
    transfer              φ(x_t, ε, t, t−δ), eq. 9 and 11
    history               e_{t+δ}, e_{t+2δ}, e_{t+3δ}, newest first

A grid step needs one, two or four evaluations of the network. `timesteps` lists the evaluations in order, and `step`
maps each output to the input of the next one:

    Runge–Kutta (eq. 13)         4 evaluations: at t, twice between t and t−δ, at t−δ
    improved Euler               2 evaluations: at t and at t−δ
    linear multistep (eq. 12)    1 evaluation: at t

Two originals are reproduced bit for bit: luping-liu's F-PNDM and S-PNDM (`solver` "f_pndm", "s_pndm") and CompVis' PLMS
("plms"). No step adds noise, but CompVis' code draws one for every evaluation, and so does "plms".
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.chain_scheduler import ChainScheduler
from diffusers_ref.schedulers.conventions import (
    BetaSchedule,
    Coefficients,
    PredictionType,
    Solver,
    TimestepSpacing,
    choose,
)
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step


class _Stage(Enum):
    """What an evaluation is for."""

    RUNGE_KUTTA_1 = "e_t^1 at (x_t, t)"
    RUNGE_KUTTA_2 = "e_t^2 at the midpoint"
    RUNGE_KUTTA_3 = "e_t^3 at the midpoint"
    RUNGE_KUTTA_4 = "e_t^4 at the end"
    EULER_1 = "e_t at (x_t, t)"
    EULER_2 = "e at the end of the Euler step"
    MULTISTEP = "e_t at (x_t, t), combined with the history"


_BEGINS_STEP = (_Stage.RUNGE_KUTTA_1, _Stage.EULER_1, _Stage.MULTISTEP)


class _Evaluation(NamedTuple):
    """One evaluation of the network, at `time`; its output moves the sample from `start` to `end`."""

    time: Time
    stage: _Stage
    start: Time
    end: Time


class _PaperTransfer(NamedTuple):
    """Eq. 9, in luping-liu's order of operations."""

    gap: float  # ᾱ_end − ᾱ_start
    of_sample: float
    of_epsilon: float

    def __call__(self, x: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor | None]:
        return x + self.gap * (self.of_sample * x - self.of_epsilon * epsilon), None


class _CompVisTransfer(NamedTuple):
    """Eq. 11 as CompVis writes it: through x̂_0, which is a by-product."""

    sqrt_abar: float
    sqrt_one_minus_abar: float
    sqrt_abar_end: float
    direction: float  # √(1 − ᾱ_end)

    def __call__(self, x: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor | None]:
        x0 = (x - self.sqrt_one_minus_abar * epsilon) / self.sqrt_abar
        return self.sqrt_abar_end * x0 + self.direction * epsilon, x0


class _Step(NamedTuple):
    """What follows one evaluation, as numbers, so that no device waits for them."""

    stage: _Stage
    transfer: _PaperTransfer | _CompVisTransfer
    sqrt_abar: float  # at the time of the evaluation, for v-prediction
    sqrt_one_minus_abar: float


class PNDMScheduler(ChainScheduler):
    """Pseudo linear multistep sampling, started by Runge–Kutta or improved Euler steps.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T.
        beta_start, beta_end, beta_schedule, trained_betas: the forward variances, see `BetaSchedule`.
        skip_prk_steps: False starts with up to three Runge–Kutta steps with integer midpoints; True runs CompVis' PLMS.
        set_alpha_to_one: the ᾱ that follows the last timestep is 1 (else ᾱ_0, as CompVis has it).
        prediction_type: "epsilon" or "v_prediction"; every evaluation is turned into ε at its own time.
        timestep_spacing, steps_offset: the grid, see `TimestepSpacing`.
    Conventions of originals:
        coefficients: see `Coefficients`; by default "compvis" for scaled_linear, else "float32_cumprod".
        solver: None follows `skip_prk_steps`, with the published grids. An original's solver replaces the grid rule
            "leading" by its own "ddim_uniform", and `skip_prk_steps` has no effect:
            "f_pndm", "s_pndm" (luping-liu) read ᾱ one entry later than the time says, so the process ends at ᾱ_0, at
            time −1; midpoints may be half-integers, and a short grid evaluates the network at −0.5 and −1 too.
            "plms" (CompVis) adds 1 to its grid, and draws a noise that is not used for every evaluation.

    The multistep method takes as many past outputs as there are, up to its order: it can start in the middle, too.
    """

    convention_options = frozenset({"coefficients", "solver"})

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        coefficients: str | None = None,
        solver: str | None = None,
    ) -> None:
        self._prediction = choose(PredictionType, "prediction_type", prediction_type, allowed=_PREDICTION_TYPES)
        self._solver = None if solver is None else choose(Solver, "solver", solver)
        scaled = beta_schedule == BetaSchedule.SCALED_LINEAR.value
        self._prepare(default_coefficients=Coefficients.COMPVIS if scaled else Coefficients.FLOAT32_CUMPROD)
        self._shifted = self._solver in (Solver.F_PNDM, Solver.S_PNDM)
        self._max_order = 2 if self._solver is Solver.S_PNDM else 4
        self._is_plms = self._solver is Solver.PLMS or (self._solver is None and skip_prk_steps)

    # --- the list of evaluations -------------------------------------------------------------------------------------

    def _grid_rule(self) -> tuple[TimestepSpacing, int]:
        own_grid = self._solver is not None and self._spacing is TimestepSpacing.LEADING
        spacing = TimestepSpacing.DDIM_UNIFORM if own_grid else self._spacing
        return spacing, 1 if self._solver is Solver.PLMS else self.config.steps_offset

    def _list_evaluations(self, grid: list[int], explicit: bool) -> list[Time]:
        if self._shifted and grid[0] == len(self) - 1:
            raise ValueError(
                f"solver={self.config.solver!r} reads abar one entry after the timestep, so its grid must begin below "
                f"{len(self) - 1}, but it begins there; take another number of steps, or explicit timesteps"
            )
        published = not explicit and self._grid_rule()[0] in _PUBLISHED_SPACINGS
        self._plan = self._make_plan(grid, half_stride=len(self) // len(grid) // 2 if published else None)
        return [float(item.time) if self._shifted else item.time for item in self._plan]

    def _make_plan(self, grid: list[int], half_stride: int | None) -> list[_Evaluation]:
        plan: list[_Evaluation] = []
        for index, (t, t_next) in enumerate(zip(grid, [*grid[1:], _END], strict=True)):
            is_last = index == len(grid) - 1
            if self._is_plms and index == 0 and (not is_last or self._solver is Solver.PLMS):
                # CompVis repeats the last time of its grid where there is no next one.
                plan.extend(_improved_euler(t, t_next, second_time=t if is_last else t_next))
            elif self._solver is Solver.S_PNDM and index == 0:
                plan.extend(_improved_euler(t, t_next, second_time=t_next))
            elif self._solver is Solver.F_PNDM and index < 3:
                plan.extend(_runge_kutta(t, t_next, middle=(t + t_next) / 2))
            elif self._solver is None and not self._is_plms and index < 3 and not is_last:
                half = (t - t_next) // 2 if half_stride is None else half_stride
                plan.extend(_runge_kutta(t, t_next, middle=t_next + half))
            else:
                plan.append(_Evaluation(t, _Stage.MULTISTEP, t, t_next))
        return plan

    def _begins_step(self, index: int) -> bool:
        return self._plan[index].stage in _BEGINS_STEP

    def _restart(self) -> None:
        self._history: list[Tensor] = []

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

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`.
        generator, variance_noise: (B, C, ...) the unused draw of the solver "plms"; no other solver draws.
        Returns the next input and, for PLMS, x̂_0, in the dtype of `sample`; the arithmetic is in that dtype, at least
        in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and for `variance_noise` where nothing is drawn.
        """
        dtype = self._check(model_output, sample)
        coefficients = self._coefficients(dtype)
        if self._solver is Solver.PLMS:
            self._noise(sample, generator, variance_noise, dtype)
        elif variance_noise is not None:
            raise ValueError("variance_noise is not allowed: only solver='plms' draws noise")
        step = coefficients[self._advance(timestep)]
        x, output = sample.to(dtype), model_output.to(dtype)

        epsilon = output
        if self._prediction is PredictionType.V_PREDICTION:
            epsilon = step.sqrt_abar * output + step.sqrt_one_minus_abar * x
        if step.stage in _BEGINS_STEP:
            self._base = x
            self._history = [epsilon, *self._history[: self._max_order - 1]]
        prev_sample, x0 = step.transfer(self._base, self._combined(epsilon, step.stage))

        result = SchedulerOutput(prev_sample.to(sample.dtype), None if x0 is None else x0.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _combined(self, epsilon: Tensor, stage: _Stage) -> Tensor:
        """The ε of this transfer, from this evaluation and the earlier ones of the same step or of the history."""
        if stage is _Stage.MULTISTEP:
            return self._multistep()
        if stage in _BEGINS_STEP:
            self._sum = epsilon
            return epsilon
        if stage is _Stage.RUNGE_KUTTA_4:
            return (1 / 6) * (self._sum + epsilon)  # eq. 13, last line
        if stage is _Stage.EULER_2:
            return (self._sum + epsilon) / 2
        self._sum = self._sum + 2 * epsilon
        return epsilon

    def _multistep(self) -> Tensor:
        """Adams–Bashforth: eq. 12 for order 4."""
        divisor, weights = _ADAMS_BASHFORTH[len(self._history)]
        total = weights[0] * self._history[0]
        for weight, epsilon in zip(weights[1:], self._history[1:], strict=True):
            total = total + weight * epsilon
        return total / divisor if self._is_plms else (1 / divisor) * total

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _coefficients(self, dtype: torch.dtype) -> list[_Step]:
        """The coefficients of every evaluation for arithmetic in `dtype`."""
        self._require_timesteps()
        if dtype not in self._coefficient_cache:
            exact = self._table.coefficients is Coefficients.FLOAT64
            work = torch.float64 if exact else dtype
            starts, ends, times = zip(*((item.start, item.end, item.time) for item in self._plan), strict=True)
            table, a_end, a_here = self._abar(starts), self._abar(ends).to(work), self._abar(times).to(work)
            if self._is_plms:
                # CompVis tabulates this one root, with NumPy, in the precision of its ᾱ.
                before = table if self._table.coefficients is Coefficients.COMPVIS else table.to(work)
                sqrt_one_minus = torch.from_numpy(np.sqrt((1.0 - before).numpy()))
                columns = [table.to(work).sqrt(), sqrt_one_minus, a_end.sqrt(), (1.0 - a_end).sqrt()]
            else:
                columns = [*_paper_factors(table.to(work), a_end)]
            columns += [a_here.sqrt(), (1 - a_here).sqrt()]
            rows = by_step(*(column.float() if exact else column for column in columns))
            kind = _CompVisTransfer if self._is_plms else _PaperTransfer
            self._coefficient_cache[dtype] = [
                _Step(item.stage, kind(*row[:-2]), *row[-2:]) for item, row in zip(self._plan, rows, strict=True)
            ]
        return self._coefficient_cache[dtype]

    def _abar(self, times: Sequence[Time]) -> Tensor:
        """(n,) ᾱ at each time, in the precision of the table."""
        if self._shifted:  # Truncates towards zero: the midpoint −0.5 reads the entry after −1.
            return self.alphas_cumprod[[int(time) + 1 for time in times]]
        levels = torch.cat([self.alphas_cumprod, self.final_alpha_cumprod.view(1)])
        return levels[list(times)]  # _END reads the last of them.


def _runge_kutta(t: int, t_next: int, middle: Time) -> list[_Evaluation]:
    return [
        _Evaluation(t, _Stage.RUNGE_KUTTA_1, t, middle),
        _Evaluation(middle, _Stage.RUNGE_KUTTA_2, t, middle),
        _Evaluation(middle, _Stage.RUNGE_KUTTA_3, t, t_next),
        _Evaluation(t_next, _Stage.RUNGE_KUTTA_4, t, t_next),
    ]


def _improved_euler(t: int, t_next: int, second_time: int) -> list[_Evaluation]:
    return [_Evaluation(t, _Stage.EULER_1, t, t_next), _Evaluation(second_time, _Stage.EULER_2, t, t_next)]


def _paper_factors(a: Tensor, a_end: Tensor) -> tuple[Tensor, ...]:
    of_sample = 1 / (a.sqrt() * (a.sqrt() + a_end.sqrt()))
    of_epsilon = 1 / (a.sqrt() * (((1 - a_end) * a).sqrt() + ((1 - a) * a_end).sqrt()))
    return a_end - a, of_sample, of_epsilon


_END = -1
"""The time after the last timestep of a grid."""

_ADAMS_BASHFORTH = {
    1: (1, (1,)),
    2: (2, (3, -1)),
    3: (12, (23, -16, 5)),
    4: (24, (55, -59, 37, -9)),
}
"""Order -> divisor, weights of the outputs from the newest to the oldest."""

_PREDICTION_TYPES = (PredictionType.EPSILON, PredictionType.V_PREDICTION)
_PUBLISHED_SPACINGS = (TimestepSpacing.LEADING, TimestepSpacing.LINSPACE, TimestepSpacing.TRAILING)
