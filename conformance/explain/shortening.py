"""Long samplers cut short, so that a trial costs what the way to the divergence costs."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch

from conformance.fixture import Fixture, Subject
from conformance.implementations.base import Implementation, Scheduler
from conformance.tape import INITIAL, PREPARATION

BY_CALL = ("times", "inputs", "outputs", "step", "sample", "pred_original_sample")
"""Tensors with one row per call of the network, also with the suffixes of the oracle and of the floors."""


def first_calls(fixture: Fixture, calls: int) -> Fixture:
    """The sampler's fixture up to its `calls`-th evaluation of the network; fewer than it has."""
    recorded, manifest = fixture.tensors, fixture.manifest
    kept = [draw for draw in manifest.tape.draws if draw.name in (INITIAL, PREPARATION) or _call(draw.name) < calls]
    tensors = {name: t[:calls] if name.split(".")[0] in BY_CALL else t for name, t in recorded.items()}
    tensors["final"] = recorded["inputs"][calls]
    tensors["draws"] = recorded["draws"][: len(kept)]
    manifest = dataclasses.replace(manifest, tape=dataclasses.replace(manifest.tape, draws=kept))
    return Fixture(manifest, fixture.path, tensors)


def stopping_after(implementation: Implementation, calls: int) -> Implementation:
    """The implementation, whose schedulers name only the first `calls` of their timesteps to the caller of `step`."""
    base: Any = type(implementation)

    class Stopping(base):  # type: ignore[misc]
        def scheduler(self, subject: Subject) -> Scheduler:
            return cast(Scheduler, _FirstCalls(super().scheduler(subject), calls))

        def set_timesteps(self, scheduler: Any, subject: Subject) -> None:
            super().set_timesteps(scheduler.whole, subject)

    stopping = object.__new__(Stopping)
    stopping.__dict__.update(vars(implementation))
    return stopping  # type: ignore[no-any-return]


class _FirstCalls:
    """A scheduler as its caller sees it, with a shorter list of timesteps; what it sees itself is the whole one."""

    def __init__(self, whole: Any, calls: int) -> None:
        self.whole, self._calls = whole, calls

    @property
    def timesteps(self) -> torch.Tensor:
        timesteps: torch.Tensor = self.whole.timesteps[: self._calls]
        return timesteps

    @property
    def network_timesteps(self) -> list[float]:
        times: list[float] = self.whole.network_timesteps[: self._calls]
        return times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


def _call(draw: str) -> int:
    return int(draw.rpartition("_")[2])
