"""Putting other tables into a scheduler, wherever it keeps them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from conformance.explain.alteration import fix_attribute

FINAL = "final_alpha_cumprod"


def install(scheduler: Any, tables: Mapping[str, torch.Tensor], final: bool = True) -> None:
    """Replace the tables of these names (`betas`, `alphas_cumprod`), before `set_timesteps`.

    Attributes are overwritten, also those of a dataclass that the scheduler holds (there with prefixes such as `exact_`
    too); read-only ones are hidden by the new value. What follows from a table entry by entry (`alphas`, and with
    `final` the level after the last step) follows.
    """
    tables = dict(tables)
    if "betas" in tables and isinstance(vars(scheduler).get("alphas"), torch.Tensor):
        tables["alphas"] = 1.0 - tables["betas"]
    own, new = getattr(scheduler, "alphas_cumprod", None), tables.get("alphas_cumprod")
    has_final = final and FINAL in vars(scheduler)
    if has_final and own is not None and new is not None and bool(scheduler.final_alpha_cumprod == own[0]):
        setattr(scheduler, FINAL, new[0])
    for name, value in list(vars(scheduler).items()):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            setattr(scheduler, name, _replaced(value, tables))
    for name, table in tables.items():
        if name in vars(scheduler):
            setattr(scheduler, name, table)
        elif hasattr(scheduler, name) and not _equal(getattr(scheduler, name), table):
            fix_attribute(scheduler, name, table)


def _replaced(holder: Any, tables: Mapping[str, torch.Tensor]) -> Any:
    """The dataclass with every array or tensor replaced whose name ends in that of a table of the same shape."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(holder):
        value = getattr(holder, field.name)
        table = next((tables[name] for name in tables if field.name.removeprefix("exact_") == name), None)
        if table is None or not isinstance(value, (torch.Tensor, np.ndarray)) or value.shape != table.shape:
            continue
        changes[field.name] = table.numpy().astype(np.float64) if isinstance(value, np.ndarray) else table
    return dataclasses.replace(holder, **changes)


def _equal(own: Any, table: torch.Tensor) -> bool:
    return isinstance(own, torch.Tensor) and own.dtype == table.dtype and torch.equal(own.cpu(), table)
