"""Euler's method for flow matching, as Stable Diffusion 3 (arXiv 2403.03206) and Flux run it.

    code              symbol
    sample            x_σ
    model_output      v_θ(x_σ, σ) = dx/dσ
    prev_sample       x_σ', at the next level σ'
    denoised          x̂_0 = x_σ − σ v

Two originals are reproduced bit for bit, see `Derivative` and the conventions of `FlowScheduler`: `denoise` of
black-forest-labs/flux, and `sample_euler` of Stability-AI/sd3.5, which goes through x̂_0.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.flow_scheduler import FlowScheduler
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time, by_step


class Derivative(str, Enum):
    """How a step takes the slope dx/dσ from the network's output; equal but for rounding."""

    VELOCITY = "velocity"
    """Published, flux: the output itself."""
    DENOISED = "denoised"
    """sd3.5: (x − x̂_0) / σ, with x̂_0 made from σ in `time_dtype`."""


class _Step(NamedTuple):
    """What one step needs, as numbers, so that no device waits for them."""

    sigma: float
    rounded_sigma: float  # in `time_dtype`
    move: float  # σ' − σ
    to_data: float  # x̂_0 = x − to_data · output
    next_signal: float
    next_noise: float


class FlowMatchEulerDiscreteScheduler(FlowScheduler):
    """x' = x + (σ' − σ) v.

    Options of the levels: see `FlowScheduler`. The others:
        stochastic_sampling: published. Every step ends in x̂_0 with new noise: x' = (1 − σ') x̂_0 + σ' n. A draw is made
            in every step, also in the last one, where σ' is 0.
        derivative: convention, see `Derivative`.
    """

    convention_options = frozenset({"flow_grid", "network_time", "time_dtype", "derivative"})

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        flow_grid: str = "published",
        network_time: str = "timestep",
        time_dtype: str = "float32",
        derivative: str = "velocity",
    ) -> None:
        self._through_denoised = choose(Derivative, "derivative", derivative) is Derivative.DENOISED
        if self._through_denoised and (stochastic_sampling or invert_sigmas):
            other = "stochastic_sampling" if stochastic_sampling else "invert_sigmas"
            raise ConfigError(f"derivative='denoised' does not know {other}; leave it out, or take 'velocity'")
        self._stochastic = stochastic_sampling
        self._prepare()

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One step of Euler's method.

        model_output: (B, C, ...) the velocity. timestep: an entry of `timesteps`. sample: (B, C, ...) x_σ.
        generator, variance_noise: (B, C, ...) the noise of `stochastic_sampling`; nothing else draws.
        Returns x_σ' and, where the method goes through it, x̂_0, in the dtype of `sample`; the arithmetic is in that
        dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and for `variance_noise` where nothing is drawn.
        """
        dtype = self._check(model_output, sample)
        coefficients = self._coefficients(dtype)
        if not self._stochastic and variance_noise is not None:
            raise ValueError("variance_noise is not allowed: only stochastic_sampling draws noise")
        noise = self._noise(sample, generator, variance_noise, dtype) if self._stochastic else None
        c = coefficients[self._advance(timestep)]
        x, velocity = sample.to(dtype), model_output.to(dtype)

        denoised = None
        if noise is not None:
            denoised = x - c.to_data * velocity
            prev_sample = c.next_signal * denoised + c.next_noise * noise
        elif self._through_denoised:
            denoised = x - velocity * c.rounded_sigma
            prev_sample = x + (x - denoised) / c.sigma * c.move
        else:
            prev_sample = x + c.move * velocity

        if denoised is not None:
            denoised = denoised.to(sample.dtype)
        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised)
        return result if return_dict else result.to_tuple()

    def _make_coefficients(self, sigmas: Tensor) -> list[_Step]:
        noise = self._noise_levels(sigmas)
        # Where levels count the data, the velocity points to it.
        to_data = -noise[:-1] if self._inverted else noise[:-1]
        rounded = sigmas[:-1].to(self._time_dtype).to(sigmas.dtype)
        columns = (sigmas[:-1], rounded, sigmas.diff(), to_data, 1.0 - noise[1:], noise[1:])
        return [_Step(*row) for row in by_step(*columns)]
