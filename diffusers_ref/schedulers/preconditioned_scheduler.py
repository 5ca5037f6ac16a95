"""Stochastic sampling of the ODE of EDM (arXiv 2206.00364), algorithms 1 and 2: what its schedulers share.

    code                    paper
    sample                  x_i; at an inner evaluation x'_i
    x_hat                   x̂_i, the state after noise was added ("churn")
    denoised                D(x; σ), eq. 7
    slope                   d_i = dx/dt, eq. 81; (x − D)/σ where s(t) = 1 and σ(t) = t
    step_size               h = t_(i+1) − t̂_i
    gamma                   γ_i

A step of algorithm 2 evaluates the network twice, but for the last one: at (x̂_i, t̂_i), then at the end of an Euler
step (or of a part α of it). `timesteps` lists the evaluations; `step` maps each output to the next state:

    first evaluation    x' = x̂ + α·h·d           (α = 1 where no second one follows)
    second evaluation   x  = x̂ + h·((1 − 1/(2α))·d + 1/(2α)·d')

Noise is added before the network is asked, by `add_noise_to_input`. Networks compute in float32 around a float64 state
where the option `state_dtype` is "float64", as in NVlabs' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.random import Generators, randn
from diffusers_ref.schedulers.preconditioning import Preconditioner, Preconditioning, Scalings, each
from diffusers_ref.schedulers.requests import positive
from diffusers_ref.schedulers.scheduler import SchedulerMixin, SchedulerOutput, Time

Number = float | Tensor


class Quotient(NamedTuple):
    """d = (x − D)/σ, as algorithm 2 writes it."""

    sigma: float

    def __call__(self, x: Tensor, denoised: Tensor) -> Tensor:
        return (x - denoised) / self.sigma


class Linear(NamedTuple):
    """d = a·x − b·D, eq. 81, as algorithm 1 writes it."""

    of_sample: float
    of_denoised: float

    def __call__(self, x: Tensor, denoised: Tensor) -> Tensor:
        return self.of_sample * x - self.of_denoised * denoised


class Evaluation(NamedTuple):
    """One evaluation of the network, and what follows it."""

    sigma: float  # at which the network is asked
    slope: Quotient | Linear
    step_size: float  # h; α·h where a second evaluation follows
    second_of: float | None = None  # α, at a second evaluation
    scale: float = 1.0  # s(t)
    carried: float = 1.0  # s(t̂)/s(t) and what the draw is multiplied with, to get x̂
    added: float = 0.0

    @property
    def begins(self) -> bool:
        return self.second_of is None

    @property
    def churned(self) -> bool:
        """Whether γ > 0; what rounding adds without it is some 10⁻⁸ σ."""
        return self.added > 1e-6 * self.sigma * self.scale


CHURN_OPTIONS = frozenset({"s_churn", "s_tmin", "s_tmax", "s_noise"})


class PreconditionedScheduler(SchedulerMixin):
    """Base of the samplers that ask a preconditioned network for D(x; σ)."""

    sigmas: Tensor
    """(n + 1,) the noise levels, the last of which ends the run; float64, or float32 as published."""

    _preconditioner: Preconditioner
    _level_at: dict[Time, tuple[float, float]]
    """Entry of `timesteps` -> σ and s there, without churn."""

    convention_options = CHURN_OPTIONS | {"state_dtype"}

    def _prepare(self, state_dtype: str | None, sigma_min: float, sigma_max: float) -> None:
        """Check what all have in common; called once, by the constructors. The noise levels lie between the two."""
        check_range(sigma_min, sigma_max)
        for name in ("sigma_data", "rho"):
            if name in self.config:
                positive(name, self.config[name])
        self._sigma_min, self._sigma_max = sigma_min, sigma_max
        self.init_noise_sigma = float(sigma_max)
        if state_dtype not in (None, "float64"):
            raise ConfigError(f"state_dtype is {state_dtype!r}; allowed: None, 'float64'")
        self._wide = state_dtype is not None
        self._takes_variance = self.config.get("preconditioning") == Preconditioning.IDDPM.value
        config = self.config
        low, high = ("s_min", "s_max") if "s_min" in config else ("s_tmin", "s_tmax")
        for name in ("s_churn", low, "s_noise"):
            if not 0 <= config[name] < math.inf:
                raise ConfigError(f"{name}={config[name]} is not allowed; it must be at least 0, and finite")
        if not config[low] <= config[high]:
            raise ConfigError(f"{low}={config[low]} must not be above {high}={config[high]}")
        if config.s_churn == 0 and "s_tmin" in config:
            self._refuse(("s_tmin", "s_tmax", "s_noise"), "s_churn=0")

    def _refuse(self, names: Sequence[str], where: str) -> None:
        """Raise ConfigError for options that have no effect but differ from their defaults."""
        defaults = self.config_keys()
        for name in names:
            if self.config[name] != defaults[name]:
                raise ConfigError(f"{name}={self.config[name]} has no effect with {where}")

    # --- the list of evaluations -------------------------------------------------------------------------------------

    def _adopt_evaluations(
        self,
        evaluations: Sequence[Evaluation],
        levels: Sequence[tuple[float, float]],
        sigmas: Tensor,
        device: torch.device | str | None,
        entries: Sequence[float] | None = None,
        labels: Sequence[float] | None = None,
    ) -> None:
        """Make `evaluations` the plan; `sigmas` (n + 1,) are the levels of the grid.

        levels: σ and s at every evaluation without churn. entries: `timesteps`; by default, c_noise at these levels.
        labels: what the network is given as time; by default, c_noise at the levels after churn.
        """
        self._evaluations = list(evaluations)
        self._scalings_cache: dict[torch.dtype, list[tuple[float, ...]]] = {}
        self._prepared: int | None = None
        self.sigmas = sigmas
        if entries is None:
            entries = self._labels([sigma for sigma, _ in levels])
        if labels is None:
            labels = self._labels([evaluation.sigma for evaluation in evaluations])
        self._adopt(entries, len(sigmas) - 1, device, labels)
        self._level_at = dict(zip(self._times, levels, strict=True))
        sigma, scale = levels[0]
        self.init_noise_sigma = sigma * scale

    def _chosen(
        self, num_inference_steps: int | None, sigmas: Sequence[float] | Tensor | None, rule: Callable[[int], Tensor]
    ) -> Tensor:
        """(n,) float64 levels: the given ones, or those of the class's rule."""
        check_steps(num_inference_steps, sigmas)
        if sigmas is not None:
            return check_levels(sigmas)
        assert num_inference_steps is not None
        return rule(num_inference_steps)

    def _labels(self, sigmas: Sequence[float]) -> list[float]:
        """What the network is given as time at each level."""
        return self.precondition_noise(torch.tensor(sigmas, dtype=torch.float64)).tolist()

    def _begins_step(self, index: int) -> bool:
        return self._evaluations[index].begins

    def _restart(self) -> None:
        self._base: tuple[Tensor, Tensor] | None = None  # x̂ and d of the step under way

    def _churn(self, sigma: Tensor, low: float, high: float) -> Tensor:
        """(n,) γ_i: how much the noise level of each of n steps is raised, within [S_tmin, S_tmax]."""
        gamma = min(self.config.s_churn / len(sigma), math.sqrt(2) - 1)
        return gamma * ((low <= sigma) & (sigma <= high)).double()

    def _raised(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Algorithm 2, lines 4 to 6, where σ(t) = t: (n,) t̂_i, and what the draws are multiplied with."""
        gamma = self._churn(sigma, self.config.s_tmin, self.config.s_tmax)
        sigma_hat = each(self._preconditioner.round_sigma, sigma + gamma * sigma)
        return sigma_hat, (sigma_hat**2 - sigma**2).clip(min=0).sqrt() * self.config.s_noise

    # --- before the network ------------------------------------------------------------------------------------------

    def add_noise_to_input(
        self,
        sample: Tensor,
        timestep: Time | Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
    ) -> Tensor:
        """x̂: the state with its noise level raised, which the network and then `step` are to be given.

        sample: (B, C, ...) x_i. timestep: an entry of `timesteps`. generator, variance_noise: (B, C, ...) the draw,
        which is made at the first evaluation of every step, also where it has no effect. The state of a second
        evaluation is returned as it is.

        Raises ValueError before `set_timesteps`, for a timestep that does not begin a step, for a noise that does not
        fit, and for a noise where none is drawn.
        """
        self._require_timesteps()
        self._check(sample, sample)
        dtype = self._state_dtype(sample)
        index = self._locate(timestep, self._step_index)
        evaluation = self._evaluations[index]
        if not evaluation.begins:
            if variance_noise is not None:
                raise ValueError("variance_noise is not allowed: nothing is drawn at the second evaluation of a step")
            return sample
        noise = self._noise(sample, generator, variance_noise, dtype)
        self._prepared = index
        if evaluation.carried == 1 and evaluation.added == 0:
            return sample.to(self._returned_dtype(sample))
        x_hat = evaluation.carried * sample.to(dtype) + evaluation.added * noise
        return x_hat.to(self._returned_dtype(sample))

    def scale_model_input(
        self, sample: Tensor, timestep: Time | Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The network's input for the state `sample`: c_in(σ) · x/s.

        timestep: an entry of `timesteps`; the expected one if None. dtype: in which the network computes, by default
        the state's; the scaling is made in it.
        """
        self._require_timesteps()
        index = (self._step_index or 0) if timestep is None else self._locate(timestep, self._step_index)
        wanted = sample.dtype if dtype is None else dtype
        scale = self._evaluations[index].scale
        x = sample if scale == 1 else sample.to(self._state_dtype(sample)) / scale
        work = _at_least_float32(wanted)
        return self._scaled(x.to(work), index).to(wanted)

    def _scaled(self, x: Tensor, index: int) -> Tensor:
        """c_in · x."""
        return self._scalings(x.dtype)[index][2] * x

    # --- after the network -------------------------------------------------------------------------------------------

    def _take(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators,
        variance_noise: Tensor | None,
        denoised: Tensor | None = None,
    ) -> SchedulerOutput:
        """One evaluation: `step` of every class. denoised: D(x; σ), if it is known already."""
        if self._takes_variance and model_output.ndim > 1 and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output.chunk(2, dim=1)[0]
        self._check(model_output, sample)
        dtype = self._state_dtype(sample)
        prepared, self._prepared = getattr(self, "_prepared", None), None
        index = self._advance(timestep)
        evaluation = self._evaluations[index]
        if variance_noise is not None and (prepared == index or not evaluation.begins):
            raise ValueError("variance_noise is not allowed: this step's noise is drawn by add_noise_to_input")
        if evaluation.begins and prepared != index:
            if evaluation.churned:
                raise ValueError(
                    f"at timestep {float(timestep):g} noise has to be added before the network is asked: call "
                    "add_noise_to_input(sample, timestep), and give what it returns to the network and to step"
                )
            self._noise(sample, generator, variance_noise, dtype)  # Without effect, as γ is 0.

        x = sample.to(dtype)
        if denoised is None:
            denoised = self._denoised(model_output, x, index)
        denoised = denoised.to(dtype)
        slope = evaluation.slope(x, denoised)
        if evaluation.second_of is not None:
            assert self._base is not None
            x_hat, first = self._base
            weight = 1 / (2 * evaluation.second_of)
            x, slope = x_hat, (1 - weight) * first + weight * slope  # 2nd order correction
        else:
            self._base = x, slope
        prev_sample = x + evaluation.step_size * slope

        returned = self._returned_dtype(sample)
        return SchedulerOutput(prev_sample.to(returned), denoised.to(returned))

    def _denoised(self, model_output: Tensor, x: Tensor, index: int) -> Tensor:
        """D(x/s; σ), eq. 7."""
        work = self._work_dtype(model_output, x)
        scale = self._evaluations[index].scale
        c_skip, c_out, _ = self._scalings(work)[index]
        x = (x if scale == 1 else x / scale).to(work)
        return (x if c_skip == 1 else c_skip * x) + c_out * model_output.to(work)

    # --- precision ---------------------------------------------------------------------------------------------------

    @property
    def state_dtype(self) -> torch.dtype | None:
        """Of every state; None for that of the sample that is given."""
        return torch.float64 if self._wide else None

    def _state_dtype(self, sample: Tensor) -> torch.dtype:
        """Of the arithmetic."""
        return torch.float64 if self._wide or sample.dtype == torch.float64 else torch.float32

    def _work_dtype(self, model_output: Tensor, x: Tensor) -> torch.dtype:
        """Of D: the state's, or the network's (at least float32) where the state is wider than that."""
        return _at_least_float32(model_output.dtype) if self._wide else x.dtype

    def _returned_dtype(self, sample: Tensor) -> torch.dtype:
        return torch.float64 if self._wide else sample.dtype

    def _noise(
        self, sample: Tensor, generator: Generators, variance_noise: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        if variance_noise is None and self._wide:
            return randn(sample.shape, generator, sample.device, dtype, drawn_in=torch.float64)
        return super()._noise(sample, generator, variance_noise, dtype)

    def _scalings(self, dtype: torch.dtype) -> list[tuple[float, ...]]:
        """(c_skip, c_out, c_in) of every evaluation, in `dtype`."""
        if dtype not in self._scalings_cache:
            levels = torch.tensor([item.sigma for item in self._evaluations], dtype=torch.float64)
            found = self._preconditioner.scalings(levels.to(dtype))
            self._scalings_cache[dtype] = list(zip(*(column.tolist() for column in found), strict=True))
        return self._scalings_cache[dtype]

    # --- the same at any level ---------------------------------------------------------------------------------------

    def precondition_inputs(self, sample: Tensor, sigma: Number) -> Tensor:
        """c_in(σ) · x; sigma: a number or a tensor that broadcasts against `sample`."""
        return self._scalings_at(sigma, sample).c_in * sample

    def precondition_noise(self, sigma: Number) -> Tensor:
        """c_noise(σ) in float32: (n,) for a tensor of n levels, (1,) for a number."""
        return self._preconditioner.label(torch.as_tensor(sigma, dtype=torch.float64).reshape(-1).float())

    def precondition_outputs(self, sample: Tensor, model_output: Tensor, sigma: Number) -> Tensor:
        """D(x; σ) = c_skip(σ) · x + c_out(σ) · F, eq. 7; sample, model_output: (B, C, ...)."""
        scalings = self._scalings_at(sigma, sample)
        return scalings.c_skip * sample + scalings.c_out * model_output

    def _scalings_at(self, sigma: Number, sample: Tensor) -> Scalings:
        return self._preconditioner.scalings(torch.as_tensor(sigma, dtype=sample.dtype, device=sample.device))

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | Sequence[Time] | Time) -> Tensor:
        """Draw x_t: s · (x_0 + σ · noise) at entries of `timesteps`.

        original_samples, noise: (B, ...). timesteps: () or (B,). Returns (B, ...) in the dtype of `original_samples`.
        Raises ValueError for a time that is not an entry.
        """
        dtype = self._check(noise, original_samples)
        given = torch.as_tensor(timesteps)
        times = given.reshape(-1).tolist()
        if given.ndim > 1 or len(times) not in (1, len(original_samples)):
            raise ValueError(
                f"timesteps have the shape {tuple(given.shape)}; allowed: () or ({len(original_samples)},)"
            )
        levels = self._level_at
        for time in times:
            if time not in levels:
                raise ValueError(
                    f"{time} is not an entry of timesteps: call set_timesteps, and take one of its entries"
                )
        columns = torch.tensor([levels[time] for time in times], dtype=torch.float64).to(original_samples.device, dtype)
        sigma, scale = (column.reshape(-1, *[1] * (original_samples.ndim - 1)) for column in columns.T)
        return (scale * (original_samples.to(dtype) + sigma * noise.to(dtype))).to(original_samples.dtype)


def check_range(sigma_min: float, sigma_max: float) -> None:
    """Raise ConfigError unless noise levels can lie between these."""
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ConfigError(f"noise levels from {sigma_min} to {sigma_max} are not allowed: 0 < sigma_min < sigma_max")


def check_levels(sigmas: Sequence[float] | Tensor) -> Tensor:
    """(n,) float64 levels that the user chose. Raises ValueError unless they are positive, finite, and never rise."""
    levels = torch.as_tensor(sigmas, dtype=torch.float64).cpu()
    if levels.ndim != 1 or not len(levels):
        raise ValueError(f"sigmas has the shape {tuple(levels.shape)}; allowed: (n,) with at least one level")
    if not (levels.isfinite().all() and (levels > 0).all() and (levels[1:] <= levels[:-1]).all()):
        raise ValueError(
            f"sigmas={levels.tolist()} is not allowed: levels are positive and do not rise; the end is added to them"
        )
    return levels


def check_steps(num_inference_steps: Any, sigmas: Any) -> None:
    """Raise ValueError unless exactly one of both is given, and the steps are an integer from 1."""
    if (num_inference_steps is None) == (sigmas is None):
        raise ValueError("give either num_inference_steps or sigmas")
    if sigmas is None and (
        isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1
    ):
        raise ValueError(f"num_inference_steps is {num_inference_steps!r}; allowed: integers from 1")


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
