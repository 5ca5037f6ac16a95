"""What high-order solvers of the diffusion ODE share: tables, grids, the levels α_t, σ_t, λ_t along them.

    code              DPM-Solver (arXiv 2206.00927)
    levels            α_t, σ_t, log α_t, λ_t at every evaluation, and at the end

A run visits the published grid (`solver_grids`), or the continuous times of an original (`log_snr`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.betas import NoiseTable
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.log_snr import DiscreteLogSnr, Levels, LogSnr, LogSnrKind, SkipType, levels_of_ratios
from diffusers_ref.schedulers.scheduler import SchedulerMixin, SchedulerOutput, Time
from diffusers_ref.schedulers.sigmas import sigma_table
from diffusers_ref.schedulers.solver_grids import SolverGrid, check_grid_options, solver_grid
from diffusers_ref.schedulers.solver_outputs import OutputConversion
from diffusers_ref.schedulers.solver_tables import chain_of, log_snr_of, refuse


class SolverScheduler(SchedulerMixin):
    """Tables, grids and conversions of solvers that look at log α, σ and λ instead of a chain.

    A subclass calls `_prepare` in its constructor and plans its updates in `_plan`.
    """

    _table: NoiseTable

    # --- construction ------------------------------------------------------------------------------------------------

    def _prepare(self, integrates_data: bool, kinds: Sequence[LogSnrKind], is_sde: bool = False) -> None:
        """Check the options that all solvers share, and build the tables that they describe.

        integrates_data: the solver's polynomial is one of x_0 (else of ε). kinds: the values of `log_snr` it offers.
        is_sde: every evaluation draws noise.
        """
        config = self.config
        self._is_sde = is_sde
        check_grid_options(config)
        self._table = chain_of(config)
        self._ratios = sigma_table(self._table.alphas_cumprod).numpy()
        self._log_snr = log_snr_of(config, self.config_keys(), self._table, kinds)
        self._convert = OutputConversion(config, integrates_data, through_epsilon=self._log_snr is not None)
        if config.thresholding and not integrates_data and self._log_snr is not None and not self._denoises:
            raise ConfigError(
                "with log_snr, thresholding has an effect on a solver of the noise only if it ends at zero"
            )
        self._skip_type = SkipType.TIME_UNIFORM
        if config.skip_type is not None:
            self._skip_type = choose(SkipType, "skip_type", config.skip_type)
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    @property
    def _denoises(self) -> bool:
        """Whether one more evaluation ends the run: its x_0 is the result."""
        return self._log_snr is not None and self.config.final_sigmas_type == "zero"

    def _refuse(self, names: Sequence[str], reason: str) -> None:
        """Raise ConfigError if one of these options has another value than its default."""
        refuse(self.config, self.config_keys(), names, reason)

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

    @property
    def log_alphas(self) -> Tensor:
        """(N,) float32, log α of the chain as a discrete `log_snr` interpolates it."""
        if not isinstance(self._log_snr, DiscreteLogSnr):
            raise AttributeError("log_alphas needs a discrete log_snr")
        return self._log_snr.log_alphas

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
            `log_snr` real numbers.
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
            times = self._log_snr.network_time(self._points[:-1]).tolist()
        self._explicit = num_inference_steps is None
        self._coefficient_cache: dict[Any, Any] = {}
        self._plan(times)
        if self._denoises:
            assert self._log_snr is not None and self._points is not None
            end = 1.0 / self._log_snr.steps if t_end is None else t_end
            self._last_point = self._points[-1:] if self._explicit else torch.ones(1) * end
            times = [*times, *self._log_snr.network_time(self._last_point).tolist()]
        if self._log_snr is not None and timesteps is not None:
            times = [float(time) for time in timesteps]
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
        """The continuous times of the evaluations that begin a step, and of where the last step ends."""
        lowest = 1.0 / schedule.steps if isinstance(schedule, DiscreteLogSnr) else 0.0
        for name, t in (("t_start", begin), ("t_end", end)):
            if t is not None and not (lowest <= t <= schedule.end and t > 0):
                raise ValueError(f"{name}={t} is out of range; allowed: {lowest or 'above 0'} to {schedule.end}")
        if (count is None) == (timesteps is None):
            raise ValueError("give exactly one of num_inference_steps and timesteps")
        last = 1.0 / schedule.steps if end is None else end
        if timesteps is None:
            assert count is not None
            least = 2 if self._denoises else 1
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"num_inference_steps={count!r} is not allowed; a whole number, at least {least}")
            steps = count - 1 if self._denoises else count
            return self._spaced_points(schedule, steps, schedule.end if begin is None else begin, last)
        if begin is not None:
            raise ValueError("t_start cannot be given with timesteps, which begin where they say")
        ends = [] if self._denoises else [schedule.network_time(torch.tensor(last)).item()]
        points = schedule.time_of_network(torch.tensor([*map(float, timesteps), *ends]))
        if len(points) < 2 or (points[1:] > points[:-1]).any() or not 0 < points[0] <= schedule.end:
            raise ValueError(
                f"timesteps {list(timesteps)} are not allowed; at least one, none larger than the one before, as the "
                f"network is given them, within the process and before its end"
            )
        return points

    def _spaced_points(self, schedule: LogSnr, count: int, begin: float, end: float) -> Tensor:
        """(n + 1,) the times of a grid of n evaluations; a solver that places inner ones otherwise overrides it."""
        return schedule.times(self._skip_type, count, begin, end)

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
        """α and σ of the last evaluation, which denoises; empty without one."""
        if not self._denoises:
            return []
        assert self._log_snr is not None
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

    def _result(
        self, prev_sample: Tensor, x0: Tensor | None, dtype: torch.dtype, return_dict: bool
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        result = SchedulerOutput(prev_sample.to(dtype), None if x0 is None else x0.to(dtype))
        return result if return_dict else result.to_tuple()

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | Time) -> Tensor:
        """Draw x_t = α_t·x_0 + σ_t·noise.

        original_samples, noise: (B, ...). Returns (B, ...).
        timesteps: () or (B,), entries of `timesteps`, whose levels are those of the grid (of equal entries that at
            `begin_index`, or the first), or training timesteps in [0, T−1].
        """
        dtype = self._check(noise, original_samples)
        given = torch.as_tensor(timesteps)
        times = given.reshape(-1).tolist()
        if given.ndim > 1 or len(times) not in (1, len(original_samples)):
            raise ValueError(
                f"timesteps have the shape {tuple(given.shape)}; allowed: () or ({len(original_samples)},)"
            )
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
            t = self._log_snr.time_of_network(torch.tensor(float(time)))
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
