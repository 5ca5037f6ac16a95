"""Time embeddings: the sinusoids of the originals and the two-layer perceptron behind them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .layers import swish

MAX_PERIOD = 10_000


class Timesteps(nn.Module):
    """Sinusoidal embedding of (possibly fractional) timesteps.

    sin(t·ω_k) and cos(t·ω_k) with ω_k = 10000^(−k / (half − freq_shift)), k = 0 … half−1, half = dim // 2; an odd `dim`
    ends in a zero.

    The table is part of an original's definition and float32 in all of them, so it is computed in float32 whatever the
    precision of the network, on the CPU, and in the original's order of operations (the last bits of ω differ):

    - `freq_shift = 0`: exp((−ln 10000 · k) / half), as openai/improved-diffusion `nn.timestep_embedding`.
    - otherwise: exp(k · −(ln 10000 / (half − freq_shift))), as ermongroup/ddim `get_timestep_embedding`.

    Args:
        dim: width of the embedding, at least 2 and so wide that half > freq_shift.
        flip_sin_to_cos: cos before sin (openai/improved-diffusion) instead of sin before cos (hojonathanho/diffusion).
        freq_shift: see above; 1 in the DDPM and DDIM authors' code, 0 in openai/improved-diffusion.
    """

    def __init__(self, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        half = dim // 2
        if half <= freq_shift:
            raise ValueError(
                f"freq_shift={freq_shift} needs a time embedding wider than {2 * freq_shift:g}, got width {dim} "
                "(the first of block_out_channels)"
            )
        self.dim = dim
        self.flip_sin_to_cos = flip_sin_to_cos
        k = torch.arange(half, dtype=torch.float32, device="cpu")
        if freq_shift == 0:
            exponents = -math.log(MAX_PERIOD) * k / half
        else:
            exponents = k * -(math.log(MAX_PERIOD) / (half - freq_shift))
        # A plain attribute, not a buffer: `module.to(torch.float16)` must leave the table in float32.
        self.frequencies = torch.exp(exponents)  # (half,)

    def forward(self, timesteps: Tensor) -> Tensor:
        """timesteps: (B,) -> (B, dim) float32."""
        angles = timesteps.float()[:, None] * self.frequencies.to(timesteps.device)[None, :]
        sin, cos = torch.sin(angles), torch.cos(angles)
        embedding = torch.cat([cos, sin] if self.flip_sin_to_cos else [sin, cos], dim=1)
        return nn.functional.pad(embedding, (0, 1)) if self.dim % 2 else embedding


class GaussianFourierProjection(nn.Module):
    """Random Fourier features of the logarithm of a noise level: sin(2π w_k ln σ) and cos(2π w_k ln σ), k = 0 … size−1.

    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions" (arXiv:2006.10739), as
    yang-song/score_sde_pytorch embeds σ. The frequencies w are drawn once, from N(0, scale²), and are not trained.

    The arithmetic is float32, or float64 where the network or the times are; half types would lose the phase.
    """

    def __init__(self, size: int, *, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size) * scale, requires_grad=False)

    def forward(self, sigmas: Tensor) -> Tensor:
        """sigmas: (B,) positive -> (B, 2 · size)."""
        logarithms = torch.log(sigmas if sigmas.dtype == torch.float64 else sigmas.float())
        frequencies = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        angles = logarithms[:, None] * frequencies[None, :] * 2 * math.pi  # In this order: the last bits differ.
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


class TimestepEmbedding(nn.Module):
    """Two linear layers with an activation between: (B, in_channels) -> (B, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int, activation: Callable[[Tensor], Tensor] = swish) -> None:
        super().__init__()
        self.activation = activation
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(embedding)))
