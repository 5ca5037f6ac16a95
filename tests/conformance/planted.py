"""Planting faults: the source of a module with one replacement, run as a module of its own."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

from conformance.fixture import Subject
from conformance.implementations.base import Scheduler
from conformance.implementations.reference import ReferenceImplementation


def planted(module: ModuleType, old: str, new: str) -> ModuleType:
    """`module` with the one occurrence of `old` in its source replaced by `new`; the module itself is left alone."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} places {old!r}; the fault needs one"
    faulty = ModuleType(module.__name__)
    faulty.__package__, faulty.__file__ = module.__package__, module.__file__
    exec(compile(source.replace(old, new), f"planted {module.__name__}", "exec"), faulty.__dict__)
    return faulty


class WithScheduler(ReferenceImplementation):
    """diffusers_ref with one scheduler class replaced by that of the same name in `module`."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__()
        self._module = module

    def scheduler(self, subject: Subject) -> Scheduler:
        cls: Any = getattr(self._module, subject.cls)
        return cls.from_config(subject.config)
