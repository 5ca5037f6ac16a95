"""Synthetic weights: every parameter of an original's layout from a counter-based generator, so that none is stored.

The bits come from NumPy's Philox, whose raw stream is guaranteed, keyed by (seed, original parameter name); they are
mapped to float32 exactly, so the weights are the same on every machine. Matrices and kernels are uniform with variance
1/fan-in, norm scales 1 ± 0.1, biases within ± 0.1. No tensor is left zero.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Layout = Literal["torch", "tensorflow"]

RULES: dict[str, Layout] = {"philox-uniform/torch": "torch", "philox-uniform/tensorflow": "tensorflow"}


def synthetic_parameter(name: str, shape: Sequence[int], seed: int, layout: Layout) -> np.ndarray:
    """The float32 array for the original parameter `name`.

    Args:
        name: name in the original checkpoint; part of the key.
        shape: its shape there: torch (out, in, ...), tensorflow (..., in, out).
        seed: of the fixture.
        layout: decides which axes are fan-in, and what a norm's scale is called (`weight` or `gamma`).
    """
    uniform = _uniform(name, shape, seed)
    if len(shape) >= 2:
        fan_in = math.prod(shape[1:]) if layout == "torch" else math.prod(shape[:-1])
        return uniform * np.float32(math.sqrt(3.0 / fan_in))
    if name.endswith(("weight", "gamma")):
        return np.float32(1.0) + np.float32(0.1) * uniform
    return np.float32(0.1) * uniform


def synthetic_input(shape: Sequence[int], seed: int) -> np.ndarray:
    """A float32 input of variance 1 for a network whose official size makes a stored one too large."""
    return np.float32(math.sqrt(3.0)) * _uniform("input", shape, seed)


def synthetic_state(shapes: Mapping[str, Sequence[int]], seed: int, rule: str) -> dict[str, np.ndarray]:
    """The whole state in the original's layout, from parameter names and shapes.

    Raises:
        ValueError: unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"weight rule {rule!r}; known: {', '.join(RULES)}")
    return {name: synthetic_parameter(name, shape, seed, RULES[rule]) for name, shape in shapes.items()}


def _uniform(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """float32 in [-1, 1) from the Philox stream of (seed, name)."""
    key = np.frombuffer(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], dtype="<u8")
    bits = np.random.Philox(key=key).random_raw(max(1, math.prod(shape)))
    # 24 bits, so that the mapping to [-1, 1) is exact in float32.
    uniform = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    return uniform.reshape(tuple(shape))
