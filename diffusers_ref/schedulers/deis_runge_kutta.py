"""DEIS' ρRK (arXiv 2204.13902, section 4): Runge–Kutta methods for dy/dρ = ε_θ(x(y), t(ρ)), eq. 17.

    code                  paper
    sample                y_ρ = x_t/√ᾱ_t, eq. 16
    rho                   ρ = √(1 − ᾱ)/√ᾱ
    slope                 dy/dρ, which is ε_θ

A step of s stages evaluates the network s times. `timesteps` lists the evaluations in order, and `step` maps each
output to the state at the next one. The network is given the float32 times of the original.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.piecewise_vp import PiecewiseVP, requested_times
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time
from diffusers_ref.schedulers.solver_outputs import OutputConversion
from diffusers_ref.schedulers.solver_scheduler import SolverScheduler
from diffusers_ref.schedulers.solver_tables import chain_of


class RungeKutta(str, Enum):
    """The methods of qsh-zh/deis, by the names they have there."""

    EULER = "1euler"
    """One stage: DDIM."""
    HEUN_2 = "2heun"
    """Two stages, at both ends of the step: the predictor and corrector of EDM (arXiv 2206.00364)."""
    KUTTA_3 = "3kutta"
    """Kutta's method of order 3."""
    RALSTON_3 = "3ral"
    """Ralston's method of order 3."""
    HEUN_3 = "3heun"
    """Heun's method of order 3."""
    VAN_DER_HOUWEN_3 = "3vdh"
    """Van der Houwen's and Wray's method of order 3."""
    STRONG_STABILITY_3 = "3ssprk"
    """The strong stability preserving method of order 3."""
    CLASSIC_4 = "4rk"
    """The classic method of order 4."""


class _Tableau(NamedTuple):
    """Of a method with s stages: y_next = y + h/divisor · Σ b_i k_i."""

    nodes: tuple[float, ...]  # c_2, ..., c_s
    inner: tuple[tuple[float, ...], ...]  # a_2, ..., a_s
    weights: tuple[float, ...]  # b_1, ..., b_s
    divisor: float = 1.0


class _Stage(NamedTuple):
    """One evaluation: the level that the network sees, and how the state at the next one follows from the slopes."""

    alpha: float
    sigma: float
    scale: float  # 1/√ᾱ
    weights: tuple[float, ...]
    factor: float | None  # of the weighted sum of slopes at the end of a step; None within one


class DEISRungeKuttaScheduler(SolverScheduler):
    """Runge–Kutta methods in ρ. HF diffusers does not have this class.

    num_train_timesteps: T.
    beta_start, beta_end, beta_schedule, trained_betas: the forward variances, see `BetaSchedule`.
    prediction_type: what the network returns, see `solver_outputs.SolverPrediction`; every output is turned into ε.
    ts_phase: in which variable the grid of fractional times from T − 1 to 0 is even, see `TimePhase`; by default "t".
    ts_order: the exponent of that grid; by default 2 for "t" and 7 for "rho"; "log" has none.
    rk_method: see `RungeKutta`.
    coefficients: see `Coefficients`; by default "compvis" for scaled_linear, "float64" for squaredcos_cap_v2,
        "float32_cumprod" for the rest.

    The state is x/√ᾱ, see `init_noise_sigma` and `scale_model_input`. Sampling can begin at the first stage of a step.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        ts_phase: str | None = None,
        ts_order: float | None = None,
        rk_method: str = "3kutta",
        coefficients: str | None = None,
    ) -> None:
        self._table = chain_of(self.config)
        self._log_snr = None
        self._convert = OutputConversion({**_FIXED, **self.config}, integrates_data=False, through_epsilon=False)
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._phase, self._exponent = PiecewiseVP.grid_options(ts_phase, ts_order)
        self._tableau = _TABLEAUS[choose(RungeKutta, "rk_method", rk_method)]
        self._process = PiecewiseVP(self.alphas_cumprod)
        self.init_noise_sigma = float(self._process.unit_scale(np.float32(len(self) - 1)))

    # --- the list of evaluations -------------------------------------------------------------------------------------

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[Time] | None = None,
    ) -> None:
        """Choose the grid and begin anew, as if the scheduler had just been made.

        Exactly one of these says where steps begin:
        num_inference_steps: how many, 1 to T − 1, by `ts_phase` and `ts_order`.
        timesteps: the times, real numbers in [0, T − 1], not ascending; the last step ends at 0.

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        process = self._process
        times = requested_times(process, self._phase, self._exponent, num_inference_steps, timesteps)
        rhos, listed = process.rho(times), times.tolist()
        entries: list[Time] = []
        visited: list[np.float32] = []
        for time, time_next, rho, rho_next in zip(listed, listed[1:], rhos, rhos[1:], strict=False):
            h = rho_next - rho
            inner = [rho + h * np.float32(node) for node in self._tableau.nodes]
            visited += [rho, *inner]
            entries += [time, *(process.exact_time(level, time, time_next) for level in inner)]
        self.sigmas = torch.from_numpy(rhos.copy())
        self._visited = np.array(visited)
        self._seen = process.time(self._visited)
        self.init_noise_sigma = float(process.unit_scale(times[0]))
        self._final_scale = float(process.unit_scale(times[-1]))
        self._coefficient_cache: dict[torch.dtype, Any] = {}
        self._adopt(entries, len(times) - 1, device, self._seen.tolist())
        self._coefficients(torch.float32)

    def _begins_step(self, index: int) -> bool:
        return index % len(self._tableau.weights) == 0

    def _restart(self) -> None:
        self._slopes: list[Tensor] = []

    # --- one evaluation ----------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Time | Tensor | None = None) -> Tensor:
        """The network's input √ᾱ · sample, (B, C, ...), at an entry of `timesteps` (by default the next)."""
        self._require_timesteps()
        index = (self._step_index or 0) if timestep is None else self._locate(timestep, self._step_index)
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        return (sample.to(dtype) / self._coefficients(dtype)[index].scale).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take the output of one evaluation; return the state at the next.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`.
        Returns the next state in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        self._require_timesteps()
        stages: list[_Stage] = self._coefficients(dtype)
        index = self._advance(timestep)
        stage = stages[index]
        x, output = sample.to(dtype), model_output.to(dtype)

        slope = self._convert.epsilon(output, x * stage.alpha, stage.alpha, stage.sigma)
        if self._begins_step(index):
            self._base, self._slopes = x, []
        self._slopes.append(slope)
        terms = [weight * value for weight, value in zip(stage.weights, self._slopes, strict=True) if weight]
        if stage.factor is None:
            prev_sample = sum(terms, start=self._base)
        else:
            prev_sample = self._base + stage.factor * sum(terms[1:], start=terms[0])
        if index == len(self._times) - 1:
            prev_sample = prev_sample / self._final_scale
        return self._result(prev_sample, None, sample.dtype, return_dict)

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _make_coefficients(self, dtype: torch.dtype) -> list[_Stage]:
        count = len(self._tableau.weights)
        ends = self.sigmas.numpy()
        scales = self._process.unit_scale(self._seen).tolist()
        stages = []
        for index, rho in enumerate(self._visited.tolist()):
            place, number = divmod(index, count)
            h = ends[place + 1] - ends[place]
            if number == count - 1:
                weights, factor = self._tableau.weights, float(h / np.float32(self._tableau.divisor))
            else:
                weights, factor = tuple(float(h * np.float32(a)) for a in self._tableau.inner[number]), None
            alpha = 1.0 / math.sqrt(rho**2 + 1.0)
            stages.append(_Stage(alpha, rho * alpha, scales[index], weights, factor))
        return stages

    def _level_at(self, time: Time, dtype: torch.dtype) -> tuple[float, float]:
        """1 and ρ: the state is x/√ᾱ."""
        if self.num_inference_steps is not None and time in self._times:
            begin = self._begin_index
            entry = begin if begin is not None and self._times[begin] == time else self._times.index(time)
            return 1.0, float(self._visited[entry])
        if not 0 <= time <= len(self) - 1:
            raise ValueError(f"timestep {time} is out of range; allowed: 0 to {len(self) - 1}")
        return 1.0, float(self._process.rho(np.float32(time)))


_TABLEAUS = {
    RungeKutta.EULER: _Tableau((), (), (1.0,)),
    RungeKutta.HEUN_2: _Tableau((1.0,), ((1.0,),), (1.0, 1.0), 2.0),
    RungeKutta.KUTTA_3: _Tableau((0.5, 1.0), ((0.5,), (-1.0, 2.0)), (1.0 / 6, 4.0 / 6, 1.0 / 6)),
    RungeKutta.RALSTON_3: _Tableau((1.0 / 2, 3.0 / 4), ((1.0 / 2,), (0.0, 3.0 / 4)), (2.0 / 9, 1.0 / 3, 4.0 / 9)),
    RungeKutta.HEUN_3: _Tableau((1.0 / 3, 2.0 / 3), ((1.0 / 3,), (0.0, 2.0 / 3)), (1.0 / 4, 0.0, 3.0 / 4)),
    RungeKutta.VAN_DER_HOUWEN_3: _Tableau(
        (8.0 / 15, 2.0 / 3), ((8.0 / 15,), (1.0 / 4, 5.0 / 12)), (1.0 / 4, 0.0, 3.0 / 4)
    ),
    RungeKutta.STRONG_STABILITY_3: _Tableau((1.0, 0.5), ((1.0,), (0.25, 0.25)), (1.0 / 6, 1.0 / 6, 2.0 / 3)),
    RungeKutta.CLASSIC_4: _Tableau((0.5, 0.5, 1.0), ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1.0, 2.0, 2.0, 1.0), 6.0),
}

_FIXED = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_min_value": 1.0,
    "sample_max_value": 1.0,
    "variance_type": None,
    "use_flow_sigmas": False,
}
"""Options of `OutputConversion` that are none here."""
