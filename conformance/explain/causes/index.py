"""A table is read one entry too early or too late."""

from __future__ import annotations

from collections.abc import Iterator
from functools import wraps
from typing import Any

import torch

from conformance.explain.alteration import Alteration, specialise
from conformance.explain.schedule_tables import install
from conformance.explain.state import State
from conformance.explain.textbook import reproductions
from conformance.explain.trial import Cause, Repair, Trial
from conformance.fixture import Subject

SHIFTS = ((-1, "one entry too early"), (1, "one entry too late"))


class _Rolled(Alteration):
    """ᾱ moved, so that reading entry t + `shift` gives what entry t held. From outside the table is seen unmoved."""

    def __init__(self, shift: int) -> None:
        self._shift = shift

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        table = scheduler.alphas_cumprod
        moved = table[(torch.arange(len(table)) - self._shift).clamp(0, len(table) - 1)]
        install(scheduler, {"alphas_cumprod": moved}, final=False)
        inside = False

        def marked(method: Any) -> Any:
            @wraps(method)
            def run(*arguments: Any, **options: Any) -> Any:
                nonlocal inside
                inside = True
                try:
                    return method(*arguments, **options)
                finally:
                    inside = False

            return run

        own = type(scheduler)
        seen = property(lambda self: moved if inside else table, lambda self, value: None)
        specialise(scheduler, alphas_cumprod=seen, step=marked(own.step), set_timesteps=marked(own.set_timesteps))


def trials(state: State) -> Iterator[Trial]:
    if not state.at("step", "pred_original_sample", "sample"):
        return
    for shift, where in SHIFTS:
        if isinstance(getattr(state.scheduler, "alphas_cumprod", None), torch.Tensor):
            yield Repair(f"ᾱ is read {where}", "ᾱ moved by one entry", _Rolled(shift))
        yield from reproductions(state, (f"ᾱ is read {where}", f"ᾱ read {where}", {"offset": shift}))


CAUSE = Cause("index offset", trials)
