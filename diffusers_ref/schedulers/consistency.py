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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.requests import levels_at, listed, positive, whole
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
        whole("num_train_timesteps", num_train_timesteps, least=2)
        for name in ("sigma_min", "sigma_max", "sigma_data", "rho"):
            positive(name, self.config[name])
        if not sigma_min < sigma_max:
            raise ConfigError(f"sigma_min={sigma_min} is not allowed; it must be below sigma_max={sigma_max}")
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
        given = {name: value for name, value in requests.items() if value is not None}
        if len(given) != 1:
            what = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of num_inference_steps, timesteps and ts; given: {what}")
        ((name, value),) = given.items()
        last = len(self) - 1
        if name == "num_inference_steps":
            count = whole(name, value, 1, len(self))
            path = [*(i * (len(self) // count) for i in range(count)), last]
        else:
            path = [whole(name, index, 0, last) for index in listed(value)]
            path = path if name == "ts" else [*path[::-1], last]
        if len(path) < 2 or path != sorted(path):
            way = "ascend" if name == "timesteps" else "descend"
            raise ValueError(f"{name}={value} is not allowed; it must not {way}, nor be too short")

        *levels, end = map(self._level, path)
        self._draws = len(levels) > 1 or name == "ts"
        if self._sampler is ConsistencySampler.ONESTEP:
            if path[:-1] != [0] or name == "ts":
                raise ValueError(f"sampler='onestep' visits the first level only, not {name}={value}")
            levels = [self._first_of_table()]
        self._set_levels(levels)
        # What is added to f_θ; as openai does it, with NumPy's numbers.
        least, most = self.config.sigma_min, self.config.sigma_max
        fresh = (np.sqrt(np.clip(level, least, most) ** 2 - least**2) for level in [*levels[1:], end])
        self._next_noise = [self.config.s_noise * noise for noise in fresh]
        self.sigmas = torch.tensor([*levels, end])
        times = self._network_time(self.sigmas[:-1]).tolist()
        self._adopt(times, len(levels), device)

    def _level(self, index: int) -> float:
        """The level of training with this index, 0 being sigma_max: EDM, eq. 5."""
        low, high, rho = *self._roots(), self.config.rho
        return (high + index / (len(self) - 1) * (low - high)) ** rho

    def _first_of_table(self) -> float:
        """The first level in float32, as openai makes it for its other samplers."""
        return (torch.tensor([self._roots()[1]]) ** self.config.rho).item()

    def _roots(self) -> tuple[float, float]:
        rho = self.config.rho
        return self.config.sigma_min ** (1 / rho), self.config.sigma_max ** (1 / rho)

    def _set_levels(self, levels: list[float]) -> None:
        self._levels = levels
        self._coefficient_cache: dict[torch.dtype, list[_Step]] = {}

    @staticmethod
    def _network_time(sigmas: Tensor) -> Tensor:
        """250 log σ, in float32, as the network is given it."""
        return 250 * torch.log(sigmas)

    # --- one step ----------------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Time | Tensor | None = None) -> Tensor:
        """c_in x, with c_in = 1/√(σ² + σ_data²), at an entry of `timesteps` (by default the next)."""
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        coefficients = self._coefficients(dtype)
        index = (self._step_index or 0) if timestep is None else self._locate(timestep, self._step_index)
        return coefficients[index].c_in * sample

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
        noise = self._noise(sample, generator, variance_noise, dtype) if self._draws else None

        denoised = c.c_out * model_output.to(dtype) + c.c_skip * sample.to(dtype)  # eq. 5
        if self.config.clip_denoised:
            denoised = denoised.clamp(-1, 1)
        prev_sample = denoised
        if noise is not None:
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
        sigma = levels_at(timesteps, self.timesteps.tolist(), self._levels, original_samples, dtype)
        return (original_samples + sigma * noise).to(original_samples.dtype)
