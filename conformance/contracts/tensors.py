"""Tensors inside what networks and pipelines return, and the comparison that a change must be seen in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from conformance.contracts.result import Violation


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a tensor, a mapping, a sequence or an output record, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name))


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """max|found − wanted| / max|wanted|, in float64; infinite for NaN or for another shape."""
    if found.shape != wanted.shape:
        return float("inf")
    a, b = found.detach().cpu().double(), wanted.detach().cpu().double()
    gap = (a - b).abs().amax().item()
    scale = b.abs().amax().item()
    if gap == 0:
        return 0.0
    return gap / scale if gap == gap and scale else float("inf")


def lacks_kernel(error: Exception) -> bool:
    """Whether torch has no such operation for this dtype and device (half types on some CPUs), which is not the
    subject's fault."""
    return isinstance(error, RuntimeError) and "not implemented for" in str(error)


def require_different(found: torch.Tensor, other: torch.Tensor, what: str, *, bound: float) -> None:
    """Every sample of the batch differs by more than `bound`, relative to its largest element. Raises Violation.

    Args:
        what: what should have changed the result ("another class label").
    """
    for index, (a, b) in enumerate(zip(found, other, strict=True)):
        apart = distance(a, b)
        if apart <= bound:
            changed = "nothing" if apart == 0 else f"no more than rounding does ({apart:.2g}, rounding {bound:.2g})"
            raise Violation(f"{what} changed {changed} in sample {index} of {len(found)}", max_rel=apart)
