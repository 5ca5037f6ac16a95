"""Improved pseudo linear multistep sampling: PLMS (arXiv 2202.09778, eq. 12) with lower orders instead of a warm-up.

    code                  meaning
    timesteps             t, an angle in units of π/2: x_t = cos(πt/2) x_0 + sin(πt/2) ε
    alpha, sigma          cos(πt/2), sin(πt/2)
    output                v = α ε − σ x_0 (arXiv 2202.00512), what the network returns
    epsilon               ε_t = α v + σ x
    history               ε at the last times, newest first
    transfer              φ(x_t, ε, t, t − δ), eq. 11

The method is iPNDM of DEIS (arXiv 2204.13902, appendix H.2), here as crowsonkb/v-diffusion has it (`iplms_sample`).
What DEIS' own code runs under that name is `DEISMultistepScheduler(solver_type="ipndm")`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.requests import whole
from diffusers_ref.schedulers.scheduler import SchedulerMixin, SchedulerOutput, Time, by_step


class AngleSchedule(str, Enum):
    """Which times crowsonkb/v-diffusion visits, from u = 1, (n − 1)/n, ..., 1/n; all in float32."""

    LINEAR = "linear"
    """t = u. At t = 1 nothing is left of x_0, and rounding decides the first step."""
    DDPM = "ddpm"
    """`get_ddpm_schedule`: log SNR = −log(expm1(1e-4 + 10 u²))."""
    SPLICED_DDPM_COSINE = "spliced_ddpm_cosine"
    """`get_spliced_ddpm_cosine_schedule`, that of its command line: DDPM's times at the noisy end, even ones below."""
    LOG = "log"
    """`get_log_schedule`: log SNR evenly from −10 to 10."""


class _Step(NamedTuple):
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float


class IPNDMScheduler(SchedulerMixin):
    """Fourth-order linear multistep sampling with a network that predicts v.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T, the length of the scheduler; no number depends on it.
        trained_betas: the n + 1 values of σ, the last where sampling ends, of the only grid that there is then; by
            default sin²(π/2 · u) for u = 1, (n − 1)/n, ..., 0. At σ = 1, where ε says
            nothing of x_0, the step takes x̂_0 = −v (HF diffusers takes 0).
    Conventions of originals:
        angle_schedule: crowsonkb's grid of times, see `AngleSchedule`, with its order of operations.

    The method takes as many past outputs as there are, up to four: it can start in the middle, too.
    """

    convention_options = frozenset({"angle_schedule"})

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        trained_betas: Sequence[float] | None = None,
        angle_schedule: str | None = None,
    ) -> None:
        whole("num_train_timesteps", num_train_timesteps, least=1)
        self._schedule = None if angle_schedule is None else choose(AngleSchedule, "angle_schedule", angle_schedule)
        if trained_betas is not None:
            if self._schedule is not None:
                raise ConfigError(f"trained_betas have no effect with angle_schedule={angle_schedule!r}")
            sigmas = [float(value) for value in trained_betas]
            if len(sigmas) < 2 or not all(1 >= a >= b >= 0 for a, b in pairwise(sigmas)):
                raise ConfigError(
                    "trained_betas must be at least two numbers from 1 down to 0, none above the one before"
                )
        count = num_train_timesteps if trained_betas is None else len(trained_betas) - 1
        self.timesteps = torch.tensor(self._grid(count)[0])

    def __len__(self) -> int:
        """T."""
        return self.config.num_train_timesteps

    # --- the grid ----------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose the grid and begin anew, as if the scheduler had just been made.

        Exactly one of these says which times are visited before the end, 0:
        num_inference_steps: how many, at least 1; with `trained_betas` as many as these have, less one.
        timesteps: the times themselves, above 0 and at most 1, none above the one before.

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        if (num_inference_steps is None) == (timesteps is None):
            given = "none" if timesteps is None else "both"
            raise ValueError(f"give exactly one of num_inference_steps and timesteps; given: {given}")
        if timesteps is not None:
            times = _explicit(timesteps)
            # As published: of σ = 1 nothing is left for α, not the rounding of cos(π/2).
            self._sigmas = None if self._schedule else _alpha_sigma(torch.tensor([*times, 0.0]))[1]
        else:
            times, self._sigmas = self._grid(_count(num_inference_steps))
        self._adopt(times, len(times), device)
        self._coefficient_cache = {torch.float32: self._make_coefficients(torch.float32)}

    def _grid(self, count: int) -> tuple[list[float], Tensor | None]:
        """The times, and (n + 1,) σ where that is what defines them."""
        even = torch.linspace(1, 0, count + 1)
        if self._schedule is not None:
            return _angles(self._schedule, even[:-1]).tolist(), None
        sigma = torch.sin(even * math.pi / 2) ** 2
        if (trained := self.config.trained_betas) is not None:
            if count != len(trained) - 1:
                raise ValueError(f"{count} steps do not fit {len(trained)} trained_betas; allowed: {len(trained) - 1}")
            sigma = torch.tensor(trained, dtype=torch.float32)
        return (torch.atan2(sigma, (1.0 - sigma**2) ** 0.5) / math.pi * 2)[:-1].tolist(), sigma

    def _restart(self) -> None:
        self._history: list[Tensor] = []

    # --- one evaluation ----------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take the output of one evaluation; return the input of the next.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`.
        Returns the next input and, with an `angle_schedule`, x̂_0 of this output alone, in the dtype of `sample`; the
        arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        step = self._coefficients(dtype)[self._advance(timestep)]
        x, output = sample.to(dtype), model_output.to(dtype)

        epsilon = x * step.sigma + output * step.alpha
        self._history = [epsilon, *self._history[:3]]
        mean = self._combined()
        pred = (x - step.sigma * mean) / step.alpha if step.alpha else -output
        prev_sample = step.alpha_next * pred + step.sigma_next * mean  # eq. 11

        x0 = None
        if self._schedule is not None:
            x0 = ((x - step.sigma * epsilon) / step.alpha).to(sample.dtype)
        result = SchedulerOutput(prev_sample.to(sample.dtype), x0)
        return result if return_dict else result.to_tuple()

    def _combined(self) -> Tensor:
        """Adams–Bashforth: eq. 12 for order 4; rounded as the originals round it."""
        order = len(self._history)
        divisor, weights = _ADAMS_BASHFORTH[order]
        if self._schedule is not None:
            weights, divisor = tuple(weight / divisor for weight in weights), 1
        total = weights[0] * self._history[0] if order > 1 else self._history[0]
        for weight, epsilon in zip(weights[1:], self._history[1:], strict=True):
            total = total + weight * epsilon
        if divisor != 1:
            total = total / divisor if order < 4 else (1 / divisor) * total
        return total

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _coefficients(self, dtype: torch.dtype) -> list[_Step]:
        """The coefficients of every entry of `timesteps`, for arithmetic in `dtype`."""
        self._require_timesteps()
        if dtype not in self._coefficient_cache:
            self._coefficient_cache[dtype] = self._make_coefficients(dtype)
        return self._coefficient_cache[dtype]

    def _make_coefficients(self, dtype: torch.dtype) -> list[_Step]:
        if self._sigmas is not None:
            sigma = self._sigmas
            alpha = (1.0 - sigma**2) ** 0.5
        else:
            alpha, sigma = _alpha_sigma(torch.tensor([*self._times, 0.0], dtype=dtype))
        return [_Step(*row) for row in by_step(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])]

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | float) -> Tensor:
        """Draw x_t: cos(πt/2) · x_0 + sin(πt/2) · noise.

        original_samples, noise: (B, ...). timesteps: t in [0, 1], () or (B,). Returns (B, ...).
        """
        dtype = self._check(noise, original_samples)
        times = torch.as_tensor(timesteps, device="cpu")
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(original_samples))):
            raise ValueError(f"timesteps has the shape {tuple(times.shape)}; allowed: () or ({len(original_samples)},)")
        if times.numel() and not (times.min() >= 0 and times.max() <= 1):
            raise ValueError(f"timesteps {times.tolist()} are out of range; allowed: 0 to 1")
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (
            value.to(original_samples.device).view(shape) for value in _alpha_sigma(times.to(dtype).reshape(-1))
        )
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)


def _alpha_sigma(times: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(times * math.pi / 2), torch.sin(times * math.pi / 2)


def _angles(schedule: AngleSchedule, u: Tensor) -> Tensor:
    """(n,) the times of crowsonkb's schedules."""
    if schedule is AngleSchedule.LINEAR:
        return u
    if schedule is AngleSchedule.DDPM:
        return _ddpm_angles(u)
    if schedule is AngleSchedule.LOG:
        return _angle_at(u * (-10 - 10) + 10)
    ddpm_crossover, cosine_crossover = 0.48536712, 0.80074257
    spliced = u * (1 + cosine_crossover - ddpm_crossover)
    return torch.where(spliced < cosine_crossover, spliced, _ddpm_angles(spliced + ddpm_crossover - cosine_crossover))


def _ddpm_angles(u: Tensor) -> Tensor:
    return _angle_at(-torch.special.expm1(1e-4 + 10 * u**2).log())


def _angle_at(log_snr: Tensor) -> Tensor:
    return torch.atan2(log_snr.neg().sigmoid().sqrt(), log_snr.sigmoid().sqrt()) / math.pi * 2


def _explicit(timesteps: Sequence[float]) -> list[float]:
    times = [float(time) for time in timesteps]
    if not times or not all(0 < time <= 1 for time in times) or any(b > a for a, b in pairwise(times)):
        raise ValueError(
            f"timesteps {times} are not allowed; at least one, above 0, at most 1, none above the one before"
        )
    return times


def _count(value: int | None) -> int:
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"num_inference_steps must be a whole number, not {value!r}") from None
    if count < 1 or isinstance(value, bool):
        raise ValueError(f"num_inference_steps={value} is out of range; allowed: at least 1")
    return count


_ADAMS_BASHFORTH: dict[int, tuple[int, tuple[float, ...]]] = {
    1: (1, (1,)),
    2: (2, (3, -1)),
    3: (12, (23, -16, 5)),
    4: (24, (55, -59, 37, -9)),
}
"""Order -> divisor, weights of the outputs from the newest to the oldest."""
