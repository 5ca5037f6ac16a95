"""Judging a change: which outputs moved against the baseline, by how much, from which step, and is it a divergence?

The baseline plays the original. Its floor is how far its own result in the working precision is from its float64
result, at least one ulp, so that another order of operations stays inside and a change of the algorithm does not.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from conformance.compare import (
    FLOAT64,
    ONE_ULP,
    Comparison,
    Policy,
    Verdict,
    compare_exactly,
    compare_float64,
    compare_steps,
    relative_errors,
)
from conformance.contracts.measure import ulp_distance
from conformance.gate.baseline import Case, raw
from conformance.gate.driver import Outcome

FLOAT64_TOLERANCE = 1e-12
ROUNDED_TOLERANCE = 4 * ONE_ULP  # of a float64 run whose results the code rounds to float32


class Status(enum.Enum):
    """What a change did to a case, from best to worst."""

    SAME = "same"
    NEW = "new"
    MOVED = "moved"
    """Bits moved, within the bounds of rounding."""
    WAIVED = "waived"
    GONE = "gone"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class Change:
    """One case before and after.

    Attributes:
        id: of the case.
        status: the outcome.
        title: a probe's choices.
        moved: names of the outputs whose bits moved, in the order of explanation.
        outputs: how many outputs the case has.
        first: the first output that diverged, or else moved.
        step: the first step of it that did.
        max_ulp: largest over the outputs in the working precision that moved, or else over the float64 ones.
        max_error: largest relative error over all that moved. Both None where only outcomes that are no numbers did.
        detail: in words.
    """

    id: str
    status: Status
    title: str = ""
    moved: tuple[str, ...] = ()
    outputs: int = 0
    first: str = ""
    step: int | None = None
    max_ulp: float | None = None
    max_error: float | None = None
    detail: str = ""

    def to_dict(self) -> dict[str, object]:
        """The change as JSON data; infinite figures become null."""
        data = {**dataclasses.asdict(self), "status": self.status.value, "moved": list(self.moved)}
        for name in ("max_ulp", "max_error"):
            value = data[name]
            data[name] = value if value is not None and math.isfinite(value) else None
        return data


@dataclass(frozen=True)
class _Moved:
    """One output that moved."""

    output: str
    diverged: bool
    detail: str
    step: int | None = None
    ulp: float | None = None
    error: float | None = None


def judge(name: str, before: Case, after: Case, policy: Policy) -> Change:
    """Compare one case with the baseline's."""
    moved = [found for output in before.outputs if (found := _output(output, before, after, policy)) is not None]
    moved += [_Moved(output, False, f"{output} is new") for output in after.outputs if output not in before.outputs]
    order = [verdict.value for verdict in Verdict]
    detail = ""
    worse = order.index(after.verdict) > order.index(before.verdict) if before.verdict else False
    judged_by_original = before.verdict in (Verdict.BITWISE.value, Verdict.EQUIVALENT.value)
    diverged = worse or (not judged_by_original and any(m.diverged for m in moved))
    if before.verdict != after.verdict:
        detail = f"{before.verdict} became {after.verdict}; "
    if not moved and not detail:
        return Change(name, Status.SAME, outputs=len(before.outputs))
    first = next((m for m in moved if m.diverged), moved[0] if moved else _Moved("verdict", diverged, ""))
    return Change(
        name,
        Status.DIVERGED if diverged else Status.MOVED,
        moved=tuple(m.output for m in moved),
        outputs=len(before.outputs),
        first=first.output,
        step=first.step,
        max_ulp=_max_ulp([m for m in moved if not m.output.endswith(FLOAT64)]) or _max_ulp(moved),
        max_error=max((m.error for m in moved if m.error is not None), default=None),
        detail=detail + first.detail,
    )


def _max_ulp(moved: Sequence[_Moved]) -> float | None:
    return max((m.ulp for m in moved if m.ulp is not None), default=None)


def _output(name: str, before: Case, after: Case, policy: Policy) -> _Moved | None:
    """How one output moved; None if not a bit did."""
    old, new = before.outputs[name], after.outputs.get(name)
    if isinstance(old, str) or isinstance(new, str) or new is None:
        if isinstance(old, str) and isinstance(new, str) and old == new:
            return None
        return _Moved(name, True, f"{name}: {_words(new)} instead of {_words(old)}")
    if same_bits(old, new):
        return None
    if old.shape != new.shape or old.dtype != new.dtype:
        return _Moved(name, True, f"{name}: {_words(new)} instead of {_words(old)}")
    ulp = ulp_distance(new, old)
    if name in before.exact or not old.is_floating_point() or old.ndim == 0:
        found = compare_exactly(name, new, old)
        return _Moved(name, True, f"{name}: {found.detail or 'the sign of a zero'}", found.step, ulp, found.error)
    comparison = _compare(name, new, old, before.outputs, policy)
    differing = torch.nonzero((old != new).reshape(len(old), -1).any(dim=1)).reshape(-1)
    step = comparison.step if comparison.step is not None else int(differing[0]) if len(differing) else None
    error = max(float(e.max()) for e in relative_errors(new, old))
    at = "" if step is None else f" step {step}"
    return _Moved(name, not comparison.verdict.green, f"{name}{at}: {comparison.detail or 'within rounding'}",
                  step, ulp, error)  # fmt: skip


def _compare(
    name: str, new: torch.Tensor, old: torch.Tensor, outputs: Mapping[str, Outcome], policy: Policy
) -> Comparison:
    """The baseline as the original, by the policy of fixtures."""
    exact = old if name.endswith(FLOAT64) else outputs.get(name + FLOAT64)
    if not isinstance(exact, torch.Tensor) or exact.shape != old.shape:
        return compare_exactly(name, new, old)
    if exact is old:
        rounded = torch.equal(old, old.to(torch.float32).to(old.dtype))
        return compare_float64(name, new, old, ROUNDED_TOLERANCE if rounded else FLOAT64_TOLERANCE)
    floors = torch.stack(relative_errors(old, exact), dim=1).nan_to_num(posinf=0.0)
    return compare_steps(name, new, old, exact, floors, policy)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same dtype, shape and bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(raw(a), raw(b))


def _words(outcome: Outcome | None) -> str:
    if outcome is None:
        return "nothing"
    if isinstance(outcome, str):
        return outcome
    return f"{str(outcome.dtype).removeprefix('torch.')} {tuple(outcome.shape)}"
