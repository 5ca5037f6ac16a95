"""Schedulers of a user's own, for the tests of `file.py:Class` implementations: a good port, and ports with faults."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusers_ref import DDIMScheduler, DDPMScheduler


class GoodDDIMScheduler(DDIMScheduler):
    """Nothing is different."""


class DriftedDDIMScheduler(DDIMScheduler):
    """Every sample is too large by 1e-4."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float = 0.0, generator: Any = None,
        variance_noise: Tensor | None = None,
    ) -> Any:  # fmt: skip
        result = super().step(model_output, timestep, sample, eta, None, generator, variance_noise)
        result.prev_sample = result.prev_sample * (1 + 1e-4)
        return result


class WithoutVarianceNoise(DDPMScheduler):
    """Draws its noise itself, as most published DDPM schedulers do."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None) -> Any:
        return super().step(model_output, timestep, sample, generator)


class WithoutGenerator(DDPMScheduler):
    """Draws from torch's global generator only."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Any:
        return super().step(model_output, timestep, sample)


class BrokenDDIMScheduler(DDIMScheduler):
    """Fails in the first step."""

    def step(self, *arguments: Any, **options: Any) -> Any:
        raise IndexError("index 14 is out of bounds")
