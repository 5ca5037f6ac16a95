"""V-diffusion sampling as crowsonkb/v-diffusion-pytorch does it: DDIM (arXiv 2010.02502, equations 12 and 16) of a
network that predicts v (arXiv 2202.00512, section 4), in continuous time t from 1 (noise) to 0 (data).

    code              paper
    timesteps         t: α_t = cos(πt/2), σ_t = sin(πt/2)
    alphas, sigmas    α_t and σ_t at the timesteps, float32
    model_output      v = α ε − σ x_0
    x0, epsilon       x̂_0 = α x − σ v, ε̂ = σ x + α v
    ddim_sigma        σ_τi(η) of equation 16

A folder that `save_pretrained` wrote is loaded with this file:

    from diffusers_ref import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained("folder", custom_pipeline="pipeline.py")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusers_ref import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, register_to_config
from diffusers_ref.images import check_output_type, postprocess
from diffusers_ref.random import Generators, randn
from diffusers_ref.schedulers.scheduler import SchedulerOutput


def _ddpm_times(t: Tensor) -> Tensor:
    """The t at which this process is as noisy as DDPM's at `t` (utils.py:get_ddpm_schedule)."""
    log_snr = -torch.special.expm1(1e-4 + 10 * t**2).log()
    alpha, sigma = log_snr.sigmoid().sqrt(), log_snr.neg().sigmoid().sqrt()
    return torch.atan2(sigma, alpha) / math.pi * 2


def _spliced_times(t: Tensor) -> Tensor:
    """DDPM's schedule where there is much noise, the cosine schedule below (get_spliced_ddpm_cosine_schedule)."""
    ddpm_crossover, cosine_crossover = 0.48536712, 0.80074257
    longer = t * (1 + cosine_crossover - ddpm_crossover)
    return torch.where(longer < cosine_crossover, longer, _ddpm_times(longer + ddpm_crossover - cosine_crossover))


SCHEDULES = {"spliced": _spliced_times, "ddpm": _ddpm_times, "linear": lambda t: t}


class VDiffusionScheduler(SchedulerMixin):
    """DDIM in continuous time.

    schedule: how equally spaced numbers in (0, 1] become times: "spliced" (the original's scripts), "ddpm", "linear".
    prediction_type: what the network returns; "v_prediction" is the only one.

    Noise is drawn where it counts: with η > 0, in every step but the last, as the original does.
    """

    @register_to_config
    def __init__(self, schedule: str = "spliced", prediction_type: str = "v_prediction") -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule is {schedule!r}; allowed: {', '.join(SCHEDULES)}")
        if prediction_type != "v_prediction":
            raise ValueError(f"prediction_type is {prediction_type!r}; allowed: v_prediction")
        self.timesteps = torch.empty(0)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose the times, by their number or as a descending list of numbers in (0, 1], and begin anew."""
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give either num_inference_steps or timesteps")
        if timesteps is None:
            if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
                raise TypeError(f"num_inference_steps must be an integer, not {num_inference_steps!r}")
            if num_inference_steps < 1:
                raise ValueError(f"num_inference_steps is {num_inference_steps}; allowed: at least 1")
            times = SCHEDULES[self.config.schedule](torch.linspace(1, 0, num_inference_steps + 1)[:-1])
        else:
            times = torch.tensor(timesteps, dtype=torch.float32)
            if times.ndim != 1 or not len(times) or times[0] > 1 or times[-1] <= 0 or (times.diff() >= 0).any():
                raise ValueError(f"timesteps must descend, within 0 (excluded) and 1; given: {list(timesteps)}")
        self.alphas, self.sigmas = torch.cos(times * math.pi / 2), torch.sin(times * math.pi / 2)
        self._adopt(times.tolist(), len(times), device)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """One step of equation 12; the last one returns x̂_0.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`. eta: η, 0 to 1.
        generator: where the noise is drawn from. variance_noise: (B, C, ...), the noise itself, instead of a draw.
        Returns the next sample and x̂_0 in the dtype of `sample`; the arithmetic is at least in float32.
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; allowed: 0 to 1")
        dtype = self._check(model_output, sample)
        noise = None if variance_noise is None else self._noise(sample, generator, variance_noise, dtype)
        index = self._advance(timestep)
        x, v = sample.to(dtype), model_output.to(dtype)
        alphas, sigmas = self.alphas.to(dtype), self.sigmas.to(dtype)

        x0 = x * alphas[index] - v * sigmas[index]
        epsilon = x * sigmas[index] + v * alphas[index]

        prev_sample = x0
        if index + 1 < len(self._times):
            a, s, a_next, s_next = alphas[index], sigmas[index], alphas[index + 1], sigmas[index + 1]
            ddim_sigma = eta * (s_next**2 / s**2).sqrt() * (1 - a**2 / a_next**2).sqrt()  # equation 16
            prev_sample = x0 * a_next + epsilon * (s_next**2 - ddim_sigma**2).sqrt()  # equation 12
            if eta:
                noise = self._noise(sample, generator, None, dtype) if noise is None else noise
                prev_sample = prev_sample + noise * ddim_sigma

        result = SchedulerOutput(prev_sample.to(sample.dtype), x0.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _forward_coefficients(self, x0: Tensor, noise: Tensor, timesteps: Tensor | float) -> tuple[Tensor, Tensor]:
        """α_t and σ_t for `add_noise` and `get_velocity`, shaped to broadcast over `x0`.

        x0, noise: (B, ...); timesteps: numbers in [0, 1], () or (B,).
        """
        dtype = self._check(noise, x0)
        times = torch.as_tensor(timesteps).cpu().float()
        if times.numel() and not (times.min() >= 0 and times.max() <= 1):
            raise ValueError(f"timesteps must be in [0, 1], not {timesteps}")
        angle = times.reshape(-1, *[1] * (x0.ndim - 1)) * math.pi / 2
        return torch.cos(angle).to(x0.device, dtype), torch.sin(angle).to(x0.device, dtype)


class VDiffusionPipeline(DiffusionPipeline):
    """Unconditional images.

    unet: the network; it predicts v, from times in [0, 1].
    scheduler: the sampler.
    """

    scheduler_class: ClassVar[type] = VDiffusionScheduler

    def __init__(self, unet: Any, scheduler: Any) -> None:
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Any = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` images.

        generator: one generator, or one per image; every draw is taken from it.
        eta: η, the share of noise in a step.
        timesteps: the times themselves, descending, in place of `num_inference_steps`.
        latents: (B, C, H, W) the sample at the first time, instead of a draw.
        output_type: "pil", "np" or "pt" for images, "latent" for the sampler's last tensor.
        callback_on_step_end: called as f(pipeline, index, timestep, {"sample": x}); a dict it returns replaces x.
        """
        check_output_type(output_type)
        self.scheduler.set_timesteps(num_inference_steps if timesteps is None else None, timesteps=timesteps)
        x = self._first_sample(batch_size, generator, latents)
        for index, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            model_output = self.unet(self.scheduler.scale_model_input(x, t), t).sample
            x = self.scheduler.step(model_output, t, x, eta=eta, generator=generator).prev_sample
            if callback_on_step_end is not None:
                x = (callback_on_step_end(self, index, t, {"sample": x}) or {}).get("sample", x)
        images = postprocess(x, output_type, pixel_rounding="truncate")
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _first_sample(self, batch_size: int, generator: Generators, given: Tensor | None) -> Tensor:
        """The first sample: (B, C, H, W), standard normal numbers or the given tensor."""
        config = self.unet.config
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; allowed: integers from 1")
        if given is not None:
            if not isinstance(given, Tensor):
                raise TypeError(f"latents must be a tensor, not {type(given).__name__}")
            if given.ndim != 4 or given.shape[1] != config.in_channels or batch_size not in (1, given.shape[0]):
                allowed = f"({'B' if batch_size == 1 else batch_size}, {config.in_channels}, H, W)"
                raise ValueError(f"latents has the shape {tuple(given.shape)}; allowed: {allowed}")
            return given.to(self.device, self.dtype)
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, config.in_channels, height, width)
        return self.scheduler.init_noise_sigma * randn(shape, generator, self.device, self.dtype)
