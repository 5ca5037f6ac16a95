"""Stochastic sampling of variance-exploding models: EDM (arXiv 2206.00364), algorithm 2 on the levels of VE, table 1.

    code                  paper
    sigmas                σ_i = σ_max (σ_min/σ_max)^(i/(N−1)), i = 0 ... N−1, then 0
    s_churn, s_min, s_max, s_noise   S_churn, S_tmin, S_tmax, S_noise
    model_output          the score of x/2 + 1/2 at σ/2: a network of score SDE (NCSN++), trained on pixels in [0, 1]
    denoised              D(x; σ) = x + σ · (σ/2 · model_output), eq. 213

The published class takes σ_i² for σ_i, which is none of the paper's: here the levels are the paper's. NVlabs'
`ablation_sampler` with discretisation "ve" is reproduced bit for bit with `state_dtype` "float64".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.edm_ablation import plan
from diffusers_ref.schedulers.noise_designs import LINEAR, UNSCALED, ve_levels
from diffusers_ref.schedulers.preconditioned_scheduler import Number, PreconditionedScheduler
from diffusers_ref.schedulers.preconditioning import ScorePreconditioner
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time


class KarrasVeScheduler(PreconditionedScheduler):
    """Heun's method with churn, around a score network of score SDE.

    Published options, with the default that HF diffusers gives them:
        sigma_min, sigma_max: the range of the levels.
        s_noise, s_churn, s_min, s_max: how much noise is added (and its inflation) at which levels.
    Convention of an original:
        state_dtype: None for that of the sample; "float64" (NVlabs): state and draws are float64 around any network.

    `timesteps` lists the evaluations by what the network is given as time without churn, σ/2.
    """

    convention_options = frozenset({"state_dtype"})
    order = 2

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        s_noise: float = 1.007,
        s_churn: float = 80.0,
        s_min: float = 0.05,
        s_max: float = 50.0,
        state_dtype: str | None = None,
    ) -> None:
        self._preconditioner = ScorePreconditioner()
        self._prepare(state_dtype, sigma_min, sigma_max)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Choose the steps, by their number or by their noise levels (n,), to which 0 is added; begin anew.

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        rule = lambda steps: ve_levels(steps, self._sigma_min, self._sigma_max)
        levels = self._chosen(num_inference_steps, sigmas, rule)
        levels = torch.cat([levels, torch.zeros_like(levels[:1])])
        churn = lambda sigma: self._churn(sigma, self.config.s_min, self.config.s_max)
        evaluations, bare = plan(levels, LINEAR, UNSCALED, self._preconditioner, churn, self.config.s_noise, alpha=1.0)
        self._adopt_evaluations(evaluations, bare, levels, device)

    # --- the network -------------------------------------------------------------------------------------------------

    def _scaled(self, x: Tensor, index: int) -> Tensor:
        return self.precondition_inputs(x, self._evaluations[index].sigma)

    def _denoised(self, model_output: Tensor, x: Tensor, index: int) -> Tensor:
        work = self._work_dtype(model_output, x)
        return self.precondition_outputs(x.to(work), model_output.to(work), self._evaluations[index].sigma)

    def precondition_inputs(self, sample: Tensor, sigma: Number) -> Tensor:
        """The network's input at any σ: x/2 + 1/2."""
        return (sample + 1) / 2

    def precondition_outputs(self, sample: Tensor, model_output: Tensor, sigma: Number) -> Tensor:
        """D(x; σ), eq. 213; sample, model_output: (B, C, ...)."""
        return sample + sigma * (0.5 * sigma * model_output)

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

        model_output: (B, C, ...) the score network's output, as it is. timestep: an entry of `timesteps`.
        sample: (B, C, ...) the state, after `add_noise_to_input`.
        generator, variance_noise: (B, C, ...) the unused draw, if that was not called and s_churn is 0.
        Returns the next state and D(x; σ) in the dtype of `sample`, or in `state_dtype`.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and where noise had to be added before.
        """
        result = self._take(model_output, timestep, sample, generator, variance_noise)
        return result if return_dict else result.to_tuple()
