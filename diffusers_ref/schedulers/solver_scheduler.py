"""What high-order solvers of the diffusion ODE share: levels α_t, σ_t, λ_t, grids, what the network's output means.

    code              DPM-Solver (arXiv 2206.00927)
    levels            α_t, σ_t, log α_t, λ_t at every evaluation, and at the end
    x0, epsilon       x_θ(x_t, t), ε_θ(x_t, t)

A run visits the published grid (`solver_grids`), or the continuous times of an original (`log_snr`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.betas import NoiseTable, make_betas
from diffusers_ref.schedulers.conventions import BetaSchedule, Coefficients, choose
from diffusers_ref.schedulers.log_snr import (
    CosineLogSnr,
    DiscreteLogSnr,
    Levels,
    LinearLogSnr,
    LogSnr,
    LogSnrKind,
    SkipType,
    discrete_log_snr,
    levels_of_ratios,
)
from diffusers_ref.schedulers.scheduler import SchedulerMixin, SchedulerOutput, Time
from diffusers_ref.schedulers.sigmas import sigma_table
from diffusers_ref.schedulers.solver_grids import SIGMA_GRIDS, SolverGrid, check_grid_options, solver_grid
from diffusers_ref.schedulers.thresholding import dynamic_threshold


class SolverPrediction(str, Enum):
    """What the network returns."""

    EPSILON = "epsilon"
    """Published; "noise" of LuChengTHU: ε."""
    SAMPLE = "sample"
    """Published; "x_start" of LuChengTHU: x_0."""
    V_PREDICTION = "v_prediction"
    """Published; "v" of LuChengTHU: α_t ε − σ_t x_0."""
    FLOW_PREDICTION = "flow_prediction"
    """Published: ε − x_0, of x_t = (1 − σ)·x_0 + σ·ε."""
    SCORE = "score"
    """LuChengTHU: −ε/σ_t."""


class AlphaSource(str, Enum):
    """What an original computes log α from."""

    BETAS = "betas"
    """LuChengTHU, for DDPM: ½ Σ log(1 − β)."""
    ALPHAS_CUMPROD = "alphas_cumprod"
    """LuChengTHU, for Stable Diffusion: ½ log ᾱ."""


class SolverScheduler(SchedulerMixin):
    """Tables, grids and conversions of solvers that look at log α, σ and λ instead of a chain.

    A subclass calls `_prepare` in its constructor and plans its updates in `_plan`.
    """

    _table: NoiseTable
    _integrates_data: bool
    _offers_flow_of_noise: ClassVar[bool] = False
    """Whether a solver of the noise takes flow predictions, too."""

    # --- construction ------------------------------------------------------------------------------------------------

    def _prepare(self, integrates_data: bool, kinds: Sequence[LogSnrKind], is_sde: bool = False) -> None:
        """Check the options that all solvers share, and build the tables that they describe.

        integrates_data: the solver's polynomial is one of x_0 (else of ε). kinds: the values of `log_snr` it offers.
        is_sde: every evaluation draws noise.
        """
        config = self.config
        self._integrates_data, self._is_sde = integrates_data, is_sde
        check_grid_options(config)
        self._prediction = choose(SolverPrediction, "prediction_type", config.prediction_type)
        if config.get("variance_type") not in (None, "learned", "learned_range"):
            raise ConfigError(
                f"variance_type={config.variance_type!r} is not known here; allowed: None, 'learned', 'learned_range'"
            )
        if self._prediction is SolverPrediction.FLOW_PREDICTION and not (
            config.get("use_flow_sigmas") and (integrates_data or self._offers_flow_of_noise)
        ):
            raise ConfigError("prediction_type='flow_prediction' needs use_flow_sigmas=True and a solver of the data")
        self._table = self._make_table()
        self._ratios = sigma_table(self._table.alphas_cumprod).numpy()
        self._log_snr = self._make_log_snr(kinds)
        if self._log_snr is not None and config.thresholding and not integrates_data and not config.denoise_to_zero:
            raise ConfigError(
                "thresholding has no effect on a solver of the noise with log_snr, unless denoise_to_zero"
            )
        least, most = config.get("sample_min_value", 1.0), config.get("sample_max_value")
        if not least > 0 or (most is not None and not least <= most):
            raise ConfigError(
                f"sample_min_value={least} and sample_max_value={most} are not allowed; the first must be above 0 and "
                "not above the second"
            )
        self._channel_factor = 1 if config.get("variance_type") is None else 2
        self._skip_type = SkipType.TIME_UNIFORM
        if config.get("skip_type") is not None:
            self._skip_type = choose(SkipType, "skip_type", config.skip_type)
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    def _make_table(self) -> NoiseTable:
        config = self.config
        schedule = choose(BetaSchedule, "beta_schedule", config.beta_schedule)
        coefficients = _DEFAULT_COEFFICIENTS.get(schedule, Coefficients.FLOAT32_CUMPROD)
        if config.coefficients is not None:
            coefficients = choose(Coefficients, "coefficients", config.coefficients)
        rescale = config.get("rescale_betas_zero_snr", False)
        betas = make_betas(
            schedule,
            config.beta_start,
            config.beta_end,
            config.num_train_timesteps,
            trained_betas=config.trained_betas,
            rescale_zero_snr=rescale,
            coefficients=coefficients,
        )
        table = NoiseTable.from_betas(betas, coefficients)
        if rescale:
            # Published: the noisiest level keeps a trace of signal, as σ/α would be infinite.
            abar = table.alphas_cumprod.clone()
            abar[-1] = 2.0**-24
            table = dataclasses.replace(table, alphas_cumprod=abar)
        return table

    def _make_log_snr(self, kinds: Sequence[LogSnrKind]) -> LogSnr | None:
        config = self.config
        if config.get("log_snr") is None:
            self._refuse(
                ("skip_type", "denoise_to_zero", "log_alpha_from"),
                "needs log_snr: published grids do not have it",
            )
            return None
        kind = choose(LogSnrKind, "log_snr", config.log_snr, allowed=kinds)
        self._refuse((*SIGMA_GRIDS, *_GRID_OPTIONS), "is an option of published grids, which log_snr replaces")
        if kind is LogSnrKind.LINEAR:
            self._refuse(_CHAIN, "needs a discrete log_snr, not 'linear'")
            total = config.num_train_timesteps
            return LinearLogSnr(total * config.beta_start, total * config.beta_end)
        if kind is LogSnrKind.COSINE:
            self._refuse((*_CHAIN, "beta_start", "beta_end"), "needs a discrete log_snr, not 'cosine'")
            return CosineLogSnr()
        source = AlphaSource.BETAS
        if self._table.coefficients is Coefficients.COMPVIS:
            source = AlphaSource.ALPHAS_CUMPROD
        if config.log_alpha_from is not None:
            source = choose(AlphaSource, "log_alpha_from", config.log_alpha_from)
        table = {source.value: getattr(self._table, source.value)}
        return discrete_log_snr(**table, clipped=kind is LogSnrKind.DISCRETE_CLIPPED)

    def _refuse(self, names: Sequence[str], reason: str) -> None:
        """Raise ConfigError if one of these options has another value than its default."""
        defaults = self.config_keys()
        for name in names:
            if name in self.config and self.config[name] != defaults[name]:
                raise ConfigError(f"{name}={self.config[name]!r} {reason}")

    def __len__(self) -> int:
        """T, the number of training timesteps."""
        return len(self._table.exact_betas)

    @property
    def betas(self) -> Tensor:
        """(T,) β_t, on the CPU: float64 for the coefficients "float64", else float32."""
        return self._table.betas

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) ᾱ_t, on the CPU: float64 for the coefficients "float64", else float32."""
        return self._table.alphas_cumprod

    # --- the grid ----------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        mu: float | None = None,
        timesteps: Sequence[Time] | None = None,
        sigmas: Sequence[float] | None = None,
        t_start: float | None = None,
        t_end: float | None = None,
    ) -> None:
        """Choose the grid and begin anew, as if the scheduler had just been made.

        Exactly one of these says which levels are visited:
        num_inference_steps: how many evaluations, by the rule of the options.
        timesteps: the times of the evaluations as the network is given them, not ascending: integers in [0, T−1]; with
            `log_snr` real numbers, which end at 1/N.
        sigmas: the σ/α of the evaluations (of a flow their σ), positive, not ascending; without `log_snr` only.

        mu: with `use_dynamic_shifting`, the shift of this run's flow is exp(mu).
        t_start, t_end: with `log_snr`, the continuous times in (0, T] where the run begins and ends, else T and 1/N.
        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        if self._log_snr is None:
            if t_start is not None or t_end is not None:
                raise ValueError("t_start and t_end need log_snr: published grids do not have them")
            grid = self._published_grid(num_inference_steps, timesteps, sigmas, mu)
            self.sigmas = torch.from_numpy(grid.sigmas)
            times: list[Time] = list(grid.times)
            self._points: Tensor | None = None
        else:
            if mu is not None or sigmas is not None:
                raise ValueError("mu and sigmas are requests for published grids, which log_snr replaces")
            self._points = self._continuous_points(self._log_snr, num_inference_steps, timesteps, t_start, t_end)
            self.sigmas = torch.exp(-self._log_snr.half_log_snr(self._points))
            times = self._network_times_of(self._points[:-1])
        self._explicit = num_inference_steps is None
        self._coefficient_cache: dict[Any, Any] = {}
        self._plan(times)
        if self._log_snr is not None and self.config.denoise_to_zero:
            self._last_point = torch.ones(1) * (1.0 / self._log_snr.steps if t_end is None else t_end)
            times = [*times, *self._network_times_of(self._last_point)]
        self._adopt(times, len(times), device)
        self._coefficients(torch.float32)

    def _published_grid(
        self,
        num_inference_steps: int | None,
        timesteps: Sequence[Time] | None,
        sigmas: Sequence[float] | None,
        mu: float | None,
    ) -> SolverGrid:
        """The levels that a request visits, without `log_snr`; a class with other published grids overrides it."""
        return solver_grid(self.config, self._ratios, num_inference_steps, timesteps, sigmas, mu)  # type: ignore[arg-type]

    def _continuous_points(
        self,
        schedule: LogSnr,
        count: int | None,
        timesteps: Sequence[Time] | None,
        begin: float | None,
        end: float | None,
    ) -> Tensor:
        """(n + 1,) the continuous times of every evaluation and of the end."""
        lowest = 1.0 / schedule.steps if isinstance(schedule, DiscreteLogSnr) else 0.0
        for name, t in (("t_start", begin), ("t_end", end)):
            if t is not None and not (lowest <= t <= schedule.end and t > 0):
                raise ValueError(f"{name}={t} is out of range; allowed: {lowest or 'above 0'} to {schedule.end}")
        if (count is None) == (timesteps is None):
            raise ValueError("give exactly one of num_inference_steps and timesteps")
        last = 1.0 / schedule.steps if end is None else end
        if timesteps is None:
            assert count is not None
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"num_inference_steps={count!r} is not allowed; a whole number, at least 1")
            return self._spaced_points(schedule, count, schedule.end if begin is None else begin, last)
        if begin is not None:
            raise ValueError("t_start cannot be given with timesteps, which begin where they say")
        points = torch.tensor([*map(float, timesteps), schedule.network_time(torch.tensor(last)).item()])
        if schedule.network_time(points) is not points:
            points = points / 1000.0 + 1.0 / schedule.steps
        if len(points) < 2 or (points[1:] > points[:-1]).any() or not 0 < points[0] <= schedule.end:
            raise ValueError(
                f"timesteps {list(timesteps)} are not allowed; at least one, none larger than the one before, as the "
                f"network is given them, within the process and before its end"
            )
        return points

    def _spaced_points(self, schedule: LogSnr, count: int, begin: float, end: float) -> Tensor:
        """(n + 1,) the times of a grid of n evaluations; a solver that places inner ones otherwise overrides it."""
        return schedule.times(self._skip_type, count, begin, end)

    def _network_times_of(self, points: Tensor) -> list[Time]:
        assert self._log_snr is not None
        times: list[Time] = self._log_snr.network_time(points).tolist()
        return times

    def _plan(self, times: list[Time]) -> None:
        """Plan the updates after the evaluations at `times`."""
        raise NotImplementedError

    def _levels(self, dtype: torch.dtype) -> Levels:
        """(n + 1,) the levels of the grid, where it ends included, for arithmetic in `dtype`."""
        if self._points is not None:
            assert self._log_snr is not None
            return self._log_snr.levels(self._points, dtype)
        return levels_of_ratios(self.sigmas, dtype, flow=self.config.use_flow_sigmas)

    def _last_level(self, dtype: torch.dtype) -> list[tuple[float, float]]:
        """α and σ of the evaluation that `denoise_to_zero` adds; empty without it."""
        if self._log_snr is None or not self.config.denoise_to_zero:
            return []
        levels = self._log_snr.levels(self._last_point, dtype)
        return [(levels.alpha.item(), levels.sigma.item())]

    def _coefficients(self, dtype: torch.dtype) -> Any:
        """What every evaluation needs for arithmetic in `dtype`, made once."""
        if dtype not in self._coefficient_cache:
            self._coefficient_cache[dtype] = self._make_coefficients(dtype)
        return self._coefficient_cache[dtype]

    def _make_coefficients(self, dtype: torch.dtype) -> Any:
        raise NotImplementedError

    # --- around one evaluation ---------------------------------------------------------------------------------------

    def _draw(
        self, sample: Tensor, generator: Generators, variance_noise: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """The noise of an SDE's step; None for an ODE, which takes none."""
        if self._is_sde:
            return self._noise(sample, generator, variance_noise, dtype)
        if variance_noise is not None:
            raise ValueError("variance_noise is not allowed: only an SDE's algorithm_type draws noise")
        return None

    def _mean(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """The output without the half of a learned variance."""
        return model_output if self._channel_factor == 1 else model_output[:, : sample.shape[1]]

    def _denoised(self, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The result of `denoise_to_zero`."""
        x0 = self._x0(output, x, alpha, sigma)
        return self._threshold(x0) if self.config.thresholding else x0

    def _result(
        self, prev_sample: Tensor, x0: Tensor | None, dtype: torch.dtype, return_dict: bool
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        result = SchedulerOutput(prev_sample.to(dtype), None if x0 is None else x0.to(dtype))
        return result if return_dict else result.to_tuple()

    # --- what the network's output means -----------------------------------------------------------------------------

    def _convert(self, output: Tensor, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor | None]:
        """The output that the solver integrates, x_0 or ε, and x_0 if it is known."""
        if self._integrates_data:
            x0 = self._x0(output, x, alpha, sigma)
            if self.config.thresholding:
                x0 = self._threshold(x0)
            return x0, x0
        epsilon = self._epsilon(output, x, alpha, sigma)
        if not self.config.thresholding or self._log_snr is not None:
            return epsilon, None
        x0 = self._threshold((x - sigma * epsilon) / alpha)
        return (x - alpha * x0) / sigma, x0

    def _x0(self, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
        # LuChengTHU's code turns every output into ε first.
        if self._log_snr is None:
            if self._prediction is SolverPrediction.SAMPLE:
                return output
            if self._prediction is SolverPrediction.V_PREDICTION:
                return alpha * x - sigma * output
            if self._prediction is SolverPrediction.FLOW_PREDICTION:
                return x - sigma * output
        return (x - sigma * self._epsilon(output, x, alpha, sigma)) / alpha

    def _epsilon(self, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
        if self._prediction is SolverPrediction.EPSILON:
            return output
        if self._prediction is SolverPrediction.SAMPLE:
            return (x - alpha * output) / sigma
        if self._prediction is SolverPrediction.V_PREDICTION:
            return alpha * output + sigma * x
        if self._prediction is SolverPrediction.FLOW_PREDICTION:
            return x + alpha * output
        return -sigma * output

    def _threshold(self, x0: Tensor) -> Tensor:
        config = self.config
        return dynamic_threshold(
            x0, config.dynamic_thresholding_ratio, config.sample_max_value, config.sample_min_value
        )

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | Time) -> Tensor:
        """Draw x_t = α_t·x_0 + σ_t·noise.

        original_samples, noise: (B, ...). Returns (B, ...).
        timesteps: () or (B,), entries of `timesteps`, whose levels are those of the grid (of equal entries that at
            `begin_index`, or the first), or training timesteps in [0, T−1].
        """
        dtype = self._check(noise, original_samples)
        times = torch.as_tensor(timesteps).reshape(-1).tolist()
        if len(times) not in (1, len(original_samples)):
            raise ValueError(f"timesteps has {len(times)} entries; allowed: 1 or {len(original_samples)}")
        pairs = [self._level_at(time, dtype) for time in times]
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (
            torch.tensor(column, dtype=dtype, device=original_samples.device).view(shape)
            for column in zip(*pairs, strict=True)
        )
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def _level_at(self, time: Time, dtype: torch.dtype) -> tuple[float, float]:
        """α and σ at one time."""
        if self.num_inference_steps is not None and time in self._times:
            begin = self._begin_index
            entry = begin if begin is not None and self._times[begin] == time else self._times.index(time)
            return self._entry_level(entry, dtype)
        if self._log_snr is not None:
            t = torch.tensor(float(time))
            if self._log_snr.network_time(t) is not t:
                t = t / 1000.0 + 1.0 / self._log_snr.steps
            if not 0 < t <= self._log_snr.end:
                raise ValueError(f"timestep {time} is out of range of the process")
            levels = self._log_snr.levels(t.reshape(1), dtype)
        else:
            if time != int(time) or not 0 <= time < len(self):
                raise ValueError(
                    f"timestep {time} is neither an entry of timesteps nor an integer in 0 to {len(self) - 1}"
                )
            if self.config.use_flow_sigmas:
                ratio = torch.tensor([time / len(self)])
            else:
                ratio = torch.from_numpy(self._ratios[int(time) : int(time) + 1])
            levels = levels_of_ratios(ratio, dtype, flow=self.config.use_flow_sigmas)
        return levels.alpha.item(), levels.sigma.item()

    def _entry_level(self, entry: int, dtype: torch.dtype) -> tuple[float, float]:
        """α and σ at an entry of `timesteps`."""
        levels = self._levels(dtype).at([entry])
        return levels.alpha.item(), levels.sigma.item()


_GRID_OPTIONS = ("flow_shift", "final_sigmas_type", "lambda_min_clipped", "timestep_spacing", "steps_offset",
                 "use_dynamic_shifting")  # fmt: skip
"""Further options of published grids."""

_CHAIN = ("log_alpha_from", "beta_schedule", "trained_betas", "coefficients", "rescale_betas_zero_snr")
"""Options of a chain."""

_DEFAULT_COEFFICIENTS = {
    BetaSchedule.SCALED_LINEAR: Coefficients.COMPVIS,
    BetaSchedule.SQUAREDCOS_CAP_V2: Coefficients.FLOAT64,
}
