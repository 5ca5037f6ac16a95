"""Consistency Models (arXiv 2303.01469): one-step and multistep sampling, algorithm 1.

    code                    paper
    sample                  x̂_τn, in x + σ z
    prev_sample             x̂_τ(n+1)
    denoised                f_θ(x, τ), eq. 5
    sigma                   τ_n, the noise level
    sigma_min, sigma_max    ε, T
    c_skip, c_out           eq. 5, with the boundary condition f(x, ε) = x (appendix C)

`karras_sample` of openai/consistency_models is reproduced bit for bit for its samplers "multistep" and "onestep", see
`ConsistencySampler`. Levels are Python floats, and the network's arithmetic on them is in the dtype of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.scheduler import SchedulerMixin, SchedulerOutput, Time, by_step


class ConsistencySampler(str, Enum):
    """How levels are made, and whether one step draws."""

    MULTISTEP = "multistep"
    """Published; openai's `stochastic_iterative_sampler`: levels in double precision."""
    ONESTEP = "onestep"
    """openai's `sample_onestep`: one evaluation, at the first level of a float32 table; nothing is drawn."""


class _Step(NamedTuple):
    """The coefficients of one evaluation, as numbers, so that no device waits for them."""

    c_skip: float
    c_out: float
    c_in: float
    next_noise: float  # s_noise · √(τ' ² − ε²)


class CMStochasticIterativeScheduler(SchedulerMixin):
    """x' = f_θ(x, τ) + √(τ'² − ε²) z.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: N, the levels of the grid that the model was trained on, from sigma_max down to sigma_min.
        sigma_min, sigma_max, rho: the ends of that grid, and its exponent (EDM, arXiv 2206.00364, eq. 5).
        sigma_data: σ_data of c_skip, c_out and c_in.
        s_noise: a factor of the noise.
        clip_denoised: clamp f_θ to ±1.
    Conventions of openai:
        sampler: see `ConsistencySampler`.
        clip_result: clamp the result to ±1, also where the process ends above sigma_min.

    Runs of more than one step draw in every step, also in the last one, where next to nothing is added.
    """

    convention_options = frozenset({"sampler", "clip_result"})

    sigmas: Tensor
    """(n + 1,) float32 on the CPU: the level of every evaluation, and the one where the last step ends. Before
    `set_timesteps`: the (N,) levels of training."""

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 40,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        s_noise: float = 1.0,
        rho: float = 7.0,
        clip_denoised: bool = True,
        sampler: str = "multistep",
        clip_result: bool = False,
    ) -> None:
        self._sampler = choose(ConsistencySampler, "sampler", sampler)
        if isinstance(num_train_timesteps, bool) or not isinstance(num_train_timesteps, int) or num_train_timesteps < 2:
            raise ConfigError(f"num_train_timesteps must be an integer of at least 2, not {num_train_timesteps!r}")
        if not 0 < sigma_min < sigma_max:
            raise ConfigError(f"sigma_min={sigma_min} and sigma_max={sigma_max} must be above 0 and ascend")
        if not sigma_data > 0 or not rho > 0:
            raise ConfigError(f"sigma_data={sigma_data} and rho={rho} must be above 0")
        self.init_noise_sigma = sigma_max
        self._set_levels([self._level(index) for index in range(num_train_timesteps)])
        self.sigmas = torch.tensor(self._levels)
        self.timesteps = self._network_time(torch.tensor(self._levels))

    def __len__(self) -> int:
        """N, the number of levels that the model was trained on."""
        return self.config.num_train_timesteps

    # --- the grid ----------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
        ts: Sequence[int] | None = None,
    ) -> None:
        """Choose the levels and begin anew, as if the scheduler had just been made.

        Exactly one of these says which of the N levels of training, counted from the noisiest, are visited:
        num_inference_steps: n, from 1 to N: 0, N // n, 2 (N // n), ...; the process ends at sigma_min.
        timesteps: the levels in descending order, which are visited from the last entry to the first, as HF diffusers
            has it: [22, 0] begins with level 0. The process ends at sigma_min.
        ts: openai's list, not descending, of at least two levels; the process ends at the last of them.

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        requests = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "ts": ts}
        given = [name for name, value in requests.items() if value is not None]
        if len(given) != 1:
            what = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of num_inference_steps, timesteps and ts; given: {what}")
        if ts is not None:
            path = self._indices("ts", ts)
        else:
            if timesteps is None:
                (count,) = self._indices("num_inference_steps", [num_inference_steps], first=1)
                timesteps = [i * (len(self) // count) for i in reversed(range(count))]
            path = [*self._indices("timesteps", timesteps)[::-1], len(self) - 1]
        if len(path) < 2 or path != sorted(path):
            way = "ascend" if ts is None else "descend"
            raise ValueError(f"{given[0]}={requests[given[0]]} is not allowed; it must not {way}, nor be too short")

        *levels, end = (self._level(index) for index in path)
        self._draws = len(levels) > 1 or ts is not None
        if self._sampler is ConsistencySampler.ONESTEP:
            if path[:-1] != [0] or ts is not None:
                raise ValueError(f"sampler='onestep' visits the first level only, not {given[0]}={requests[given[0]]}")
            levels = [self._karras_table()[0].item()]
        self._set_levels(levels)
        # What is added to f_θ; as openai does it, with NumPy's numbers.
        least, most = self.config.sigma_min, self.config.sigma_max
        fresh = [np.sqrt(np.clip(level, least, most) ** 2 - least**2) for level in [*levels[1:], end]]
        self._next_noise = [self.config.s_noise * float(noise) for noise in fresh]
        self.sigmas = torch.tensor([*levels, end])
        times = self._network_time(self.sigmas[:-1]).tolist()
        self._adopt(times, len(levels), device)
        self._coefficients(torch.float32)

    def _indices(self, name: str, values: Sequence[Any], first: int = 0) -> list[int]:
        found = values.tolist() if isinstance(values, (Tensor, np.ndarray)) else list(values)
        limit = len(self) + first - 1
        for value in found:
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not first <= value <= limit:
                raise ValueError(f"{name} is or has {value!r}; allowed: integers from {first} to {limit}")
        return [int(value) for value in found]

    def _level(self, index: int) -> float:
        """The level of training with this index, 0 being sigma_max: EDM, eq. 5."""
        low, high, rho = *self._roots(), self.config.rho
        return (high + index / (len(self) - 1) * (low - high)) ** rho

    def _karras_table(self) -> Tensor:
        """(N,) float32: the same levels as openai makes them for its other samplers."""
        low, high = self._roots()
        return (high + torch.linspace(0, 1, len(self)) * (low - high)) ** self.config.rho

    def _roots(self) -> tuple[float, float]:
        rho = self.config.rho
        return self.config.sigma_min ** (1 / rho), self.config.sigma_max ** (1 / rho)

    def _set_levels(self, levels: list[float]) -> None:
        self._levels = levels
        self._coefficient_cache: dict[torch.dtype, list[_Step]] = {}

    @staticmethod
    def _network_time(sigmas: Tensor) -> Tensor:
        """250 log σ, in float32, as the network is given it."""
        return 1000 * 0.25 * torch.log(sigmas + 1e-44)

    # --- one step ----------------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Time | Tensor | None = None) -> Tensor:
        """c_in x, with c_in = 1/√(σ² + σ_data²), at an entry of `timesteps` (by default the next)."""
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        coefficients = self._coefficients(dtype)
        index = (self._step_index or 0) if timestep is None else self._locate(timestep, self._step_index)
        return (coefficients[index].c_in * sample.to(dtype)).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One step of algorithm 1.

        model_output: (B, C, ...) the network's output at the scaled input. sample: (B, C, ...) x, not scaled.
        timestep: an entry of `timesteps`.
        generator: where the noise is drawn from. variance_noise: (B, C, ...), the noise itself, instead of a draw; a
            run of one step uses none.
        Returns x' and f_θ, in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        coefficients = self._coefficients(dtype)
        index = self._advance(timestep)
        c = coefficients[index]
        draws = self._draws or variance_noise is not None
        noise = self._noise(sample, generator, variance_noise, dtype) if draws else None

        denoised = c.c_out * model_output.to(dtype) + c.c_skip * sample.to(dtype)  # eq. 5
        if self.config.clip_denoised:
            denoised = denoised.clamp(-1, 1)
        prev_sample = denoised
        if noise is not None and self._draws:
            prev_sample = denoised + noise * c.next_noise
        if self.config.clip_result and index + 1 == len(coefficients):
            prev_sample = prev_sample.clamp(-1, 1)

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def get_scalings_for_boundary_condition(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out of eq. 5 at σ (...), in its dtype: (...) each."""
        variance = self.config.sigma_data**2
        c_skip = variance / ((sigma - self.config.sigma_min) ** 2 + variance)
        c_out = (sigma - self.config.sigma_min) * self.config.sigma_data / (sigma**2 + variance) ** 0.5
        return c_skip, c_out

    def _coefficients(self, dtype: torch.dtype) -> list[_Step]:
        """The coefficients of every evaluation, for arithmetic in `dtype`."""
        self._require_timesteps()
        if dtype not in self._coefficient_cache:
            sigma = torch.tensor(self._levels, dtype=dtype)
            c_skip, c_out = self.get_scalings_for_boundary_condition(sigma)
            c_in = 1 / (sigma**2 + self.config.sigma_data**2) ** 0.5
            rows = by_step(c_skip, c_out, c_in, torch.tensor(self._next_noise, dtype=torch.float64))
            self._coefficient_cache[dtype] = [_Step(*row) for row in rows]
        return self._coefficient_cache[dtype]

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | Sequence[float] | float) -> Tensor:
        """Draw x_σ = x_0 + σ · noise.

        original_samples, noise: (B, ...). timesteps: entries of `timesteps`, () or (B,). Returns (B, ...).
        """
        dtype = self._check(noise, original_samples)
        times = torch.as_tensor(timesteps)
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(original_samples))):
            raise ValueError(f"timesteps has the shape {tuple(times.shape)}; allowed: () or ({len(original_samples)},)")
        level_at = dict(zip(self.timesteps.tolist(), self._levels, strict=True))
        wanted = times.reshape(-1).tolist()
        missing = [time for time in wanted if time not in level_at]
        if missing:
            raise ValueError(f"timestep {missing[0]} is none of this scheduler's {len(level_at)} timesteps")
        sigma = torch.tensor([level_at[time] for time in wanted], dtype=dtype, device=original_samples.device)
        sigma = sigma.view(-1, *[1] * (original_samples.ndim - 1))
        return (original_samples.to(dtype) + sigma * noise.to(dtype)).to(original_samples.dtype)
