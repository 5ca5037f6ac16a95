"""What callers ask for: whole and positive numbers, and noise at entries of the list of times."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """The number that `name` is given, if it is whole and from `least` to `most`. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        bound = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ConfigError(f"{name}={value!r} is not allowed; it must be an integer {bound}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """The number that `name` is given, if it is above 0 and finite. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r} is not allowed; it must be a number above 0")
    return value


def listed(values: Any) -> list[Any]:
    """A sequence, array or tensor (n,) as a list of numbers."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def levels_at(
    timesteps: Any, times: Iterable[float], levels: Iterable[float], x0: Tensor, dtype: torch.dtype
) -> Tensor:
    """The levels of `timesteps`, entries of `times`, shaped to broadcast over `x0`, on its device.

    timesteps: () or (B,). times, levels: (N,). x0: (B, ...). Raises ValueError.
    """
    wanted, level_at = torch.as_tensor(timesteps), dict(zip(times, levels, strict=True))
    if wanted.ndim > 1 or wanted.numel() not in (1, len(x0)):
        raise ValueError(f"timesteps have the shape {tuple(wanted.shape)}; allowed: () or ({len(x0)},)")
    entries = wanted.reshape(-1).tolist()
    for entry in entries:
        if entry not in level_at:
            raise ValueError(f"timestep {entry} is none of this scheduler's {len(level_at)} timesteps")
    found = torch.tensor([level_at[entry] for entry in entries], dtype=dtype, device=x0.device)
    return found.view(-1, *[1] * (x0.ndim - 1))
