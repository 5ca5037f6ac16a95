"""Rounding: the same formula in another order of operations, which loses digits in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from conformance.explain.alteration import Alteration, map_result, wrap_step
from conformance.explain.state import State
from conformance.explain.trial import Cause, Repair
from conformance.fixture import Subject


class _Wide(Alteration):
    """Every step in float64, its results rounded once."""

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        def stepped(step: Any, output: torch.Tensor, t: Any, x: torch.Tensor, **options: Any) -> Any:
            wide = {name: _widened(value) for name, value in options.items()}
            result = step(_widened(output), t, _widened(x), **wide)
            return map_result(result, lambda tensor: tensor.to(x.dtype) if tensor.is_floating_point() else tensor)

        wrap_step(scheduler, stepped)


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def trials(state: State) -> Iterator[Repair]:
    if state.target.output in ("step", "pred_original_sample", "sample", "images"):
        yield Repair(
            "the formula is the original's, but its order of operations or a narrow type loses digits",
            "steps in float64, rounded once",
            _Wide(),
        )


CAUSE = Cause("order of operations", trials)
