"""Whether, where and in which order x_0 is clipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from conformance.explain.alteration import Alteration, wrap_step
from conformance.explain.state import State
from conformance.explain.textbook import reproductions
from conformance.explain.trial import Cause, Repair, Trial
from conformance.fixture import Subject

USE_CLIPPED = "use_clipped_model_output"


class _Option(Alteration):
    def __init__(self, clip: bool) -> None:
        self._clip = clip

    def subject(self, subject: Subject) -> Subject:
        return dataclasses.replace(subject, config={**subject.config, "clip_sample": self._clip})


class _Rederived(Alteration):
    """ε derived anew from the clipped x_0, or not, in every step."""

    def __init__(self, rederive: bool) -> None:
        self._rederive = rederive

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        def stepped(step: Any, output: torch.Tensor, t: Any, x: torch.Tensor, **options: Any) -> Any:
            return step(output, t, x, **{**options, USE_CLIPPED: self._rederive})

        wrap_step(scheduler, stepped)


def trials(state: State) -> Iterator[Trial]:
    if not state.at("step", "pred_original_sample", "sample", "images"):
        return
    subject = state.fixture.manifest.subject
    clips = bool(subject.config.get("clip_sample", True))
    bound = float(subject.config.get("clip_sample_range", 1.0))
    if "clip_sample" in subject.config:
        statement = f"clip_sample={clips} has the opposite meaning"
        yield Repair(statement, f"clip_sample={not clips}", _Option(not clips))
    kept = "ε is kept when x_0 is clipped, the original derives it anew"
    anew = "ε is derived anew from the clipped x_0, the original keeps it"
    if state.takes(USE_CLIPPED):
        for statement, rederive in ((kept, True), (anew, False)):
            yield Repair(statement, f"{USE_CLIPPED}={rederive}", _Rederived(rederive))
    yield from reproductions(
        state,
        ("x_0 is not clipped", "without clipping", {"clip": None}),
        ("x_0 is clipped, the original's is not", "with clipping", {"clip": bound}),
        ("x_0 is clipped, the original's is not", "with clipping, ε derived anew", {"clip": bound, "rederive": True}),
        (kept, "ε kept", {"rederive": False}),
        (anew, "ε derived anew", {"rederive": True}),
        ("the result of the step is clipped instead of x_0", "the result clipped, not x_0",
         {"clip": None, "clip_result": bound}),
        ("the result of the step is clipped too", "the result clipped", {"clip_result": bound}),
    )  # fmt: skip


CAUSE = Cause("clipping order", trials)
