"""Keeping a predicted x_0 in range: static clipping, or dynamic thresholding."""

from __future__ import annotations

import torch
from torch import Tensor


def clip(x0: Tensor, limit: float) -> Tensor:
    """Clamp to [-limit, limit]."""
    return x0.clamp(-limit, limit)


def dynamic_threshold(x0: Tensor, ratio: float, max_value: float) -> Tensor:
    """Imagen (arXiv 2205.11487), section 2.3: clamp each sample to its own percentile s, then divide by s.

    x0: (B, ...). ratio: which quantile of |x_0| is s, in [0, 1]. s lies in [1, max_value]; max_value = 1 is static
    clipping to [-1, 1].
    """
    flat = x0.reshape(x0.shape[0], -1)
    s = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp(min=1, max=max_value)
    return (flat.clamp(-s, s) / s).reshape(x0.shape)
