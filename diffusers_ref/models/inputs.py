"""Checks of what an image network is called with."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor


def check_sample(sample: Tensor, *, channels: int, dtype: torch.dtype, levels: int) -> None:
    """Raise TypeError or ValueError unless `sample` is (B, channels, H, W) of this dtype, halved levels − 1 times."""
    if not isinstance(sample, Tensor):
        raise TypeError(f"sample must be a tensor, got {type(sample).__name__}")
    if sample.ndim != 4 or sample.shape[1] != channels:
        raise ValueError(f"sample must have shape (B, {channels}, H, W), got {tuple(sample.shape)}")
    if sample.dtype != dtype:
        raise ValueError(f"sample is {sample.dtype} but the network is {dtype}; convert one of them with .to(dtype)")
    height, width = sample.shape[2:]
    multiple = 2 ** (levels - 1)
    if not height or not width or height % multiple or width % multiple:
        raise ValueError(
            f"height and width must be positive multiples of {multiple} for a network of {levels} levels, "
            f"got {height} x {width}"
        )


def timesteps_per_sample(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """One number or (B,) -> (B,) on the sample's device. Raises TypeError, ValueError."""
    if not isinstance(timestep, Tensor):
        if isinstance(timestep, bool) or not isinstance(timestep, Real):
            raise TypeError(f"timestep must be a number or a tensor, got {type(timestep).__name__}")
        timestep = torch.tensor(float(timestep), dtype=torch.float32)
    batch = sample.shape[0]
    if timestep.ndim > 1 or timestep.numel() not in (1, batch):
        raise ValueError(f"timestep must be one number or have shape ({batch},), got {tuple(timestep.shape)}")
    if timestep.dtype == torch.bool or timestep.is_complex():
        raise ValueError(f"timestep must be integer or real, got {timestep.dtype}")
    return timestep.to(sample.device).expand(batch)
