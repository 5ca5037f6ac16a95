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

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.noise_designs import edm_levels
from diffusers_ref.schedulers.preconditioned_scheduler import (
    Evaluation,
    PreconditionedScheduler,
    Quotient,
)
from diffusers_ref.schedulers.preconditioning import Preconditioning, make_preconditioner
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step


class EDMHeunScheduler(PreconditionedScheduler):
    """Heun's method with churn, around a preconditioned network; HF diffusers has no such class.

    sigma_min, sigma_max, rho: of eq. 5. Levels that the network does not know are left out.
    preconditioning: which network, see `Preconditioning`; sigma_data: of "edm".
    s_churn, s_tmin, s_tmax, s_noise: how much noise is added (and its inflation) at which levels.
    state_dtype: None for that of the sample; "float64" (NVlabs): state and draws are float64 around any network.

    Defaults are NVlabs'. One step begins at sigma_max, where NVlabs' code divides by zero.
    """

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
        kind = choose(Preconditioning, "preconditioning", preconditioning)
        self._preconditioner = known = make_preconditioner(kind, sigma_data)
        self._prepare(state_dtype, max(sigma_min, known.sigma_min), min(sigma_max, known.sigma_max))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Choose the steps, by their number or by their noise levels (n,), to which 0 is added; begin anew.

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        rule = lambda steps: edm_levels(steps, self._sigma_min, self._sigma_max, self.config.rho)
        levels = self._preconditioner.round_sigma(self._chosen(num_inference_steps, sigmas, rule))
        levels = torch.cat([levels, torch.zeros_like(levels[:1])])
        sigma_hat, added = self._raised(levels[:-1])
        evaluations = []
        for level, after, h, noise in by_step(sigma_hat, levels[1:], levels[1:] - sigma_hat, added):
            evaluations.append(Evaluation(level, Quotient(level), h, added=noise))  # lines 7 and 8
            evaluations.append(Evaluation(after, Quotient(after), h, second_of=1.0))  # lines 10 and 11
        bare = levels.repeat_interleave(2)[1:-2]
        self._adopt_evaluations(evaluations[:-1], list(by_step(bare, torch.ones_like(bare))), levels, device)

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
