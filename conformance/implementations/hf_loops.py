"""Schedulers of HF `diffusers` that have an API or coordinates of their own, behind the common API.

Each class below does what the library's own pipeline, or its documentation, does around such a scheduler, and no more.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from conformance.errors import Unsupported


class InSigmaSpace:
    """A scheduler of the variance-preserving process, driven in x = x_0 + σ · n: scaled by 1/√(σ² + 1) and back.

    That is what relates `DPMSolverMultistepScheduler` to the samplers of k-diffusion that its documentation names.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        self.scheduler.set_timesteps(*arguments, **options)
        self._place = 0

    @property
    def timesteps(self) -> torch.Tensor:
        return self.scheduler.timesteps  # type: ignore[no-any-return]

    @property
    def sigmas(self) -> torch.Tensor:
        return self.scheduler.sigmas  # type: ignore[no-any-return]

    @property
    def init_noise_sigma(self) -> float:
        return float(self.sigmas[0])

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        return sample / self._scale(self._place)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        variance_noise: torch.Tensor | None = None,
    ) -> Any:
        scaled = sample / self._scale(self._place)
        result = self.scheduler.step(model_output, timestep, scaled, generator=generator, variance_noise=variance_noise)
        self._place += 1
        return SimpleNamespace(prev_sample=result.prev_sample * self._scale(self._place))

    def _scale(self, place: int) -> float:
        return float((self.sigmas[place].double() ** 2 + 1) ** 0.5)


class KarrasVe:
    """`KarrasVeScheduler` as `KarrasVePipeline` drives it: churn, Euler's step, and its correction, by levels."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.init_noise_sigma = scheduler.init_noise_sigma

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        scheduler = self.scheduler
        scheduler.set_timesteps(num_inference_steps, device=device)
        levels = [scheduler.schedule[t] for t in scheduler.timesteps]
        self.sigmas = torch.stack([*levels, torch.zeros_like(levels[0])])
        # Every step is evaluated at its own level and, but for the last, at the next one.
        self._plan = [(i, second) for i in range(len(levels)) for second in (False, True)][:-1]
        self.timesteps = torch.stack([self.sigmas[i + second] for i, second in self._plan]) / 2
        self.network_timesteps = [
            float(self.sigmas[i + 1] / 2 if second else self._raised(self.sigmas[i]) / 2) for i, second in self._plan
        ]
        self._place = 0

    def _raised(self, sigma: torch.Tensor) -> Any:
        """σ after churn, which the class tells only together with a draw: here with a generator that nobody sees."""
        return self.scheduler.add_noise_to_input(torch.zeros(1), sigma, torch.Generator().manual_seed(0))[1]

    def add_noise_to_input(
        self, sample: torch.Tensor, timestep: Any, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        i, second = self._plan[self._place]
        if second:
            return sample
        raised, self._sigma_hat = self.scheduler.add_noise_to_input(sample, self.sigmas[i], generator)
        return raised  # type: ignore[no-any-return]

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        return (sample + 1) / 2

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> Any:
        i, second = self._plan[self._place]
        self._place += 1
        sigma_prev = self.sigmas[i + 1]
        if not second:
            self._hat = sample
            self._first = self.scheduler.step((self._sigma_hat / 2) * model_output, self._sigma_hat, sigma_prev, sample)
            return self._first
        return self.scheduler.step_correct(
            (sigma_prev / 2) * model_output, self._sigma_hat, sigma_prev, self._hat, sample, self._first.derivative
        )


class ScoreSdeVe:
    """`ScoreSdeVeScheduler` as `ScoreSdeVePipeline` drives it: correctors, then a predictor; the result is the mean."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.init_noise_sigma = scheduler.init_noise_sigma

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.scheduler.set_sigmas(num_inference_steps)
        self.sigmas = self.scheduler.sigmas
        evaluations = self.scheduler.config.correct_steps + 1
        self.timesteps = self.scheduler.timesteps.repeat_interleave(evaluations)
        self.network_timesteps = self.sigmas.repeat_interleave(evaluations).tolist()
        self._evaluations, self._place = evaluations, 0

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: torch.Generator | None = None
    ) -> Any:
        self._place += 1
        if self._place % self._evaluations:
            return self.scheduler.step_correct(model_output, sample, generator=generator)
        result = self.scheduler.step_pred(model_output, timestep, sample, generator=generator)
        last = self._place == len(self.timesteps)
        return SimpleNamespace(prev_sample=result.prev_sample_mean if last else result.prev_sample)


class ScoreSdeVp:
    """`ScoreSdeVpScheduler` in the loop of Euler–Maruyama; the network is given 999 · t, and the result is the mean."""

    init_noise_sigma = 1.0

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.timesteps = self.scheduler.timesteps
        self.network_timesteps = (self.timesteps * 999).tolist()
        self._place = 0

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: torch.Generator | None = None
    ) -> Any:
        self._place += 1
        moved, mean = self.scheduler.step_pred(model_output, sample, timestep, generator=generator)
        return SimpleNamespace(prev_sample=mean if self._place == len(self.timesteps) else moved)


class StableDiffusion3:
    """A scheduler of flows as `StableDiffusion3Pipeline` and its image-to-image pipeline drive it."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def set_timesteps(self, num_inference_steps: int, strength: float = 1.0, image_seq_len: int | None = None) -> None:
        self._choose(num_inference_steps, image_seq_len)
        begin = int(max(num_inference_steps - min(num_inference_steps * strength, num_inference_steps), 0))
        self.scheduler.set_begin_index(begin)
        self.timesteps, self.sigmas = self.scheduler.timesteps[begin:], self.scheduler.sigmas[begin:]
        self.network_timesteps = self._times_of_network().tolist()

    def _choose(self, num_inference_steps: int, image_seq_len: int | None) -> None:
        self.scheduler.set_timesteps(num_inference_steps)

    def _times_of_network(self) -> torch.Tensor:
        return self.timesteps

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: torch.Generator | None = None
    ) -> Any:
        return self.scheduler.step(model_output, timestep, sample, generator=generator)


class Flux(StableDiffusion3):
    """The same as `FluxPipeline` does it: its own levels, μ by the number of image tokens, times from 0 to 1."""

    def _choose(self, num_inference_steps: int, image_seq_len: int | None) -> None:
        config = self.scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = (image_seq_len or 0) * slope + config.base_shift - slope * config.base_image_seq_len
        sigmas = torch.linspace(1, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64)
        self.scheduler.set_timesteps(sigmas=sigmas.tolist(), mu=mu)

    def _times_of_network(self) -> torch.Tensor:
        return self.timesteps / 1000


class Consistency:
    """`CMStochasticIterativeScheduler`, which ends at the smallest level."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.init_noise_sigma = scheduler.init_noise_sigma

    def set_timesteps(self, ts: Any = None, **options: Any) -> None:
        if ts is not None:
            raise Unsupported("diffusers' consistency models end at the smallest level only")
        self.scheduler.set_timesteps(**options)
        self.timesteps, self.sigmas = self.scheduler.timesteps, self.scheduler.sigmas

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        return self.scheduler.scale_model_input(sample, timestep)  # type: ignore[no-any-return]

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: torch.Generator | None = None
    ) -> Any:
        return self.scheduler.step(model_output, timestep, sample, generator=generator)
