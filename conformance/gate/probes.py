"""Probes: deterministic runs of scheduler classes, so that a change shows where no fixture exists.

A plan is made once, on the code that the baseline is taken of, and is stored with it: whatever the change does, the
same runs are made again.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from conformance.gate.choices import PLAIN, factors
from conformance.gate.driver import RAISES, Outcome, Run, observe
from conformance.gate.pairwise import Cover
from conformance.implementations.base import Implementation
from conformance.implementations.user_class import UserImplementation

PREFIX = "probe"
LARGEST = 1e4  # a run that leaves this range hides what happens in it
MOST_RUNS, MOST_REFUSALS = 10, 2  # of one class, so that a gate over all classes takes seconds


@dataclass(frozen=True)
class Probe:
    """One run: a class and the choices that differ from its defaults (see `conformance.gate.choices.factors`)."""

    cls: str
    choices: Mapping[str, Any]

    @property
    def id(self) -> str:
        """`probe/<class>/<digest of the choices>`: the same choices have the same id in every baseline."""
        text = json.dumps(self.choices, sort_keys=True)
        return f"{PREFIX}/{self.cls}/{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def title(self) -> str:
        """The choices in words."""
        return ", ".join(f"{name}={value}" for name, value in self.choices.items()) or "defaults"


def scheduler_classes(implementation: Implementation) -> dict[str, type]:
    """The public scheduler classes of an implementation by name; of a user's class those that belong to it."""
    if isinstance(implementation, UserImplementation):
        found = {cls.__name__: cls for cls in implementation.scheduler_classes}
    else:
        library = importlib.import_module(implementation.name)
        names = sorted(name for name in dir(library) if name.endswith("Scheduler"))
        found = {name: getattr(library, name) for name in names}
    return {name: cls for name, cls in found.items() if callable(getattr(cls, "set_timesteps", None))}


def plan(name: str, cls: type) -> list[Probe]:
    """Pairs of choices of a class: runs that work, and the smallest ones that do not.

    Of a class with many options these are the first of an all-pairs cover, which meet most pairs, and of the rows with
    one choice alone, in turn.
    """
    values = factors(cls)
    cover = Cover(values, lambda row: _works(cls, _chosen(row, values)))
    probes = [Probe(name, _chosen(row, values)) for row in cover.rows]
    alone = [probe for probe in probes if len(probe.choices) <= 1]
    paired = [probe for probe in probes if len(probe.choices) > 1]
    turns = [probe for turn in zip_longest(alone, paired) for probe in turn if probe is not None]
    refused = [Probe(name, _chosen(row, values)) for row in cover.failing]
    return turns[:MOST_RUNS] + refused[:MOST_REFUSALS]


def run(probe: Probe, cls: type, dtype: torch.dtype, device: str) -> dict[str, Outcome]:
    """What the probe's run gives today."""
    return observe(cls, probe.choices, dtype, device)


def _chosen(row: Mapping[str, Any], values: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The choices of a row that differ from the plain ones; what a class requires is always among them."""
    return {
        name: value
        for name, value in row.items()
        if value != PLAIN and (value != values[name][0] or name.startswith("config."))
    }


def _works(cls: type, choices: Mapping[str, Any]) -> bool:
    """Whether a run ends, with live numbers in it."""
    found = Run(cls, choices, torch.float32, "cpu").outcomes()
    sample = found.get("sample")
    if RAISES in found or not isinstance(sample, torch.Tensor):
        return False
    return bool(sample.isfinite().all()) and float(sample.abs().max()) <= LARGEST
