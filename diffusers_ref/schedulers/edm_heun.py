"""Elucidating the Design Space of Diffusion-Based Generative Models (arXiv 2206.00364), algorithm 2: the EDM sampler.

    code                 paper
    sigmas               t_i, i = 0 ... N, eq. 5 (σ(t) = t), and t_N = 0
    sigma, sigma_next    t_i, t_(i+1)
    sigma_hat            t̂_i = t_i + γ_i t_i
    s_churn, s_tmin, s_tmax, s_noise   S_churn, S_tmin, S_tmax, S_noise

NVlabs' `edm_sampler` is reproduced bit for bit with `state_dtype` "float64".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.noise_designs import edm_levels
from diffusers_ref.schedulers.preconditioned_scheduler import (
    CHURN_OPTIONS,
    Evaluation,
    PreconditionedScheduler,
    Quotient,
    check_levels,
    check_range,
    check_steps,
)
from diffusers_ref.schedulers.preconditioning import Preconditioning, each, make_preconditioner
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step


class EDMHeunScheduler(PreconditionedScheduler):
    """Heun's method with churn, around a preconditioned network; HF diffusers has no such class.

    sigma_min, sigma_max, rho: of eq. 5. Levels that the network does not know are left out.
    preconditioning: which network, see `Preconditioning`; sigma_data: of "edm".
    s_churn, s_tmin, s_tmax, s_noise: how much noise is added (and its inflation) at which levels.
    state_dtype: None for that of the sample; "float64" (NVlabs): state and draws are float64 around any network.

    Defaults are NVlabs'. One step begins at sigma_max, where NVlabs' code divides by zero.
    """

    convention_options = CHURN_OPTIONS | {"state_dtype"}
    order = 2

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        preconditioning: str = "edm",
        sigma_data: float = 0.5,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        state_dtype: str | None = None,
    ) -> None:
        self._preconditioner = make_preconditioner(
            choose(Preconditioning, "preconditioning", preconditioning), sigma_data
        )
        self._prepare(state_dtype)
        self._refuse_churn_options()
        if preconditioning != Preconditioning.EDM.value:
            self._refuse(("sigma_data",), f"preconditioning={preconditioning!r}")
        self._sigma_min = max(sigma_min, self._preconditioner.sigma_min)
        self._sigma_max = min(sigma_max, self._preconditioner.sigma_max)
        check_range(self._sigma_min, self._sigma_max)
        self.init_noise_sigma = self._sigma_max

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Choose the steps, by their number or by their noise levels (n,), to which 0 is added; begin anew.

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        check_steps(num_inference_steps, sigmas)
        if sigmas is None:
            assert num_inference_steps is not None
            levels = edm_levels(num_inference_steps, self._sigma_min, self._sigma_max, self.config.rho)
        else:
            levels = check_levels(sigmas)
        levels = self._preconditioner.round_sigma(levels)
        levels = torch.cat([levels, torch.zeros_like(levels[:1])])
        pairs = list(pairwise(levels.tolist()))
        bare = [sigma for pair in pairs for sigma in pair][:-1]
        self._adopt_evaluations(self._plan(levels), self._labels(bare), levels, device)
        self._bare = {time: (sigma, 1.0) for time, sigma in zip(self._times, bare, strict=True)}
        self.init_noise_sigma = bare[0]

    def _plan(self, levels: Tensor) -> list[Evaluation]:
        # Lines 4 to 6: raise the noise level.
        sigma, after = levels[:-1], levels[1:]
        gamma = self._churn(sigma, self.config.s_tmin, self.config.s_tmax)
        sigma_hat = each(self._preconditioner.round_sigma, sigma + gamma * sigma)
        added = (sigma_hat**2 - sigma**2).clip(min=0).sqrt() * self.config.s_noise
        step_size = after - sigma_hat

        evaluations = []
        for level, end, h, churned, noise in by_step(sigma_hat, after, step_size, gamma > 0, added):
            # Lines 7 and 8: the Euler step. Lines 10 and 11: the correction.
            partial = h if end else None
            evaluations.append(Evaluation(level, Quotient(level), h, partial, churned=bool(churned), added=noise))
            if end:
                evaluations.append(Evaluation(end, Quotient(end), h, second_of=1.0))
        return evaluations

    def _levels(self) -> dict[Time, tuple[float, float]]:
        self._require_timesteps()
        return self._bare

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
