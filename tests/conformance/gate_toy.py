"""A small scheduler for tests of the gate, as source text, so that a test can change a character of it."""

from __future__ import annotations

SOURCE = """
import torch


class Output:
    def __init__(self, prev_sample, pred_original_sample):
        self.prev_sample, self.pred_original_sample = prev_sample, pred_original_sample


class ToyScheduler:
    def __init__(self, beta_end=0.02, clip_sample=False, timestep_spacing="leading"):
        if timestep_spacing not in ("leading", "trailing"):
            raise ValueError(timestep_spacing)
        self.spacing, self.clip = timestep_spacing, clip_sample
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, beta_end, 1000, dtype=torch.float64), 0)

    def set_timesteps(self, num_inference_steps):
        stride = 1000 // num_inference_steps
        times = torch.arange(num_inference_steps) * stride
        self.timesteps = (times + stride - 1 if self.spacing == "trailing" else times).flip(0)
        self.stride = stride

    def step(self, model_output, timestep, sample, eta: float = 0.0, generator=None, return_dict=True):
        a = float(self.alphas_cumprod[timestep])
        before = int(timestep) - self.stride
        a_prev = float(self.alphas_cumprod[before]) if before >= 0 else 1.0
        x0 = (sample - (1 - a) ** 0.5 * model_output) / a**0.5
        if self.clip:
            x0 = x0.clamp(-1, 1)
        sigma = eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)) ** 0.5
        noise = torch.randn(sample.shape, generator=generator, dtype=sample.dtype)
        direction = (1 - a_prev - sigma**2) ** 0.5 * model_output
        result = a_prev**0.5 * x0 + direction + sigma * noise
        return Output(result, x0) if return_dict else (result, x0)
"""
SUM = "a_prev**0.5 * x0 + direction + sigma * noise"
