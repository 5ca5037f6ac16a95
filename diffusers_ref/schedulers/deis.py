"""Fast Sampling of Diffusion Models with Exponential Integrator (DEIS, arXiv 2204.13902), Algorithm 1: multistep.

    code                  paper
    sample                x_t; with "rho_ab" y_ρ = x_t/√ᾱ_t, eq. 16
    epsilon               ε_θ(x_t, t)
    history               ε_θ at the last times, newest first
    of_x                  Ψ(t_{i−1}, t_i)
    weights               C_ij, eq. 15
    rho                   ρ = √(1 − ᾱ)/√ᾱ

Every step is x' = Ψ x + Σ_j C_ij ε_{i+j} (eq. 14): the linear part of the probability flow exactly, and ε as a
polynomial through its last values. The variants differ in the variable of the polynomial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.piecewise_vp import PiecewiseVP, TimePhase, adams_bashforth_in_rho, requested_times
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step
from diffusers_ref.schedulers.sigmas import sigma_table
from diffusers_ref.schedulers.solver_grids import SIGMA_GRIDS, SolverGrid, check_grid_options, solver_grid
from diffusers_ref.schedulers.solver_outputs import OutputConversion
from diffusers_ref.schedulers.solver_scheduler import SolverScheduler
from diffusers_ref.schedulers.solver_tables import chain_of


class DeisSolver(str, Enum):
    """The variable in which ε is a polynomial."""

    LOG_RHO = "logrho"
    """Published: log ρ, integrated in closed form, on the published grids."""
    T_AB = "t_ab"
    """qsh-zh, tAB-DEIS: t."""
    RHO_AB = "rho_ab"
    """qsh-zh, ρAB-DEIS: ρ. The state is x/√ᾱ, see `init_noise_sigma` and `scale_model_input`."""
    IPNDM = "ipndm"
    """qsh-zh, iPNDM: the coefficients of Adams and Bashforth for equal steps, times the weight of ε in DDIM's step."""


class _Row(NamedTuple):
    """The numbers of one evaluation: the level that the network sees, and what the step multiplies its state by."""

    alpha: float
    sigma: float
    of_x: float


class DEISMultistepScheduler(SolverScheduler):
    """Multistep exponential integrators of the noise.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T.
        beta_start, beta_end, beta_schedule, trained_betas: the forward variances, see `BetaSchedule`.
        solver_order: how many values of ε the polynomial goes through: 1 to 3, or 4 with qsh-zh's solvers, whose
            `ab_order` is one less.
        prediction_type: what the network returns, see `solver_outputs.SolverPrediction`; every output is turned into ε.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x̂_0, from which ε follows.
        algorithm_type: "deis"; "dpmsolver" and "dpmsolver++" mean the same.
        solver_type: see `DeisSolver`; "midpoint", "heun", "bh1" and "bh2" are "logrho".
        lower_order_final: with "logrho", orders fall to 2 and 1 in the last steps of runs of fewer than 15.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: which σ/α are visited, each at the nearest integer
            time. Published runs end at the last of them, so that the last step does not move.
        use_flow_sigmas, flow_shift, use_dynamic_shifting, time_shift_type: a flow, x_t = (1 − σ)·x_0 + σ·n. It ends at
            0, by a step of order 1 (HF diffusers repeats the last σ, and leaves its noise in the result).
        timestep_spacing, steps_offset: the grid of times where none of the above chooses levels; it ends at ᾱ_0.
    Conventions of originals:
        coefficients: see `Coefficients`; by default "compvis" for scaled_linear, "float64" for squaredcos_cap_v2,
            "float32_cumprod" for the rest.
        ts_phase: qsh-zh: in which variable the grid of fractional times from T − 1 to 0 is even, see `TimePhase`; by
            default "t". Not for "ipndm", which has ts_phase "t" and ts_order 1.
        ts_order: the exponent of that grid; by default 2 for "t" and 7 for "rho"; "log" has none.

    The polynomial goes through as many values as there are: it can start in the middle, too; equal levels count once.
    """

    convention_options = frozenset({"coefficients", "ts_phase", "ts_order"})

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
        sample_max_value: float = 1.0,
        algorithm_type: str = "deis",
        solver_type: str = "logrho",
        lower_order_final: bool = True,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        coefficients: str | None = None,
        ts_phase: str | None = None,
        ts_order: float | None = None,
    ) -> None:
        if algorithm_type not in _ALGORITHM_TYPES:
            allowed = ", ".join(map(repr, _ALGORITHM_TYPES))
            raise ConfigError(f"algorithm_type={algorithm_type!r} is not known here; allowed: {allowed}")
        published = "logrho" if solver_type in _LOG_RHO_TOO else solver_type
        self._solver = choose(DeisSolver, "solver_type", published)
        self._is_published = self._solver is DeisSolver.LOG_RHO
        highest = 3 if self._is_published else 4
        if solver_order not in range(1, highest + 1):
            raise ConfigError(
                f"solver_order={solver_order!r} is not allowed with {published!r}; allowed: 1 to {highest}"
            )
        check_grid_options(self.config)
        self._table = chain_of(self.config)
        self._ratios = sigma_table(self.alphas_cumprod).numpy()
        self._log_snr = None
        self._convert = OutputConversion({**_FIXED, **self.config}, integrates_data=False, through_epsilon=False)
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        if self._is_published:
            self._refuse(("ts_phase", "ts_order"), "is an option of the solvers 't_ab' and 'rho_ab'")
            return
        self._refuse((*SIGMA_GRIDS, *_PUBLISHED_GRID), f"has no effect with solver_type={solver_type!r}")
        self._process = PiecewiseVP(self.alphas_cumprod)
        if self._solver is DeisSolver.IPNDM:
            self._refuse(("ts_phase", "ts_order"), "is an option of the solvers 't_ab' and 'rho_ab'")
            self._phase, self._exponent = TimePhase.T, 1.0
        else:
            self._phase, self._exponent = PiecewiseVP.grid_options(ts_phase, ts_order)
        if self._solver is DeisSolver.RHO_AB:
            self.init_noise_sigma = float(self._process.unit_scale(np.float32(len(self) - 1)))

    # --- the grid ----------------------------------------------------------------------------------------------------

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        mu: float | None = None,
        timesteps: Sequence[Time] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose the grid and begin anew, as if the scheduler had just been made.

        Exactly one of these says which levels are visited:
        num_inference_steps: how many, by the rule of the options.
        timesteps: the times, not ascending: integers in [0, T − 1]; with qsh-zh's solvers real numbers, which end at 0.
        sigmas: the σ/α (of a flow σ), positive, not ascending; with "logrho" only.

        mu: with `use_dynamic_shifting`, the shift of this run's flow is exp(mu).
        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        if self._is_published:
            super().set_timesteps(num_inference_steps, device, mu, timesteps, sigmas)
            return
        if mu is not None or sigmas is not None:
            raise ValueError(f"mu and sigmas need solver_type='logrho', not {self._solver.value!r}")
        times = requested_times(self._process, self._phase, self._exponent, num_inference_steps, timesteps)
        rhos = self._process.rho(times)
        network_times = times
        if self._solver is DeisSolver.RHO_AB:
            network_times = self._process.time(rhos)
            self.init_noise_sigma = float(self._process.unit_scale(times[0]))
        self._nodes = rhos if self._solver is DeisSolver.RHO_AB else times
        self._grid_times, self._seen = times, network_times
        self.sigmas = torch.from_numpy(rhos.copy())
        entries: list[Time] = times[:-1].tolist()
        self._coefficient_cache: dict[torch.dtype, Any] = {}
        self._plan(entries)
        self._adopt(entries, len(entries), device, network_times[:-1].tolist())
        self._coefficients(torch.float32)

    def _published_grid(
        self,
        num_inference_steps: int | None,
        timesteps: Sequence[Time] | None,
        sigmas: Sequence[float] | None,
        mu: float | None,
    ) -> SolverGrid:
        options = {**self.config, "final_sigmas_type": "sigma_min"}
        grid = solver_grid(options, self._ratios, num_inference_steps, timesteps, sigmas, mu)  # type: ignore[arg-type]
        if self.config.use_flow_sigmas:
            grid.sigmas[-1] = 0.0
        elif any(self.config.get(name) for name in SIGMA_GRIDS):
            grid.sigmas[-1] = grid.sigmas[-2]
        return grid

    def _plan(self, times: list[Time]) -> None:
        nodes = self.sigmas.tolist() if self._is_published else self._nodes.tolist()
        count = len(times)
        self._before: list[list[int]] = []
        self._repeats: list[bool] = []
        for index in range(count):
            repeats = index > 0 and nodes[index] == nodes[index - 1]
            earlier = self._before[-1][repeats:] if index else []
            self._repeats.append(repeats)
            self._before.append([index, *earlier][: self.config.solver_order])
        lowers = self._is_published and self.config.lower_order_final and count < 15
        self._orders = [min(self.config.solver_order, count - i if lowers else 4) for i in range(count)]
        if not self.sigmas[-1]:
            self._orders[-1] = 1
        self._weight_cache: dict[tuple[int, int], list[float]] = {}
        for index in range(count):
            self._weights(index, min(len(self._before[index]), self._orders[index]))

    def _restart(self) -> None:
        self._history: list[Tensor] = []

    # --- one step ----------------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Time | Tensor | None = None) -> Tensor:
        """The network's input at an entry of `timesteps` (by default the next): √ᾱ · sample with "rho_ab"."""
        if self._solver is not DeisSolver.RHO_AB:
            return sample
        self._require_timesteps()
        index = (self._step_index or 0) if timestep is None else self._locate(timestep, self._step_index)
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        return (sample.to(dtype) / self._scales[index]).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take the output of one evaluation; return the state at the next, eq. 14.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`.
        Returns the next state and, where it thresholds, x̂_0, in the dtype of `sample`; the arithmetic is in that dtype,
        at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        self._require_timesteps()
        coefficients: list[_Row] = self._coefficients(dtype)
        index = self._advance(timestep)
        alpha, sigma, of_x = coefficients[index]
        x, output = sample.to(dtype), model_output.to(dtype)
        scales = self._solver is DeisSolver.RHO_AB

        epsilon, x0 = self._convert(output, x * alpha if scales else x, alpha, sigma)
        self._history = [epsilon, *self._history[self._repeats[index] :]][: self.config.solver_order]
        known = min(len(self._history), self._orders[index])
        prev_sample = x if scales else of_x * x
        for weight, value in zip(self._weights(index, known), self._history, strict=False):
            prev_sample = prev_sample + weight * value
        if scales and index == len(self._times) - 1:
            prev_sample = prev_sample / self._scales[-1]
        return self._result(prev_sample, x0, sample.dtype, return_dict)

    @property
    def step_weights(self) -> Tensor:
        """(n, 1 + k) float32: what each step of a whole run multiplies the state, and ε from new to old, by."""
        rows: list[_Row] = self._coefficients(torch.float32)
        table = torch.zeros(len(rows), 1 + self.config.solver_order)
        for index, row in enumerate(rows):
            weights = self._weights(index, min(len(self._before[index]), self._orders[index]))
            of_x = 1.0 if self._solver is DeisSolver.RHO_AB else row.of_x
            table[index, : 1 + len(weights)] = torch.tensor([of_x, *weights])
        return table

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _weights(self, index: int, known: int) -> list[float]:
        """What each of the newest `known` values of ε is multiplied by in the step after an evaluation."""
        if (index, known) not in self._weight_cache:
            self._weight_cache[index, known] = self._make_weights(index, self._before[index][:known])
        return self._weight_cache[index, known]

    def _make_weights(self, index: int, places: list[int]) -> list[float]:
        if self._is_published:
            sigmas = self.sigmas.double()
            alphas, rhos = self._levels(torch.float64).alpha, sigmas
            if self.config.use_flow_sigmas:
                rhos = sigmas / (1.0 - sigmas)
            weights = log_rho_weights(rhos[index + 1].item(), rhos[places].tolist())
            return [alphas[index + 1].item() * weight for weight in weights]
        end = self._nodes[index + 1]
        if self._solver is DeisSolver.T_AB:
            return self._process.adams_bashforth_in_time(end, self._nodes[places])
        if self._solver is DeisSolver.RHO_AB:
            return adams_bashforth_in_rho(end, self._nodes[places])
        abar, abar_next = self._process.abar(self._nodes[index]), self._process.abar(end)
        one = np.float32(1.0)
        ddim = np.sqrt(one - abar_next) - np.sqrt(abar_next / abar) * np.sqrt(one - abar)
        divisor, numbers = _ADAMS_BASHFORTH[len(places)]
        return [float(ddim * (np.float32(number) / np.float32(divisor))) for number in numbers]

    def _make_coefficients(self, dtype: torch.dtype) -> list[_Row]:
        if self._is_published:
            levels = self._levels(dtype)
            start = levels.at(slice(None, -1))
            return [_Row(*row) for row in by_step(start.alpha, start.sigma, levels.alpha[1:] / start.alpha)]
        scales = self._process.unit_scale(self._seen)
        scales[-1] = self._process.unit_scale(self._grid_times[-1])
        self._scales: list[float] = scales.tolist()
        of_x = self._process.transition(self._grid_times[:-1], self._grid_times[1:])
        pairs = (self._level_at_time(t) for t in self._grid_times[:-1])
        return [_Row(*pair, factor) for pair, factor in zip(pairs, of_x.tolist(), strict=True)]

    def _level_at_time(self, t: Any) -> tuple[float, float]:
        """√ᾱ and √(1 − ᾱ) at a time, in float32."""
        abar = self._process.abar(np.float32(t))
        return float(np.sqrt(abar)), float(np.sqrt(np.float32(1.0) - abar))

    def _level_at(self, time: Time, dtype: torch.dtype) -> tuple[float, float]:
        """The levels of `add_noise`: α and σ, or 1 and ρ where the state is x/√ᾱ."""
        if self._is_published:
            return super()._level_at(time, dtype)
        if not 0 <= time <= len(self) - 1 and not (self.num_inference_steps is not None and time in self._times):
            raise ValueError(f"timestep {time} is out of range; allowed: 0 to {len(self) - 1}")
        if self._solver is DeisSolver.RHO_AB:
            return 1.0, float(self._process.rho(np.float32(time)))
        return self._level_at_time(time)


def log_rho_weights(end: float, known: Sequence[float]) -> list[float]:
    """∫ from known[0] to `end` of the Lagrange polynomials in log ρ through the nodes `known`, in ρ.

    end: at least 0. known: 1 to 3 different positive ρ. In float64, with u = log(ρ/known[0]), as ∫ uʲ eᵘ du is known.
    """
    nodes = [math.log(rho / known[0]) for rho in known]
    u = math.log(end / known[0]) if end > 0 else -math.inf
    rise = math.expm1(u) if u > -math.inf else -1.0
    growth = 1.0 + rise
    moments = [rise]
    for power in range(1, len(known)):
        moments.append((u**power * growth if growth else 0.0) - power * moments[-1])
    weights = []
    for index, node in enumerate(nodes):
        others = [other for place, other in enumerate(nodes) if place != index]
        polynomial = [1.0]
        for other in others:
            polynomial = [a - other * b for a, b in zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)]
        total = sum(factor * moment for factor, moment in zip(polynomial, moments, strict=True))
        weights.append(known[0] * total / math.prod(node - other for other in others))
    return weights


_ADAMS_BASHFORTH: dict[int, tuple[float, tuple[float, ...]]] = {
    1: (1.0, (1.0,)),
    2: (1.0, (1.5, -0.5)),
    3: (12.0, (23.0, -16.0, 5.0)),
    4: (24.0, (55.0, -59.0, 37.0, -9.0)),
}
"""Number of values -> divisor, weights from the newest to the oldest."""

_ALGORITHM_TYPES = ("deis", "dpmsolver", "dpmsolver++")
_LOG_RHO_TOO = ("midpoint", "heun", "bh1", "bh2")
_FIXED = {"sample_min_value": 1.0, "variance_type": None}
"""Options of `OutputConversion` that are none here."""

_PUBLISHED_GRID = ("flow_shift", "timestep_spacing", "steps_offset", "use_dynamic_shifting")
