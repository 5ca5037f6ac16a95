"""Grids: which of the T training timesteps are visited, from noisy to clean. `TimestepSpacing` names the rules.

Every function returns plain integers in ascending order; `make_grid` checks them and turns them round.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from diffusers_ref.schedulers.conventions import TimestepSpacing


def make_grid(
    spacing: TimestepSpacing,
    num_train_timesteps: int,
    *,
    num_inference_steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    respacing: str | Sequence[int] | None = None,
    steps_offset: int = 0,
) -> list[int]:
    """The visited timesteps in descending order, each in [0, T-1], from exactly one of the three ways to ask for them.

    num_inference_steps: n, 1 to T; the grid follows `spacing` ("ddim_uniform" can have more than n entries).
    timesteps: the grid itself, strictly descending (repeats allowed under "ddim_quad", whose grids have them).
    respacing: sections of "improved_diffusion", as "10,15,20", [10, 15, 20] or "ddim25".
    steps_offset: added to the grids "leading", "ddim_uniform" and "ddim_quad".

    Raises ValueError that says what was given and what is allowed.
    """
    requests = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "respacing": respacing}
    given = [name for name, value in requests.items() if value is not None]
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise ValueError(f"give exactly one of num_inference_steps, timesteps and respacing; given: {what}")
    if timesteps is not None:
        return _explicit(timesteps, num_train_timesteps, repeats=spacing is TimestepSpacing.DDIM_QUAD)
    if respacing is not None:
        if spacing is not TimestepSpacing.IMPROVED_DIFFUSION:
            raise ValueError(f"respacing needs timestep_spacing='improved_diffusion', this is {spacing.value!r}")
        return improved_diffusion(num_train_timesteps, respacing)[::-1]

    count = _whole_number("num_inference_steps", num_inference_steps)
    if not 1 <= count <= num_train_timesteps:
        raise ValueError(f"num_inference_steps={count} is out of range; allowed: 1 to {num_train_timesteps}")
    if spacing is TimestepSpacing.IMPROVED_DIFFUSION:
        return improved_diffusion(num_train_timesteps, [count])[::-1]
    rule = _RULES[spacing]
    offset = _whole_number("steps_offset", steps_offset) if spacing in _OFFSET_APPLIES else 0
    grid = [timestep + offset for timestep in rule(num_train_timesteps, count)]
    if grid[0] < 0 or grid[-1] >= num_train_timesteps:
        raise ValueError(
            f"{count} steps spaced {spacing.value!r} with steps_offset={offset} visit {grid[0]} to {grid[-1]}; "
            f"allowed: 0 to {num_train_timesteps - 1}; take fewer steps or another offset"
        )
    return grid[::-1]


def leading(num_train_timesteps: int, count: int) -> list[int]:
    """0, s, 2s, ..., (n-1)s with the integer stride s = T // n."""
    return [i * (num_train_timesteps // count) for i in range(count)]


def linspace(num_train_timesteps: int, count: int) -> list[int]:
    """n points from 0 to T-1, rounded half to even; n = 1 gives 0."""
    return np.linspace(0, num_train_timesteps - 1, count).round().astype(int).tolist()


def trailing(num_train_timesteps: int, count: int) -> list[int]:
    """T, T - T/n, T - 2T/n, ..., rounded half to even, minus 1.

    Exactly n entries: np.arange adds a further one near 0, thus timestep -1, for 62 of the n up to T = 1000.
    """
    points = np.arange(num_train_timesteps, 0, -num_train_timesteps / count)[:count]
    return (np.round(points).astype(int) - 1).tolist()[::-1]


def ddim_uniform(num_train_timesteps: int, count: int) -> list[int]:
    """DDIM (arXiv 2010.02502), section 4.2, linear, as its code does it: every (T // n)-th timestep of the chain."""
    return list(range(0, num_train_timesteps, num_train_timesteps // count))


def ddim_quad(num_train_timesteps: int, count: int) -> list[int]:
    """DDIM (arXiv 2010.02502), section 4.2, quadratic: squares from 0 to 0.8 T, truncated, repeats kept."""
    return [int(point) for point in np.linspace(0, np.sqrt(num_train_timesteps * 0.8), count) ** 2]


def improved_diffusion(num_train_timesteps: int, respacing: str | Sequence[int]) -> list[int]:
    """Improved DDPM's respacing: an equal share of the chain for each section, evenly spaced within it.

    The position in a section is an accumulated float stride, rounded half to even, which np.linspace does not match.
    "ddimN" takes the smallest integer stride that gives exactly N steps, if there is one.
    """
    if isinstance(respacing, str) and respacing.startswith("ddim"):
        return _integer_stride(num_train_timesteps, _whole_number("respacing", respacing[4:]))
    sections = respacing.split(",") if isinstance(respacing, str) else list(respacing)
    counts = [_whole_number("respacing", section) for section in sections]
    if not counts or min(counts) < 1:
        raise ValueError(f"respacing={respacing!r} must name at least one section, each of at least 1 step")

    size, extra = divmod(num_train_timesteps, len(counts))
    visited: set[int] = set()
    start = 0
    for section, count in enumerate(counts):
        length = size + (1 if section < extra else 0)
        if count > length:
            raise ValueError(f"respacing={respacing!r} takes {count} steps from section {section}, which has {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 1
        position = 0.0
        for _ in range(count):
            visited.add(start + round(position))
            position += stride
        start += length
    return sorted(visited)


def _integer_stride(num_train_timesteps: int, count: int) -> list[int]:
    for stride in range(1, num_train_timesteps):
        if len(range(0, num_train_timesteps, stride)) == count:
            return list(range(0, num_train_timesteps, stride))
    raise ValueError(f"respacing='ddim{count}': no integer stride takes exactly {count} of {num_train_timesteps} steps")


def _explicit(timesteps: Any, num_train_timesteps: int, repeats: bool) -> list[int]:
    values = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
    grid = [_whole_number("timesteps", value) for value in values]
    if not grid:
        raise ValueError("timesteps is empty; at least one timestep is needed")
    if max(grid) >= num_train_timesteps or min(grid) < 0:
        raise ValueError(f"timesteps from {min(grid)} to {max(grid)}; allowed: 0 to {num_train_timesteps - 1}")
    for earlier, later in pairwise(grid):
        if later > earlier or (later == earlier and not repeats):
            how = "descend" if repeats else "descend strictly"
            raise ValueError(f"timesteps must {how}, but {earlier} is followed by {later}")
    return grid


def _whole_number(name: str, value: Any) -> int:
    """`value` as an int; whole floats and digits in text count, booleans do not."""
    try:
        if isinstance(value, bool):
            raise TypeError
        if isinstance(value, str):
            return int(value)
        return int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} needs whole numbers, not {value!r}") from None


_RULES = {
    TimestepSpacing.LEADING: leading,
    TimestepSpacing.LINSPACE: linspace,
    TimestepSpacing.TRAILING: trailing,
    TimestepSpacing.DDIM_UNIFORM: ddim_uniform,
    TimestepSpacing.DDIM_QUAD: ddim_quad,
}
_OFFSET_APPLIES = (TimestepSpacing.LEADING, TimestepSpacing.DDIM_UNIFORM, TimestepSpacing.DDIM_QUAD)
