"""Verdicts: how far an observation is from the original, in units of the original's own rounding error.

With y32 and y64 the original's float32 and float64 results and s the observation,

    error(s) = ‖s − y64‖ / ‖y64‖          noise floor = error of the original's own float32 runs, at least 2⁻²⁴
    parity ratio ρ = error(s) / noise floor

ρ ≤ 1: at least as close to exact arithmetic as the original. The same is asked of the largest element, with its own
floor. NaN and Inf never pass unless the oracle has them at the same places. Shapes and integers are exact.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from conformance.ulp import ulp_distance

ONE_ULP = 2.0**-24
FLOAT64 = ".f64"  # suffix of the oracle's tensors, and of comparisons with it
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

EMBEDDING = "embedding"  # the output that is the network's timestep embedding
TAP = "tap:"  # prefix of a module's sketch


class Verdict(enum.Enum):
    """Outcome of a case, from best to worst."""

    BITWISE = "bitwise"
    EQUIVALENT = "equivalent"
    WAIVED = "waived"
    UNSUPPORTED = "unsupported"
    DIVERGENT = "divergent"
    ERROR = "error"

    @property
    def green(self) -> bool:
        return self in (Verdict.BITWISE, Verdict.EQUIVALENT, Verdict.WAIVED)


@dataclass(frozen=True)
class Policy:
    """The bounds that a run is judged by."""

    max_rho: float
    floor_scale: float = 1.0

    @classmethod
    def of(cls, device: str, dtype: torch.dtype) -> Policy:
        """ρ ≤ 4 on CPU, 8 elsewhere; half types scale the floor by the ratio of their unit roundoff to float32's."""
        max_rho = 4.0 if torch.device(device).type == "cpu" else 8.0
        return cls(max_rho, UNIT_ROUNDOFF.get(dtype, ONE_ULP) / ONE_ULP)


@dataclass(frozen=True)
class Comparison:
    """One output compared: verdict, ρ and errors of its worst step, and where it first left the bound.

    Attributes:
        output: name, such as `sample`, `timesteps` or `tap:down.0.block.1`.
        verdict: BITWISE, EQUIVALENT or DIVERGENT.
        rho: parity ratio of the worst step; 0 for an exact comparison that holds.
        error: largest ‖s − y64‖/‖y64‖ over the steps.
        floor: noise floor of the worst step.
        step: first divergent step, or None.
        detail: what was found there.
        level: "table" for what belongs to the definition, which explains a divergence rather than being one;
            "times" for the network's times; else "output".
        observed: what the implementation computed, on the CPU.
        last: ‖s − y64‖/‖y64‖ of the last row of a trajectory, which is the result; None for other outputs.
    """

    output: str
    verdict: Verdict
    rho: float = 0.0
    error: float = 0.0
    floor: float = 0.0
    step: int | None = None
    detail: str = ""
    level: str = "output"
    observed: torch.Tensor | None = field(default=None, repr=False, compare=False)
    last: float | None = None


def compare_steps(
    output: str,
    observed: torch.Tensor,
    y32: torch.Tensor | None,
    y64: torch.Tensor,
    floors: torch.Tensor,
    policy: Policy,
) -> Comparison:
    """Compare a trajectory row by row.

    Args:
        observed: (n, ...) what the implementation computed.
        y32: (n, ...) the original's float32 values, or None where only the oracle is compared.
        y64: (n, ...) the oracle.
        floors: (n, 2) norm-wise and element-wise noise floors.
    """
    observed = observed.detach().to("cpu")
    if mismatch := _other_shape(output, observed, y64):
        return mismatch
    bitwise = y32 is not None and _same_bits(observed, y32)
    norm, element = relative_errors(observed, y64)
    floors = floors.clamp_min(ONE_ULP) * policy.floor_scale
    rho = torch.maximum(norm / floors[:, 0], element / floors[:, 1])
    worst = int(rho.argmax()) if len(rho) else 0
    failing = torch.nonzero(~(rho <= policy.max_rho)).reshape(-1)
    figures = (float(rho[worst]), float(norm.max()), float(floors[worst, 0])) if len(rho) else (0.0, 0.0, 0.0)
    last = float(norm[-1]) if len(rho) else None
    if len(failing):
        first = int(failing[0])
        detail = _describe(observed[first], y64[first], rho[first])
        return Comparison(output, Verdict.DIVERGENT, *figures, first, detail, observed=observed, last=last)
    verdict = Verdict.BITWISE if bitwise else Verdict.EQUIVALENT
    return Comparison(output, verdict, *figures, observed=observed, last=last)


def compare_float64(output: str, observed: torch.Tensor, y64: torch.Tensor, tolerance: float) -> Comparison:
    """Compare a float64 trajectory (n, ...) with the oracle: every row within `tolerance`, by norm and by element."""
    observed = observed.detach().to("cpu")
    if mismatch := _other_shape(output, observed, y64):
        return mismatch
    norm, element = relative_errors(observed, y64)
    error = torch.maximum(norm, element)
    failing = torch.nonzero(~(error <= tolerance)).reshape(-1)
    largest = float(error.max()) if len(error) else 0.0
    if len(failing):
        first = int(failing[0])
        detail = _describe(observed[first], y64[first], None)
        ratio = largest / tolerance
        return Comparison(output, Verdict.DIVERGENT, ratio, largest, tolerance, first, detail, observed=observed)
    return Comparison(output, Verdict.EQUIVALENT, 0.0, largest, tolerance, observed=observed)


def compare_exactly(output: str, observed: torch.Tensor, recorded: torch.Tensor) -> Comparison:
    """Compare a table or a list of integers: same shape, same values; a table in a narrower precision differs."""
    observed = observed.detach().to("cpu")
    if tuple(observed.shape) != tuple(recorded.shape):
        original = f"{tuple(recorded.shape)} {_short(recorded)}"
        detail = f"{tuple(observed.shape)} entries {_short(observed)}, the original has {original}"
        lists = observed.ndim == recorded.ndim == 1
        common = min(len(observed), len(recorded)) if lists else 0
        a, b = (tensor.reshape(-1)[:common].to(torch.float64) for tensor in (observed, recorded))
        differing = torch.nonzero(a != b).reshape(-1)
        first = int(differing[0]) if len(differing) else common
        return Comparison(output, Verdict.DIVERGENT, math.inf, math.inf, step=first, detail=detail, observed=observed)
    a, b = observed.to(torch.float64), recorded.to(torch.float64)
    differing = torch.nonzero(((a != b) & ~(a.isnan() & b.isnan())).reshape(-1)).reshape(-1)
    if not len(differing):
        return Comparison(output, Verdict.BITWISE, observed=observed)
    first = int(differing[0])
    error = float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))
    values = f"{a.reshape(-1)[first].item()!r} instead of {b.reshape(-1)[first].item()!r}"
    detail = f"{len(differing)} of {a.numel()} entries differ, first [{first}]: {values}"
    return Comparison(output, Verdict.DIVERGENT, math.inf, error, step=first, detail=detail, observed=observed)


def relative_errors(observed: torch.Tensor, exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row: ‖s − y64‖/‖y64‖ and max|s − y64|/max|y64|, both (n,) float64; inf where only one side is finite.

    Elements where both have the same NaN or Inf count as equal.
    """
    rows = len(exact)
    s, y = (tensor.to(torch.float64).reshape(rows, -1 if rows else 1) for tensor in (observed, exact))
    same = (s == y) | (s.isnan() & y.isnan())
    broken = ~same & ~(s.isfinite() & y.isfinite())
    difference = torch.where(same | broken, torch.zeros((), dtype=torch.float64), s - y)
    magnitude = torch.where(y.isfinite(), y, torch.zeros((), dtype=torch.float64))
    norm = difference.norm(dim=1) / magnitude.norm(dim=1).clamp_min(1e-300)
    element = difference.abs().amax(dim=1) / magnitude.abs().amax(dim=1).clamp_min(1e-300)
    infinite = torch.full((), math.inf, dtype=torch.float64)
    lost = broken.any(dim=1)
    return torch.where(lost, infinite, norm), torch.where(lost, infinite, element)


def worst(comparisons: Iterable[Comparison]) -> Verdict:
    """The verdict of a case: its worst output's.

    Tables and times, comparisons with the oracle (`.f64`) and of sketches (`tap:`) can spoil it, but alone do not make
    it bitwise, nor less than that.
    """
    order = list(Verdict)
    indirect = lambda c: c.level != "output" or c.output.endswith(FLOAT64) or c.output.startswith(TAP)
    counted = [c.verdict for c in comparisons if not (indirect(c) and c.verdict.green)]
    return max(counted, key=order.index, default=Verdict.EQUIVALENT)


def _other_shape(output: str, observed: torch.Tensor, exact: torch.Tensor) -> Comparison | None:
    if tuple(observed.shape) == tuple(exact.shape):
        return None
    detail = f"shape {tuple(observed.shape)}, the original's is {tuple(exact.shape)}"
    return Comparison(output, Verdict.DIVERGENT, math.inf, math.inf, step=0, detail=detail, observed=observed)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = (a == b) & (a.signbit() == b.signbit()) | (a.isnan() & b.isnan())
    return a.dtype == b.dtype and bool(same.all())


def _describe(observed: torch.Tensor, exact: torch.Tensor, rho: torch.Tensor | None) -> str:
    s, y = observed.to(torch.float64).reshape(-1), exact.to(torch.float64).reshape(-1)
    gap = (s - y).abs().nan_to_num(math.inf)
    at = int(gap.argmax())
    ratio = "" if rho is None else f", ρ = {float(rho):.3g}"
    values = f"{s[at].item():.9g} instead of {y[at].item():.9g}"
    apart = ulp_distance(observed.reshape(-1)[at : at + 1], exact.reshape(-1)[at : at + 1].to(observed.dtype))
    return f"largest difference {gap[at].item():.3g} at element {at}: {values}{ratio}, {apart:.0f} ulp"


def _short(tensor: torch.Tensor) -> str:
    values = tensor.reshape(-1).tolist()
    return f"[{', '.join(f'{v:g}' for v in values[:3])}{', …' if len(values) > 3 else ''}]"
