"""The previous timestep is computed as t − T // n, while the original takes the next of its grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from conformance.explain.alteration import Alteration, specialise, wrap_step
from conformance.explain.state import State
from conformance.explain.textbook import reproductions, textbook_of
from conformance.explain.trial import Cause, Repair, Trial
from conformance.fixture import Subject


class _Stride(int):
    """A number of steps n for which T // n is `stride`, whatever T is."""

    stride: int

    def __rfloordiv__(self, other: Any) -> int:
        return self.stride


class _FromTheList(Alteration):
    """The previous timestep is the next entry of `timesteps`; after the last, -1."""

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        def stepped(step: Any, output: torch.Tensor, t: Any, x: torch.Tensor, **options: Any) -> Any:
            count = scheduler.num_inference_steps
            stride = _Stride(count)
            stride.stride = int(t) - following(scheduler, t)
            scheduler.num_inference_steps = stride
            try:
                return step(output, t, x, **options)
            finally:
                scheduler.num_inference_steps = count

        def previous_timestep(self: Any, t: Any) -> torch.Tensor:
            return torch.tensor(following(scheduler, t))

        wrap_step(scheduler, stepped)
        if hasattr(scheduler, "previous_timestep"):
            specialise(scheduler, previous_timestep=previous_timestep)


def following(scheduler: Any, t: Any) -> int:
    """The entry of `timesteps` after t, or -1."""
    times = [int(time) for time in scheduler.timesteps]
    index = times.index(int(t))
    return times[index + 1] if index + 1 < len(times) else -1


def trials(state: State) -> Iterator[Trial]:
    if not state.at("step", "pred_original_sample", "sample"):
        return
    statement = "the previous timestep is t − T // n, the original's is the next of its grid"
    change = "the previous timestep from the list"
    if hasattr(state.scheduler, "num_inference_steps"):
        yield Repair(statement, change, _FromTheList())
    book = textbook_of(state)
    if book is None:
        return
    asked = (state.fixture.manifest.subject.set_timesteps or {}).get("num_inference_steps")
    for n in sorted({int(n) for n in (asked, len(book.grid)) if n is not None}):
        yield from reproductions(state, (statement, f"t − T // {n}", {"stride": len(book.levels) // n}))


CAUSE = Cause("previous timestep", trials)
