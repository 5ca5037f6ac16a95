"""Elucidating the Design Space of Diffusion-Based Generative Models (arXiv 2206.00364): the sampler of the ablations.

Algorithm 1 with churn and with any second-order Runge–Kutta method of appendix D.2: a superset of the deterministic and
stochastic samplers of the paper, in which earlier methods are reproduced (table 1).

    code                      paper
    t_steps                   t_i, i = 0 ... N, the time steps of the ODE
    t, t_hat, t_prime         t_i, t̂_i and t'_i = t̂_i + α h
    discretization            where the t_i lie
    schedule, scaling         σ(t), s(t)
    preconditioning           D(x; σ) around the network, and the levels that the network knows
    alpha                     α: 1 is Heun's method, 1/2 the midpoint, 2/3 Ralston's
    s_churn, s_tmin, s_tmax, s_noise   S_churn, S_tmin, S_tmax, S_noise

NVlabs' `ablation_sampler` is reproduced bit for bit with `state_dtype` "float64". Quirks of it that are kept: with
schedule "vp" or "ve", t̂ is the time of the level of t, which rounding makes another number, so a noise of about 10⁻⁸ σ
may be added without churn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.noise_designs import (
    Discretization,
    LinearSchedule,
    NoiseSchedule,
    Scaling,
    ScalingKind,
    ScheduleKind,
    VESchedule,
    VPSchedule,
    chain_levels,
    default_range,
    edm_levels,
    iddpm_levels,
    slope_factors,
    ve_levels,
    vp_levels,
)
from diffusers_ref.schedulers.preconditioned_scheduler import (
    Evaluation,
    Linear,
    PreconditionedScheduler,
)
from diffusers_ref.schedulers.preconditioning import (
    C_1,
    C_2,
    Preconditioner,
    Preconditioning,
    each,
    make_preconditioner,
)
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step

Churn = Callable[[Tensor], Tensor]
"""(n,) σ(t_i) -> (n,) γ_i."""

Item = TypeVar("Item")


class EDMAblationScheduler(PreconditionedScheduler):
    """The samplers of the paper's ablations; HF diffusers has no such class.

    solver: "heun" (two evaluations in every step but the last) or "euler" (one).
    discretization, schedule, scaling: see `Discretization`, `ScheduleKind`, `ScalingKind`.
    preconditioning: which network, see `Preconditioning`; sigma_data: of "edm".
    sigma_min, sigma_max: range of the noise levels; by default that of the discretisation. Levels that the network does
        not know are left out.
    rho: ρ of the discretisation "edm". epsilon_s: the last time of the discretisation "vp", and of the schedule.
    c_1, c_2, num_levels: C_1, C_2 and M of the discretisation "iddpm".
    alpha: α of the second-order method.
    s_churn, s_tmin, s_tmax, s_noise: how much noise is added (and its inflation) at which levels.
    state_dtype: None for that of the sample; "float64" (NVlabs): state and draws are float64 around any network.

    Defaults are NVlabs'. One step begins at sigma_max, where NVlabs' code divides by zero.
    """

    order = 2

    @register_to_config
    def __init__(
        self,
        solver: str = "heun",
        discretization: str = "edm",
        schedule: str = "linear",
        scaling: str = "none",
        preconditioning: str = "edm",
        sigma_data: float = 0.5,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        rho: float = 7.0,
        epsilon_s: float = 1e-3,
        c_1: float = C_1,
        c_2: float = C_2,
        num_levels: int = 1000,
        alpha: float = 1.0,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        state_dtype: str | None = None,
    ) -> None:
        if solver not in ("euler", "heun"):
            raise ConfigError(f"solver is {solver!r}; allowed: 'euler', 'heun'")
        if not 0 < alpha <= 1:
            raise ConfigError(f"alpha is {alpha}; allowed: above 0, up to 1")
        self._discretization = choose(Discretization, "discretization", discretization)
        self._schedule_kind = choose(ScheduleKind, "schedule", schedule)
        self._scaling_kind = choose(ScalingKind, "scaling", scaling)
        self._preconditioner = make_preconditioner(
            choose(Preconditioning, "preconditioning", preconditioning), sigma_data
        )
        if solver == "euler":
            self._refuse(("alpha",), "solver='euler'")
        if self._discretization is not Discretization.EDM:
            self._refuse(("rho",), f"discretization={discretization!r}")
        if self._discretization is not Discretization.IDDPM:
            self._refuse(("c_1", "c_2", "num_levels"), f"discretization={discretization!r}")
        if Discretization.VP.value not in (discretization, schedule):
            self._refuse(("epsilon_s",), f"discretization={discretization!r} and schedule={schedule!r}")
        low, high = default_range(self._discretization, epsilon_s)
        low, high = low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max
        known = self._preconditioner
        self._prepare(state_dtype, max(low, known.sigma_min), min(high, known.sigma_max))
        if c_1 != C_1 and chain_levels(c_1, c_2, num_levels)[0] > self._sigma_max:
            raise ConfigError(f"c_1={c_1} has no effect: the only level it makes is above sigma_max={self._sigma_max}")
        vp = VPSchedule.between(self._sigma_min, self._sigma_max, epsilon_s)
        self._vp = vp
        schedules: dict[ScheduleKind, NoiseSchedule] = {
            ScheduleKind.VP: vp,
            ScheduleKind.VE: VESchedule(),
            ScheduleKind.LINEAR: LinearSchedule(),
        }
        self._schedule = schedules[self._schedule_kind]
        self._scaling = Scaling(self._scaling_kind, self._schedule)

    # --- the grid ----------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Choose the steps, by their number or by their noise levels (n,), to which the end is added; begin anew.

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        levels = self._chosen(num_inference_steps, sigmas, self._levels_of)
        times = self._schedule.time(self._preconditioner.round_sigma(levels))
        self.t_steps = torch.cat([times, torch.zeros_like(times[:1])])
        """(n + 1,) float64: the times of the ODE."""
        heun = self.config.solver == "heun"
        churn = lambda sigma: self._churn(sigma, self.config.s_tmin, self.config.s_tmax)
        evaluations, bare = plan(
            self.t_steps, self._schedule, self._scaling, self._preconditioner, churn,
            self.config.s_noise, self.config.alpha if heun else None,
        )  # fmt: skip
        self._adopt_evaluations(evaluations, bare, self._schedule.sigma(self.t_steps), device)

    def _levels_of(self, steps: int) -> Tensor:
        if self._discretization is Discretization.VP:
            return vp_levels(steps, self._vp, self.config.epsilon_s)
        if self._discretization is Discretization.VE:
            return ve_levels(steps, self._sigma_min, self._sigma_max)
        if self._discretization is Discretization.IDDPM:
            c_1, c_2, levels = self.config.c_1, self.config.c_2, self.config.num_levels
            return iddpm_levels(steps, self._sigma_min, self._sigma_max, c_1, c_2, levels)
        return edm_levels(steps, self._sigma_min, self._sigma_max, self.config.rho)

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
        """Take the output of one evaluation; return the state at the next.

        model_output: (B, C, ...) the raw network output F; (B, 2C, ...) of which the first half counts, for
        preconditioning "iddpm". timestep: an entry of `timesteps`. sample: (B, C, ...) the state, after
        `add_noise_to_input`. generator, variance_noise: (B, C, ...) the unused draw, if that was not called.
        Returns the next state and D(x; σ) in the dtype of `sample`, or in `state_dtype`.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and where noise had to be added before.
        """
        result = self._take(model_output, timestep, sample, generator, variance_noise)
        return result if return_dict else result.to_tuple()


def plan(
    t_steps: Tensor,
    schedule: NoiseSchedule,
    scaling: Scaling,
    preconditioner: Preconditioner,
    churn: Churn,
    s_noise: float,
    alpha: float | None,
) -> tuple[list[Evaluation], list[tuple[float, float]]]:
    """Every evaluation on the times t_steps (n + 1,), and σ and s at each of them without churn.

    alpha: of the second-order method; None for Euler's.
    """
    # Algorithm 2, lines 4 to 6: raise the noise level.
    t, t_next = t_steps[:-1], t_steps[1:]
    sigma, scale = schedule.sigma(t), _column(scaling.scale(t), t)
    gamma = churn(sigma)
    t_hat = schedule.time(each(preconditioner.round_sigma, sigma + gamma * sigma))
    sigma_hat, scale_hat = schedule.sigma(t_hat), _column(scaling.scale(t_hat), t)
    added = (sigma_hat**2 - sigma**2).clip(min=0).sqrt() * scale_hat * s_noise

    # Lines 7 and 8: a step from t̂, of which a second-order method takes a part first.
    h = t_next - t_hat
    slopes = slope_factors(schedule, scaling, t_hat)
    sizes = h if alpha is None else torch.cat([alpha * h[:-1], h[-1:]])
    columns = (sigma_hat, *slopes, sizes, scale_hat, scale_hat / scale, added)
    evaluations = [
        Evaluation(level, Linear(a, b), size, None, s, carried, noise)
        for level, a, b, size, s, carried, noise in by_step(*columns)
    ]
    bare = list(by_step(sigma, scale))
    if alpha is None or len(t) == 1:
        return evaluations, bare

    # Lines 10 and 11: the correction, in every step but the last.
    t_prime = (t_hat + alpha * h)[:-1]
    sigma_prime, scale_prime = schedule.sigma(t_prime), _column(scaling.scale(t_prime), t_prime)
    row = (sigma_prime, *slope_factors(schedule, scaling, t_prime), h[:-1], scale_prime)
    second = [Evaluation(level, Linear(a, b), size, second_of=alpha, scale=s) for level, a, b, size, s in by_step(*row)]
    return _alternating(evaluations, second), _alternating(bare, by_step(sigma_prime, scale_prime))


def _column(value: Tensor | float, like: Tensor) -> Tensor:
    """(n,) where a number is the same everywhere."""
    return value if isinstance(value, Tensor) else torch.full_like(like, value)


def _alternating(first: list[Item], second: Iterable[Item]) -> list[Item]:
    """One of each in turn; `first` has one more."""
    return [item for pair in zip(first, second, strict=False) for item in pair] + first[-1:]
