"""Keeping a predicted x_0 in range: static clipping, or dynamic thresholding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def limit_x0(x0: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Limit x_0 as the options `thresholding` (which wins) and `clip_sample` of a scheduler say."""
    if config["thresholding"]:
        return dynamic_threshold(x0, config["dynamic_thresholding_ratio"], config["sample_max_value"])
    if config["clip_sample"]:
        return x0.clamp(-config["clip_sample_range"], config["clip_sample_range"])
    return x0


def dynamic_threshold(x0: Tensor, ratio: float, max_value: float | None, min_value: float = 1.0) -> Tensor:
    """Imagen (arXiv 2205.11487), section 2.3: clamp each sample to its own percentile s, then divide by s.

    x0: (B, ...). ratio: which quantile of |x_0| is s, in [0, 1]. s lies in [min_value, max_value], without an upper end
    for None; max_value = 1 is static clipping to [-1, 1].
    """
    flat = x0.reshape(x0.shape[0], -1)
    s = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp(min=min_value, max=max_value)
    return (flat.clamp(-s, s) / s).reshape(x0.shape)
