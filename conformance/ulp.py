"""Distances in units in the last place: how many representable numbers lie between two values."""

from __future__ import annotations

import torch

_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def ulp_distances(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Element by element, float64: representable numbers from one to the other; NaN to NaN is 0, to a number inf.

    Both have the same shape and dtype; integers count as they are.
    """
    if not found.is_floating_point():
        return (found.double() - wanted.double()).abs()
    a, b = _rank(found), _rank(wanted)
    # The distance of two float64 numbers of opposite sign does not fit into 64 bits.
    steps = torch.where((a < 0) == (b < 0), (a - b).abs().double(), a.abs().double() + b.abs().double())
    lost = found.isnan() != wanted.isnan()
    return torch.where(lost, torch.inf, torch.where(found.isnan(), 0.0, steps))


def ulp_distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest of `ulp_distances`; 0 for empty tensors."""
    return float(ulp_distances(found, wanted).amax()) if found.numel() else 0.0


def _rank(tensor: torch.Tensor) -> torch.Tensor:
    """Floating numbers as integers in the same order, neighbours one apart; -0 and 0 coincide."""
    integers = _INTEGERS[tensor.dtype]
    bits = tensor.contiguous().view(integers).long()
    return torch.where(bits < 0, torch.iinfo(integers).min - bits, bits)
