"""Normal draws that give one image for one seed, on every device and in every precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
"""None (torch's default CPU generator), one generator, or a sequence of one generator per sample."""


def randn(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    drawn_in: torch.dtype = torch.float32,
) -> Tensor:
    """Draw a tensor of `shape` from N(0, 1).

    Draws are made in `drawn_in` on the device of the generator, then moved and cast: in float32, unless it is for a
    sampler whose original draws in float64, which gives other numbers for the same seed. A CPU generator serves every
    device; a generator of another device serves only that device. A sequence holds one generator per sample, and each
    draws (1, *shape[1:]), so that a sample does not depend on the batch it is in.

    Raises ValueError for a generator of another device, a sequence whose length is not shape[0], or a `dtype` that is
    not floating; TypeError for anything that is not a generator.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"noise needs a floating dtype, not {dtype}")
    target = torch.device("cpu" if device is None else device)
    shape = tuple(shape)
    if generator is None or isinstance(generator, torch.Generator):
        return _draw(shape, generator, target, drawn_in).to(target, dtype)
    if not isinstance(generator, Sequence):
        raise TypeError(
            f"generator must be a torch.Generator, a list of one per sample, or None, not {type(generator).__name__}"
        )
    if not shape or len(generator) != shape[0]:
        raise ValueError(
            f"a list of {len(generator)} generators cannot draw the shape {shape}: one per sample is needed"
        )
    for position, item in enumerate(generator):
        if not isinstance(item, torch.Generator):
            raise TypeError(f"generator[{position}] must be a torch.Generator, not {type(item).__name__}")
    draws = [_draw((1, *shape[1:]), item, target, drawn_in).to(target, dtype) for item in generator]
    return torch.cat(draws) if draws else torch.empty(shape, device=target, dtype=dtype)


def _draw(
    shape: tuple[int, ...], generator: torch.Generator | None, target: torch.device, drawn_in: torch.dtype
) -> Tensor:
    source = torch.device("cpu") if generator is None else generator.device
    same_index = target.index is None or source.index is None or target.index == source.index
    if source.type != "cpu" and not (source.type == target.type and same_index):
        raise ValueError(f"a generator on {source} cannot draw for {target}: use one on {target}, or one on the CPU")
    return torch.randn(shape, generator=generator, device=source, dtype=drawn_in)
