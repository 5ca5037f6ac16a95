"""Published formulas of noise tables and of grids, in float64: what tables of a scheduler are compared with."""

from __future__ import annotations

import math

import numpy as np


def beta_tables(start: float, end: float, count: int) -> dict[str, np.ndarray]:
    """Name of a `beta_schedule` -> betas, (T,) float64: the code of arXiv 2006.11239, and eq. 17 of 2102.09672."""
    line = np.linspace(start, end, count)
    squares = np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    u = np.arange(count + 1) / count
    abar = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return {
        "linear": line,
        "scaled_linear": squares,
        "squaredcos_cap_v2": np.minimum(1 - abar[1:] / abar[:-1], 0.999),
        "sigmoid": start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))),
        "const": np.full(count, end),
        "jsd": 1 / np.arange(count, 0, -1.0),
        "warmup10": _warm_up(start, end, count, count // 10),
        "warmup50": _warm_up(start, end, count, count // 2),
    }


def _warm_up(start: float, end: float, count: int, first: int) -> np.ndarray:
    return np.concatenate([np.linspace(start, end, first), np.full(count - first, end)])


def zero_terminal_snr(abar: np.ndarray) -> np.ndarray:
    """Algorithm 1 of arXiv 2305.08891 on the cumulative products: the last becomes 0, the first stays."""
    root = np.sqrt(abar)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def grids(spacing: str, count: int, n: int, offset: int) -> list[np.ndarray]:
    """The published meanings of a `timestep_spacing`, each as n timesteps of T = `count`, from noisy to clean.

    Table 2 of arXiv 2305.08891; and for "leading" and "linspace" the reading of the DPM-Solver code, where n steps have
    n + 1 ends, of which the clean one is left out; section 4.2 of 2010.02502, as its code rounds and shifts. Else not
    rounded, as a sampler may interpolate.
    """
    if spacing == "leading":
        pairs = [(count // n, n)] + ([(count // (n + 1), n + 1)] if n < count else [])
        return [(np.arange(points) * stride)[::-1][:n] + float(offset) for stride, points in pairs]
    if spacing == "linspace":
        ends = np.linspace(0, count - 1, n + 1)[::-1][:n]
        return [np.linspace(0, count - 1, n)[::-1], ends]
    if spacing == "trailing":
        return [np.arange(n, 0, -1) * (count / n) - 1]
    if spacing == "ddim_uniform":
        return [np.arange(0, count, count // n)[::-1] + float(offset)]
    if spacing == "ddim_quad":
        return [np.floor(np.linspace(0, math.sqrt(0.8 * count), n) ** 2)[::-1] + float(offset)]
    return []


def sections(counts: list[int], size: int) -> np.ndarray:
    """The timesteps, from noisy to clean, of a chain of `size` in equal sections that visits so many of each, from its
    first to its last, not rounded (arXiv 2102.09672). The first ones are longer by 1 where needed.
    """
    visited = []
    for part, n in zip(np.array_split(np.arange(float(size)), len(counts)), counts, strict=True):
        visited.append(np.linspace(part[0], part[-1], n))
    return np.concatenate(visited)[::-1]
