"""Multistep DPM-Solver (arXiv 2206.00927; order 1 is DDIM) and DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2).

Each step evaluates the network once and takes the derivatives of the integrand from earlier outputs. Orders 1 to 3,
along the ODE or the SDE; the updates are in `dpm_solver_updates`.

    code              paper
    sample            x̃_{t_{i−1}}
    prev_sample       x̃_{t_i}
    history           the outputs of the last levels, the newest first
    order             k: grows from 1 with the history, and can fall again at the end

LuChengTHU/dpm-solver is reproduced bit for bit with `log_snr`, `lower_order_below=10` and, where it thresholds,
`sample_max_value=None`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.dpm_solver_updates import (
    LUCHENGTHU,
    AlgorithmType,
    MultistepUpdate,
    choose_algorithm,
    multistep_updates,
)
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time
from diffusers_ref.schedulers.solver_scheduler import SolverScheduler


class _Evaluation(NamedTuple):
    """What follows one evaluation: α and σ there, and the update of every order up to the planned one.

    No updates: the prediction of x_0 is the result.
    """

    alpha: float
    sigma: float
    updates: Sequence[MultistepUpdate]


class DPMSolverMultistepScheduler(SolverScheduler):
    """Multistep DPM-Solver and DPM-Solver++.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T.
        beta_start, beta_end, beta_schedule, trained_betas: the forward variances, see `BetaSchedule`.
        solver_order: 1, 2 or 3.
        prediction_type: what the network returns, see `SolverPrediction`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x_0; its scale is at most
            `sample_max_value` (None: any).
        algorithm_type: what is integrated, see `AlgorithmType`; "deis" is "dpmsolver++".
        solver_type: the form of the second-order update, see `SolverType`; "logrho", "bh1" and "bh2" are "midpoint".
        lower_order_final: orders fall to 2 and 1 in the last steps of short runs, see `lower_order_below`.
        euler_at_final: the last step has order 1.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas: which σ/α are visited, each at the
            nearest integer time.
        use_flow_sigmas, flow_shift, use_dynamic_shifting, time_shift_type: a flow, x_t = (1 − σ)·x_0 + σ·n.
        final_sigmas_type: the run ends at 0 by a step of order 1 (++ only), or at the level of the first timestep.
        lambda_min_clipped: timesteps of a smaller λ are not visited.
        variance_type: "learned" and "learned_range" take outputs of 2C channels and leave the second half unused.
        timestep_spacing, steps_offset: the grid of times where none of the above chooses levels.
        rescale_betas_zero_snr: rescale the betas so that ᾱ_T is (almost) 0.
    Conventions of originals:
        coefficients: see `Coefficients`; by default the recipe of the original that such weights come from.
        log_snr: LuChengTHU: continuous times from T to 1/N and what the network is given there, fractional training
            timesteps; see `LogSnrKind`. Every output is turned into ε first. Replaces the published grids, but for
            final_sigmas_type: "sigma_min" ends at 1/N, and "zero" is `denoise_to_zero`: there the last
            evaluation takes place, whose x_0 is the result. For "linear" β(t) goes from T · beta_start to T · beta_end.
        skip_type: which continuous times are visited, see `SkipType`; by default "time_uniform".
        log_alpha_from: see `AlphaSource`; by default ᾱ for "compvis", else β.
        lower_order_below: runs of fewer steps are short; LuChengTHU has 10.
        sample_min_value: the scale of dynamic thresholding is at least this; `thresholding_max_val` of LuChengTHU.

    The order is at most the number of outputs there are, so sampling can begin in the middle; outputs at equal levels
    count once.
    """

    convention_options = frozenset(
        {
            "coefficients",
            "log_snr",
            "skip_type",
            "log_alpha_from",
            "lower_order_below",
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
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        coefficients: str | None = None,
        log_snr: str | None = None,
        skip_type: str | None = None,
        log_alpha_from: str | None = None,
        lower_order_below: int = 15,
        sample_min_value: float = 1.0,
    ) -> None:
        self._algorithm, self._solver_type = choose_algorithm(self.config, tuple(AlgorithmType))
        self._prepare(self._algorithm.is_of_data, is_sde=self._algorithm.is_sde, kinds=LUCHENGTHU)

    # --- the plan ----------------------------------------------------------------------------------------------------

    def _plan(self, times: list[Time]) -> None:
        count, lambdas = len(times), self._levels(torch.float32).half_log_snr.tolist()
        self._orders: list[int] = []
        self._before: list[list[int]] = []
        self._repeats: list[bool] = []
        for index in range(count):
            repeats = index > 0 and lambdas[index] == lambdas[index - 1]
            earlier = self._before[-1][repeats:] if index else []
            self._repeats.append(repeats)
            self._before.append([index, *earlier][: self.config.solver_order])
            self._orders.append(1 if lambdas[index] == lambdas[index + 1] else self._planned_order(index, count))

    def _planned_order(self, index: int, count: int) -> int:
        config = self.config
        left = count - index
        if left == 1 and (config.euler_at_final or (self._points is None and config.final_sigmas_type == "zero")):
            return 1
        if config.lower_order_final and count < config.lower_order_below:
            return min(config.solver_order, left)
        return config.solver_order

    def _restart(self) -> None:
        self._history: list[Tensor] = []

    # --- one step ----------------------------------------------------------------------------------------------------

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
        timestep: an entry of `timesteps`. generator, variance_noise: (B, C, ...) the draw of an SDE's step.
        Returns x̃_{t_i} and, where the data is integrated or thresholded, x_0, in the dtype of `sample`; the arithmetic
        is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and for `variance_noise` where nothing is drawn.
        """
        dtype = self._check(model_output, sample, channel_factor=self._convert.channel_factor)
        self._require_timesteps()
        coefficients: list[_Evaluation] = self._coefficients(dtype)
        noise = self._draw(sample, generator, variance_noise, dtype)
        index = self._advance(timestep)
        alpha, sigma, updates = coefficients[index]
        x, output = sample.to(dtype), model_output.to(dtype)
        if not updates:
            result = self._convert.x0(output, x, alpha, sigma)
            return self._result(result, result, sample.dtype, return_dict)

        output, x0 = self._convert(output, x, alpha, sigma)
        self._history = [output, *self._history[self._repeats[index] :]][: self.config.solver_order]
        order = min(len(self._history), self._orders[index])
        prev_sample = updates[order - 1](x, self._history, noise)
        return self._result(prev_sample, x0, sample.dtype, return_dict)

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _make_coefficients(self, dtype: torch.dtype) -> list[_Evaluation]:
        levels = self._levels(dtype)
        orders = range(1, max(self._orders) + 1)
        tables = [multistep_updates(self._algorithm, self._solver_type, levels, self._before, k) for k in orders]
        rows = [
            _Evaluation(alpha, sigma, updates)
            for alpha, sigma, *updates in zip(levels.alpha.tolist(), levels.sigma.tolist(), *tables, strict=False)
        ]
        return [*rows, *(_Evaluation(*level, ()) for level in self._last_level(dtype))]
