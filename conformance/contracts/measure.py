"""Comparing tensors inside checks: exactly, or within a stated bound, with the figures that a report shows."""

from __future__ import annotations

import torch

from conformance.contracts.result import Violation
from conformance.ulp import ulp_distance


def require_same(found: torch.Tensor, wanted: torch.Tensor, what: str, step: int | None = None) -> None:
    """Both have the same shape, dtype and bits (NaN equals NaN). Raises Violation."""
    require_close(found, wanted, what, bound=0.0, step=step)


def require_close(
    found: torch.Tensor, wanted: torch.Tensor, what: str, *, bound: float, step: int | None = None
) -> None:
    """`found` has the shape and dtype of `wanted`, and max|found − wanted| ≤ bound · max|wanted|. Raises Violation.

    Args:
        what: what is compared, as the subject of a sentence ("the second run").
        bound: relative to the largest element of `wanted`; 0 asks for equality.
        step: of the run, for the report.
    """
    found, wanted = found.detach().cpu(), wanted.detach().cpu()
    if found.shape != wanted.shape:
        raise Violation(f"{what} has the shape {tuple(found.shape)} instead of {tuple(wanted.shape)}", step=step)
    if found.dtype != wanted.dtype:
        raise Violation(f"{what} has the dtype {found.dtype} instead of {wanted.dtype}", step=step)
    if not found.numel():
        return
    a, b = found.double(), wanted.double()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return
    gap = torch.where(same, torch.zeros_like(a), (a - b).abs()).nan_to_num(torch.inf)
    scale = b.abs().nan_to_num(0.0, 0.0, 0.0).amax().item()
    largest = gap.amax().item()
    if largest <= bound * scale:
        return
    flat = int(gap.reshape(-1).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), gap.shape)) if gap.ndim else ()
    relative = largest / scale if scale else torch.inf
    values = f"{a.reshape(-1)[flat].item():.9g} instead of {b.reshape(-1)[flat].item():.9g}"
    raise Violation(
        f"{what}: {values} at {index} (relative {relative:.2g}, allowed {bound:.2g})",
        step=step,
        max_abs=largest,
        max_rel=relative,
        max_ulp=ulp_distance(found, wanted),
        index=index,
    )


def require_finite(tensor: torch.Tensor, what: str, step: int | None = None) -> None:
    """No NaN and no infinity. Raises Violation."""
    broken = ~tensor.detach().isfinite()
    if broken.any():
        raise Violation(f"{what} has {int(broken.sum())} of {broken.numel()} elements NaN or infinite", step=step)
