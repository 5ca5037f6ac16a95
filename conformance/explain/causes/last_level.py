"""The level after the last step: ᾱ = 1 or ᾱ_0, σ = 0 or the last one repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from conformance.explain.alteration import Alteration, after_timesteps, fix_attribute
from conformance.explain.schedule_tables import FINAL
from conformance.explain.state import State
from conformance.explain.textbook import reproductions
from conformance.explain.trial import Cause, Repair, Trial
from conformance.fixture import Subject

OPTION = "set_alpha_to_one"


class _Option(Alteration):
    def __init__(self, value: bool) -> None:
        self._value = value

    def subject(self, subject: Subject) -> Subject:
        return dataclasses.replace(subject, config={**subject.config, OPTION: self._value})


class _Final(Alteration):
    """The ᾱ after the last step is 1, or that of the first training timestep."""

    def __init__(self, one: bool) -> None:
        self._one = one

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        first = scheduler.alphas_cumprod[0]
        fix_attribute(scheduler, FINAL, torch.ones_like(first) if self._one else first.clone())


class _Sigma(Alteration):
    """The last σ is 0, or the one before it again."""

    def __init__(self, zero: bool) -> None:
        self._zero = zero

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        def overwrite() -> None:
            sigmas = scheduler.sigmas.clone()
            sigmas[-1] = 0.0 if self._zero else sigmas[-2]
            scheduler.sigmas = sigmas

        after_timesteps(scheduler, overwrite)


def trials(state: State) -> Iterator[Trial]:
    if not state.at("step", "pred_original_sample", "sample", "images"):
        return
    config = state.fixture.manifest.subject.config
    if OPTION in config:
        value = not config[OPTION]
        statement = f"{OPTION}={config[OPTION]} has the opposite meaning"
        yield Repair(statement, f"{OPTION}={value}", _Option(value))
    for one, is_one in ((True, "1"), (False, "ᾱ_0")):
        statement = f"the ᾱ after the last step is {'ᾱ_0' if one else '1'}, the original's {is_one}"
        if hasattr(state.scheduler, FINAL) and hasattr(state.scheduler, "alphas_cumprod"):
            yield Repair(statement, f"last ᾱ = {is_one}", _Final(one))
        other = f"last ᾱ = {'ᾱ_0' if one else '1'}"
        yield from reproductions(state, (statement, other, {"ends_clean": not one}))
    for zero, what in ((True, "0"), (False, "the one before")) if hasattr(state.scheduler, "sigmas") else ():
        statement = f"the last σ is not {what}"
        yield Repair(statement, f"last σ = {what}", _Sigma(zero))


CAUSE = Cause("last alpha or sigma", trials)
