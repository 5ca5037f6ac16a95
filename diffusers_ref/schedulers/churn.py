"""Churn: noise that is added before the network is called (EDM, arXiv 2206.00364, Algorithm 2, lines 4 to 6).

code                  paper
s_churn               S_churn, how much noise a run adds
s_tmin, s_tmax        S_tmin, S_tmax, the levels between which it is added
s_noise               S_noise, its standard deviation
gamma                 γ_i
sigma_hat             t̂_i, the level after the noise
variance_noise        ε_i / S_noise
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.scheduler import Time
from diffusers_ref.schedulers.sigma_scheduler import SigmaScheduler

CHURN_OPTIONS = frozenset({"s_churn", "s_tmin", "s_tmax", "s_noise"})


class ChurnedScheduler(SigmaScheduler):
    """A sampler over noise levels whose steps may begin with added noise.

    Conventions of originals (crowsonkb), besides those of `SigmaScheduler`:
        s_churn, s_tmin, s_tmax, s_noise: as in the paper. With s_churn above 0 the sampling loop calls
            `add_noise_to_input` before every evaluation of the network.

    crowsonkb draws in every step, whether the noise is used or not; where `add_noise_to_input` was not called, `step`
    makes that draw. `step` of these classes has a field `churn` for every evaluation.
    """

    def _prepare(self) -> None:
        super()._prepare()
        config = self.config
        for name in ("s_churn", "s_tmin", "s_noise"):
            if not 0 <= config[name] < float("inf"):
                raise ConfigError(f"{name}={config[name]} is not allowed; it must be at least 0, and finite")
        if not config.s_tmin <= config.s_tmax:
            raise ConfigError(f"s_tmin={config.s_tmin} must not be above s_tmax={config.s_tmax}")
        if config.s_churn == 0:
            defaults = self.config_keys()
            for name in ("s_tmin", "s_tmax", "s_noise"):
                if config[name] != defaults[name]:
                    raise ConfigError(f"{name}={config[name]} has no effect with s_churn=0")

    def _churned(self, sigmas: Tensor) -> list[tuple[Tensor, Tensor]]:
        """sigma_hat and the factor of the noise, of each step along `sigmas` (n + 1,)."""
        config, count = self.config, len(sigmas) - 1
        found = []
        for sigma, rounded in zip(sigmas[:-1], sigmas[:-1].float(), strict=True):
            chosen = config.s_tmin <= rounded <= config.s_tmax
            gamma = min(config.s_churn / count, 2**0.5 - 1) if chosen else 0.0
            sigma_hat = sigma * (gamma + 1)
            found.append((sigma_hat, (sigma_hat**2 - sigma**2) ** 0.5 if gamma > 0 else torch.zeros_like(sigma)))
        return found

    def _adopt_levels(self, levels: Tensor, times: list[float] | None, device: torch.device | str | None) -> None:
        super()._adopt_levels(levels, times, device)
        self._noised_entry: int | None = None

    def add_noise_to_input(
        self,
        sample: Tensor,
        timestep: Time | Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
    ) -> Tensor:
        """The state that the network is to see at `timestep`, an entry of `timesteps`, and that `step` is then given.

        sample: (B, C, ...), what the last step returned. generator: where the noise is drawn from. variance_noise:
        (B, C, ...), the noise itself, instead of a draw. Within a step of two evaluations this is the sample itself.
        """
        dtype = self._check(sample, sample)
        index = self._place(timestep)
        noised = sample
        if self._begins_step(index):
            noise = self._noise(sample, generator, variance_noise, dtype)
            if churn := self._numbers_for(dtype)[index].step.churn:
                noised = (sample.to(dtype) + noise * self.config.s_noise * churn).to(sample.dtype)
        elif variance_noise is not None:
            raise ValueError(f"variance_noise is not allowed at entry {index} of timesteps: it does not begin a step")
        self._noised_entry = index
        return noised

    def _account_for_noise(
        self, index: int, sample: Tensor, generator: Generators, variance_noise: Tensor | None, dtype: torch.dtype
    ) -> None:
        """Make the draw of a step whose noise has not been added; refuse where it should have been."""
        if self._noised_entry == index or not self._begins_step(index):
            if variance_noise is not None:
                raise ValueError("variance_noise is not allowed: nothing is drawn after the network has been called")
            return
        if self._numbers_for(dtype)[index].step.churn:
            raise ValueError(
                f"s_churn={self.config.s_churn} adds noise before the network is called: sample = "
                "add_noise_to_input(sample, timestep) is missing before the evaluation at entry "
                f"{index} of timesteps"
            )
        self._noise(sample, generator, variance_noise, dtype)
