"""Sketches: short random projections of a tensor, enough to say that two tensors differ and by how much.

A sketch holds WIDTH inner products with independent ±1 vectors, divided by sqrt(WIDTH), so that the norm of the
difference of two sketches estimates the norm of the difference of the tensors (Johnson-Lindenstrauss; relative error ~
1/sqrt(WIDTH)). The signs are Philox bits keyed by the number of elements, so a sketch of the same values in the same
order is the same everywhere, also where an implementation has flattened some axes; sums run in float64.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

WIDTH = 8


def sketch(tensor: torch.Tensor) -> torch.Tensor:
    """(WIDTH,) float64 projection of a floating tensor of any shape and device."""
    flat = tensor.detach().to("cpu", torch.float64).reshape(-1)
    signs = _signs(flat.numel())
    # Row by row: a full-size tensor's signs are kept as bytes and never all widened at once.
    return torch.stack([row.to(torch.float64) @ flat for row in signs]) / WIDTH**0.5


@lru_cache(maxsize=64)
def _signs(count: int) -> torch.Tensor:
    key = np.frombuffer(hashlib.sha256(f"sketch/{count}".encode()).digest()[:16], dtype="<u8")
    words = np.random.Philox(key=key).random_raw((WIDTH * count + 63) // 64)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8))[: WIDTH * count].reshape(WIDTH, count)
    return torch.from_numpy(bits.astype(np.int8) * 2 - 1)
