"""Fitting a synthetic network's last convolution, so that its outputs behave like predicted noise.

A purely random network drives every x0 into the clamp and hides mistakes. Ridge regression of the true noise on the
features before the last 3×3 convolution, over smooth synthetic images at random times, is closed form and takes about
a thousand numbers, which the fixture stores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from conformance.recorders.networks import Network

IMAGES = 64
RIDGE = 1e-3

Examples = Callable[[torch.Tensor, torch.Tensor, torch.Generator], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""(images in [-1, 1], noise, generator) -> (the network's inputs, times (B,), what its last layer should put out)."""


def variance_preserving(alphas: torch.Tensor) -> Examples:
    """Inputs √ᾱ·image + √(1 − ᾱ)·noise at a random timestep, for a network that predicts the noise.

    alphas: (T,) float64 cumulative products ᾱ of the schedule that the network is used with.
    """

    def noisy(
        clean: torch.Tensor, noise: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        t = torch.randint(0, len(alphas), (len(clean),), generator=generator)
        alpha = alphas[t].float().reshape(-1, 1, 1, 1)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, t.float(), noise

    return noisy


def fit_last_layer(
    network: Network, shape: tuple[int, int, int], examples: Examples
) -> tuple[dict[str, np.ndarray], float]:
    """The ridge fit of the last convolution to examples, as its parameters by original name, and its R².

    Args:
        network: with its synthetic weights loaded.
        shape: (C, H, W) of an image.
        examples: what the network is given, and what it should put out.

    The outputs beyond the first C channels (a learned variance) get small weights of their own, so that they stay in
    about [-1, 1].
    """
    generator = torch.Generator().manual_seed(1234)
    clean = smooth_images(IMAGES, shape, generator)
    noise = torch.randn(clean.shape, generator=generator)
    noisy, t, wanted = examples(clean, noise, generator)
    features = network.last_input(noisy, t)
    columns = torch.nn.functional.unfold(features.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
    columns = torch.cat([columns, torch.ones(len(columns), 1, dtype=torch.float64)], dim=1)
    target = wanted.double().permute(0, 2, 3, 1).flatten(0, 2)
    gram = columns.T @ columns
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram, columns.T @ target)
    residual = (columns @ solution - target).square().mean() / target.square().mean()
    return _parameters(network, solution.T, shape[0]), 1.0 - float(residual)


def smooth_images(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """(count, C, H, W) in [-1, 1]: a few random low-frequency waves each."""
    channels, height, width = shape
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    images = torch.zeros(count, *shape)
    for _ in range(4):
        fy, fx, phase, size = (torch.rand(count, channels, 1, 1, generator=generator) for _ in range(4))
        images += size * torch.sin(2 * torch.pi * (2 * fy * y + 2 * fx * x + phase))
    return images.clamp(-1, 1)


def _parameters(network: Network, solution: torch.Tensor, channels: int) -> dict[str, np.ndarray]:
    """Rows (out, in · 9 + 1) as the last layer's weight and bias, in the layout of the original."""
    weight_name, bias_name = network.last_layer
    shape = network.shapes()[weight_name]
    tensorflow = network.rule.endswith("tensorflow")
    inputs, outputs = (shape[2], shape[3]) if tensorflow else (shape[1], shape[0])
    weight, bias = solution[:, :-1].reshape(channels, inputs, 3, 3), solution[:, -1]
    if outputs > channels:
        repeat = outputs // channels
        weight, bias = torch.cat([weight] + [0.5 * weight.flip(1)] * (repeat - 1)), bias.repeat(repeat)
    array = weight.float().numpy()
    return {
        weight_name: np.ascontiguousarray(array.transpose(2, 3, 1, 0) if tensorflow else array),
        bias_name: bias.float().numpy(),
    }
