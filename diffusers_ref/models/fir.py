"""Resampling of images through a FIR filter: zeros between the pixels, a convolution, every second pixel.

Zhang, "Making Convolutional Networks Shift-Invariant Again" (arXiv:1904.11486), as Karras et al., "Analyzing and
Improving the Image Quality of StyleGAN" (arXiv:1912.04958) and Song et al., "Score-Based Generative Modeling through
Stochastic Differential Equations" (arXiv:2011.13456, appendix H) use it; order of operations of
yang-song/score_sde_pytorch `op/upfirdn2d.py` on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = (1, 3, 3, 1)
"""The filter of all published networks."""


def fir_kernel(taps: Sequence[float]) -> Tensor:
    """The (n, n) filter of n taps: their outer product, divided by its sum. float32, as the original computes it.

    Raises ValueError for taps without a sum to divide by.
    """
    row = np.asarray(taps, dtype=np.float32)
    if row.ndim != 1 or row.size < 2 or row.sum() == 0:
        raise ValueError(f"a FIR filter needs at least 2 taps whose sum is not 0, got {taps!r}")
    kernel = np.outer(row, row)
    return torch.from_numpy(kernel / np.sum(kernel))


def upfirdn2d(x: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Put up − 1 zeros behind each pixel, pad, convolve with `kernel`, keep every down-th pixel.

    x: (B, C, H, W) -> (B, C, H', W') with H' = (H · up + pad[0] + pad[1] − n) // down + 1, W' alike.
    kernel: (n, n); taken to device and dtype of x.
    pad: rows and columns of zeros before and after; a negative number takes some away.
    """
    b, c, height, width = x.shape
    images = x.reshape(b * c, 1, height, width)
    if up > 1:
        spread = images.new_zeros(b * c, 1, height * up, width * up)
        spread[:, :, ::up, ::up] = images
        images = spread
    before, after = pad
    if before == after >= 0:
        padding = before
    else:
        images, padding = F.pad(images, (before, after, before, after)), 0
    weight = kernel.to(x).flip(0, 1)[None, None]  # conv2d correlates.
    filtered = F.conv2d(images, weight, stride=down, padding=padding)
    return filtered.reshape(b, c, *filtered.shape[2:])


class FirUpsample2D(nn.Module):
    """(B, C, H, W) -> (B, C, 2 H, 2 W). The filter is multiplied by 4 to make up for the zeros."""

    def __init__(self, taps: Sequence[float] = TAPS) -> None:
        super().__init__()
        self.kernel = fir_kernel(taps) * 4  # A plain attribute: no weight, and float32 until it is used.
        excess = len(taps) - 2
        self.pad = ((excess + 1) // 2 + 1, excess // 2)

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.kernel, up=2, pad=self.pad)


class FirDownsample2D(nn.Module):
    """(B, C, H, W) -> (B, C, H / 2, W / 2)."""

    def __init__(self, taps: Sequence[float] = TAPS) -> None:
        super().__init__()
        self.kernel = fir_kernel(taps)
        excess = len(taps) - 2
        self.pad = ((excess + 1) // 2, excess // 2)

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.kernel, down=2, pad=self.pad)


class _BiasAfterConv2d(nn.Conv2d):
    """A convolution that rounds before it adds the bias, as the original does."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return F.conv2d(x, self.weight, None, self.stride) + self.bias[:, None, None]


class FirDownsampleConv2D(nn.Module):
    """The filter, then a 3×3 convolution of stride 2: (B, in_channels, H, W) -> (B, out_channels, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float] = TAPS) -> None:
        super().__init__()
        self.kernel = fir_kernel(taps)
        self.conv = _BiasAfterConv2d(in_channels, out_channels, kernel_size=3, stride=2)
        excess = len(taps) - 2 + self.conv.kernel_size[0] - 1  # Padding for both, once.
        self.pad = ((excess + 1) // 2, excess // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(upfirdn2d(x, self.kernel, pad=self.pad))
