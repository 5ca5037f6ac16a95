"""η, the share of noise, is lost on the way or another one is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from conformance.explain.alteration import Alteration, wrap_step
from conformance.explain.state import State
from conformance.explain.textbook import reproductions
from conformance.explain.trial import Cause, Repair, Trial
from conformance.fixture import Subject


class _Eta(Alteration):
    """η handed to every step."""

    def __init__(self, eta: float) -> None:
        self._eta = eta

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        def stepped(step: Any, output: torch.Tensor, t: Any, x: torch.Tensor, **options: Any) -> Any:
            return step(output, t, x, **{**options, "eta": self._eta})

        wrap_step(scheduler, stepped)


def trials(state: State) -> Iterator[Trial]:
    subject = state.fixture.manifest.subject
    eta = {**(subject.call or {}), **(subject.step or {})}.get("eta")
    if eta is None or not state.at("step", "sample", "images"):
        return
    if subject.call and state.takes("eta"):
        statement = f"the steps are not given η = {eta:g}"
        yield Repair(statement, f"η = {eta:g} in every step", _Eta(float(eta)))
    for other in (0.0, 1.0):
        if other != eta:
            statement = f"the steps behave as with η = {other:g}, not {eta:g}"
            yield from reproductions(state, (statement, f"η = {other:g}", {"eta": other}))
            if state.takes("eta"):
                statement = f"η = {eta:g} means what η = {other:g} does in the original"
                yield Repair(statement, f"η = {other:g} in every step", _Eta(other))


CAUSE = Cause("eta", trials)
