"""Euler's method in the formulation of EDM (arXiv 2206.00364): algorithm 2 without its correction.

    code                  paper
    sigmas                t_i, i = 0 ... N (σ(t) = t); by default eq. 5, then 0
    sigma_hat             t̂_i = t_i + γ_i t_i
    pred_original_sample  D(x; σ), eq. 7
    s_churn, s_tmin, s_tmax, s_noise   S_churn, S_tmin, S_tmax, S_noise

The published class rounds the levels to float32. With `state_dtype` "float64" NVlabs' `ablation_sampler` with solver
"euler" is reproduced bit for bit (there the slope is x/σ − D/σ).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.conventions import PredictionType, choose
from diffusers_ref.schedulers.noise_designs import LINEAR, UNSCALED, edm_levels, slope_factors
from diffusers_ref.schedulers.preconditioned_scheduler import (
    CHURN_OPTIONS,
    Evaluation,
    Linear,
    PreconditionedScheduler,
    Quotient,
)
from diffusers_ref.schedulers.preconditioning import EDMPreconditioner
from diffusers_ref.schedulers.requests import whole
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step


class SigmaSchedule(str, Enum):
    """How the noise levels fall."""

    KARRAS = "karras"
    """Published: linear in σ^(1/ρ), eq. 5."""
    EXPONENTIAL = "exponential"
    """Published: geometric (CosXL)."""


class FinalSigma(str, Enum):
    """The level at which a run ends."""

    ZERO = "zero"
    """Published, NVlabs: 0."""
    SIGMA_MIN = "sigma_min"
    """Published: the last level again, so that the last step does not move."""


class InitialScale(str, Enum):
    """The standard deviation of x_T."""

    PUBLISHED = "published"
    """√(σ_max² + 1)."""
    FIRST_SIGMA = "first_sigma"
    """NVlabs: the first level, t_0."""


class EDMEulerScheduler(PreconditionedScheduler):
    """Euler's method around an EDM-preconditioned network.

    Published options, with the meaning and default that HF diffusers gives them:
        sigma_min, sigma_max, rho, sigma_schedule: the levels, see `SigmaSchedule`.
        sigma_data: standard deviation of the data, of the preconditioning.
        num_train_timesteps: how many levels (but for one) `timesteps` lists before `set_timesteps`, for training.
        prediction_type: "epsilon" for the paper's networks; "v_prediction" for those whose output has the other sign.
        final_sigmas_type: see `FinalSigma`.
    Conventions of originals:
        s_churn, s_tmin, s_tmax, s_noise: how much noise is added (and its inflation) at which levels, before the
            network is asked, by `add_noise_to_input`.
        initial_scale: see `InitialScale`.
        state_dtype: None for that of the sample; "float64" (NVlabs): levels, state and draws are float64.

    Published code passes `s_churn` to `step`, which is after the network was asked: too late, so `step` has none here.
    Explicit `sigmas` are noise levels (published code takes them for positions from 0 to 1 on its own grid).
    """

    convention_options = CHURN_OPTIONS | {"initial_scale", "state_dtype"}

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        initial_scale: str = "published",
        state_dtype: str | None = None,
    ) -> None:
        self._sigma_schedule = choose(SigmaSchedule, "sigma_schedule", sigma_schedule)
        self._final = choose(FinalSigma, "final_sigmas_type", final_sigmas_type)
        self._initial_scale = choose(InitialScale, "initial_scale", initial_scale)
        if self._sigma_schedule is SigmaSchedule.EXPONENTIAL:
            self._refuse(("rho",), f"sigma_schedule={sigma_schedule!r}")
        allowed = (PredictionType.EPSILON, PredictionType.V_PREDICTION)
        kind = choose(PredictionType, "prediction_type", prediction_type, allowed=allowed)
        self._preconditioner = EDMPreconditioner(sigma_data, 1.0 if kind is PredictionType.EPSILON else -1.0)
        self._prepare(state_dtype, sigma_min, sigma_max)
        training = self._grid(whole("num_train_timesteps", num_train_timesteps, least=1) + 1)
        self.sigmas = self._ended(training)
        self.timesteps = 0.25 * torch.log(training.float())
        self._level_at = dict(zip(self.timesteps.tolist(), self._unscaled(training), strict=True))
        self.init_noise_sigma = self._initial()

    def __len__(self) -> int:
        """How many levels (but for one) there are for training."""
        length: int = self.config.num_train_timesteps
        return length

    def _initial(self) -> float:
        """Standard deviation of x_T."""
        if self._initial_scale is InitialScale.FIRST_SIGMA:
            return float(self.sigmas[0])
        return float((self.config.sigma_max**2 + 1) ** 0.5)

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
        levels = self._chosen(num_inference_steps, sigmas, self._grid)
        levels = levels if self._wide else levels.float()
        entries = (0.25 * torch.log(levels.float())).tolist()
        bare, levels = self._unscaled(levels), self._ended(levels)
        evaluations = self._plan(levels.double())
        labels = None
        if not self._wide:  # Published code takes the logarithm of all levels at once.
            raised = self._labels([item.sigma for item in evaluations])
            labels = [
                label if item.churned else entry
                for item, label, entry in zip(evaluations, raised, entries, strict=True)
            ]
        self._adopt_evaluations(evaluations, bare, levels, device, entries, labels)
        self.init_noise_sigma = self._initial()

    def _unscaled(self, levels: Tensor) -> list[tuple[float, float]]:
        return [(sigma, 1.0) for sigma in levels.tolist()]

    def _grid(self, count: int) -> Tensor:
        """(n,) noise levels: float32 of float64 levels, or float64."""
        low, high, rho = self._sigma_min, self._sigma_max, self.config.rho
        if count == 1:
            levels = torch.tensor([high], dtype=torch.float64)
        elif self._sigma_schedule is SigmaSchedule.EXPONENTIAL:
            dtype = torch.float64 if self._wide else torch.float32
            levels = torch.linspace(math.log(low), math.log(high), count, dtype=dtype).exp().flip(0)
        elif self._wide:
            levels = edm_levels(count, low, high, rho)
        else:
            first, last = high ** (1 / rho), low ** (1 / rho)
            levels = (first + torch.linspace(0, 1, count, dtype=torch.float64) * (last - first)) ** rho
        return levels if self._wide else levels.float()

    def _ended(self, levels: Tensor) -> Tensor:
        last = levels[-1:] if self._final is FinalSigma.SIGMA_MIN else torch.zeros_like(levels[:1])
        return torch.cat([levels, last])

    def _plan(self, levels: Tensor) -> list[Evaluation]:
        sigma_hat, added = self._raised(levels[:-1])
        factors = slope_factors(LINEAR, UNSCALED, sigma_hat)
        return [
            Evaluation(level, Linear(*ab) if self._wide else Quotient(level), h, added=noise)
            for level, *ab, h, noise in by_step(sigma_hat, *factors, levels[1:] - sigma_hat, added)
        ]

    # --- one evaluation ----------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        pred_original_sample: Tensor | None = None,
        variance_noise: Tensor | None = None,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One step: x + (σ_next − σ̂) · (x − D)/σ̂.

        model_output: (B, C, ...) the raw network output F. timestep: an entry of `timesteps`.
        sample: (B, C, ...) the state, after `add_noise_to_input` where there is churn.
        pred_original_sample: (B, C, ...) D(x; σ), if it is known already; `model_output` has no effect then.
        generator, variance_noise: (B, C, ...) the unused draw, if `add_noise_to_input` was not called.
        Returns the next state and D(x; σ) in the dtype of `sample`, or in `state_dtype`.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and where noise had to be added before.
        """
        result = self._take(model_output, timestep, sample, generator, variance_noise, pred_original_sample)
        return result if return_dict else result.to_tuple()
