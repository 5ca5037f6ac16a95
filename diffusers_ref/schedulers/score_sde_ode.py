"""Score-Based Generative Modeling through Stochastic Differential Equations (arXiv 2011.13456), section 4.3: the
probability flow ODE (eq. 13), solved by a black-box solver with error control.

    code                  paper
    sample                x(t), as the network is given it
    score                 s_θ(x(t), t)
    drift, diffusion      f(t) and g(t)
    rtol, atol            the solver's tolerances, section D.4

The SDEs are those of `score_sde_ve`, `score_sde_vp` and `score_sde_sub_vp`; the solver is scipy's RK45, see
`dormand_prince`. As in yang-song/score_sde_pytorch its state is a NumPy array in float64; what the network and the
drift see of it is rounded to float32 (where the sample is in float64, to that), and so is the time. With tolerances of
1e-5 that rounding shows in the error estimates: two machines take steps that differ by parts in a thousand.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.adaptive import AdaptiveScheduler
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.dormand_prince import DormandPrince
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time
from diffusers_ref.schedulers.score_sde import ScoreSdeScheduler
from diffusers_ref.schedulers.score_sde_sub_vp import ScoreSdeSubVpScheduler
from diffusers_ref.schedulers.score_sde_ve import ScoreSdeVeScheduler
from diffusers_ref.schedulers.score_sde_vp import ScoreSdeVpScheduler


class Sde(str, Enum):
    """Which SDE's probability flow is followed."""

    VE = "ve"
    """Variance exploding, eq. 9: sigma_min, sigma_max."""
    VP = "vp"
    """Variance preserving, eq. 11: beta_min, beta_max."""
    SUB_VP = "sub_vp"
    """Sub-VP, eq. 12: beta_min, beta_max."""


class ScoreSdeOdeScheduler(AdaptiveScheduler):
    """The probability flow ODE from t = 1 to ε. How many evaluations it takes is not known beforehand:

        for t in scheduler.timesteps:
            x = scheduler.step(network(x, scheduler.network_timestep(t)), t, x).prev_sample

    Options of the original (yang-song/score_sde_pytorch, `get_ode_sampler`); HF diffusers has no such class:
        sde: see `Sde`; options of the others have no effect and must be left as they are.
        num_train_timesteps: N of the discretisation, which the denoising step belongs to.
        beta_min, beta_max, sigma_min, sigma_max: of the SDE.
        sampling_eps: ε; by default 1e-5 for "ve" and 1e-3 for the others.
        rtol, atol: the solver's relative and absolute tolerance.
        noise_removal: a last evaluation at ε, and the mean of a reverse diffusion step from there.

    The network is one for continuous times: it is given σ(t), or t · 999, and its output is understood as by the
    class of the SDE. The only draw is one after the last evaluation of `noise_removal`; it has no effect.
    """

    @register_to_config
    def __init__(
        self,
        sde: str = "vp",
        num_train_timesteps: int = 1000,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        sampling_eps: float | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        noise_removal: bool = False,
    ) -> None:
        kind = choose(Sde, "sde", sde)
        shared: dict[str, Any] = {"predictor": "reverse_diffusion", "corrector": "none"}
        shared["num_train_timesteps"] = num_train_timesteps
        shared["sampling_eps"] = (1e-5 if kind is Sde.VE else 1e-3) if sampling_eps is None else sampling_eps
        self._sde: ScoreSdeScheduler
        if kind is Sde.VE:
            self._require_defaults("beta_min", "beta_max")
            self._sde = ScoreSdeVeScheduler(sigma_min=sigma_min, sigma_max=sigma_max, **shared)
        else:
            self._require_defaults("sigma_min", "sigma_max")
            cls = ScoreSdeVpScheduler if kind is Sde.VP else ScoreSdeSubVpScheduler
            self._sde = cls(beta_min=beta_min, beta_max=beta_max, **shared)
        for name, value in (("rtol", rtol), ("atol", atol)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not SMALLEST <= value < math.inf:
                raise ConfigError(f"{name}={value!r} is not allowed; it must be at least {SMALLEST:.3g}")
        self.init_noise_sigma = self._sde.init_noise_sigma

    def _require_defaults(self, *names: str) -> None:
        defaults = self.config_keys()
        if changed := [name for name in names if self.config[name] != defaults[name]]:
            raise ConfigError(f"{', '.join(changed)} has no effect with sde={self.config.sde!r}: leave it as it is")

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sampling_eps: float | None = None,
    ) -> None:
        """Begin a run, as if the scheduler had just been made.

        num_inference_steps: taken from common loops, and of no effect, as the tolerances decide. device: where the time
        of an evaluation lies. sampling_eps: ε, above 0 and at most 1, instead of the option.
        """
        eps = self._sde.config.sampling_eps if sampling_eps is None else sampling_eps
        if not 0 < eps <= 1:
            raise ValueError(f"sampling_eps={eps} is not allowed; it must be above 0 and at most 1")
        self._eps = float(eps)
        self._denoises = False
        self._solver: DormandPrince | None = None
        if self.config.noise_removal:
            self._sde.set_timesteps(sampling_eps=eps)
        self._begin(1.0, device)

    def network_timestep(self, timestep: Time | Tensor) -> Tensor:
        """What the network is given as time: σ(t) or t · 999, () float32."""
        t = torch.as_tensor(timestep)
        return self._sde.labels(t.reshape(1).float().cpu())[0].to(t.device)

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

        model_output, sample: (B, C, ...), the sample as the step before returned it. timestep: that of `timesteps`.
        generator, variance_noise: (B, C, ...), of the unused draw after the denoising step.
        Returns the next input, or the result, in the dtype of `sample`.

        Raises ValueError for a timestep that is not the next, for shapes that do not fit, for a model output that is
        not finite, and for `variance_noise` where nothing is drawn.
        """
        dtype = self._check(model_output, sample)
        if variance_noise is not None and not self._denoises:
            raise ValueError("variance_noise is not allowed: only the denoising step draws noise")
        self._expect(timestep)
        x, output = sample.to(dtype), model_output.to(dtype)
        if self._denoises:
            last = self._sde.timesteps[-1]
            prev_sample = self._sde.step(output, last, x, generator, variance_noise, return_dict=False)[0]
            self._continue(None)
        else:
            prev_sample = self._solve(x, self._slope(output, x, float(timestep)))
        result = SchedulerOutput(prev_sample.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _slope(self, output: Tensor, x: Tensor, time: float) -> Tensor:
        """dx/dt of eq. 13: f(t)·x − ½g(t)²·s."""
        t = torch.tensor([time]).to(x.dtype)
        divisors = self._sde.score_divisors(t)
        score = output if divisors is None else output / divisors.item()
        drift, diffusion = self._sde.drift_and_diffusion(t)
        return drift.item() * x - (diffusion**2 * 0.5).item() * score

    def _solve(self, x: Tensor, slope: Tensor) -> Tensor:
        """Give the slope to the solver; the state at which it asks for the next."""
        flat = lambda value: value.detach().cpu().numpy().reshape(-1).astype(np.float64)
        if self._solver is None:
            self._solver = DormandPrince(1.0, flat(x), self._eps, self.config.rtol, self.config.atol)
        if not slope.isfinite().all():
            raise ValueError("the model output is not finite: the solver cannot go on")
        self._solver.answer(flat(slope))
        self.accepted, self.rejected = self._solver.accepted, self._solver.rejected
        if self._solver.point is not None:
            next_time, state = self._solver.point
            self._continue(float(next_time))
        else:
            state = self._solver.y
            self._denoises = self.config.noise_removal
            self._continue(self._eps if self._denoises else None)
        return torch.from_numpy(state.reshape(x.shape)).to(x.device, x.dtype, copy=True)


SMALLEST = 100 * float(np.finfo(np.float64).eps)
"""The smallest tolerance; scipy replaces smaller ones by it."""
