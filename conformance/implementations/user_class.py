"""A class of the user's own: `path/to/file.py:Class` or `package.module:Class`.

The class stands in for the fixture's class of the same kind: a scheduler for the sampler, a network for the network, a
pipeline for the pipeline and, with the scheduler it is made for, for the sampler. Which class of the fixtures it stands
for is said by `stands_for` (an attribute of the class, a name or several, or given here); otherwise its own name and
those of its bases decide. It gets the fixture's configuration, reduced to what its constructor accepts; the rest of the
API is the common one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.errors import ConformanceError, Unsupported
from conformance.fixture import Subject
from conformance.implementations.assembly import assemble_pipeline, quiet, small_instance
from conformance.implementations.base import Implementation, Scheduler
from conformance.implementations.subjects import TINY_UNET, Subjects


class UserImplementation(Implementation):
    """One class, from a file or module or as it is; fixtures whose subject it cannot be are `unsupported`.

    Args:
        subject: the class, or where it is.
        stands_for: the fixtures' class or classes that it stands for, in place of its attribute of that name.

    Attributes:
        cls: the class under test.
        kind: "scheduler", "model" or "pipeline".
    """

    version = "local"

    def __init__(self, subject: str | type, stands_for: Sequence[str] = ()) -> None:
        self.cls = load_class(subject) if isinstance(subject, str) else subject
        self.name = subject if isinstance(subject, str) else f"{subject.__module__}:{subject.__qualname__}"
        self.kind = kind_of(self.cls)
        self._stands_for = tuple(stands_for)

    # --- which fixtures it can be -------------------------------------------------------------------------------------

    def serves(self, subject: Subject, kind: str) -> bool:
        """Whether a fixture of this kind and subject applies to the class."""
        if kind == "scheduler":
            return self.kind in ("scheduler", "pipeline") and self._scheduler_class(subject) is not None
        return self.kind == kind and self._is(self.cls, subject.cls)

    @property
    def scheduler_classes(self) -> list[type]:
        """The class itself, or the schedulers of a pipeline: its `scheduler_class`, or the class that its constructor
        names as type of `scheduler`, and those of its own file.
        """
        if self.kind == "scheduler":
            return [self.cls]
        named = getattr(self.cls, "scheduler_class", None) or _annotated_scheduler(self.cls)
        found = [named] if isinstance(named, type) and _is_scheduler(named) else []
        beside = vars(sys.modules[self.cls.__module__]).values() if self.cls.__module__ in sys.modules else ()
        own = [value for value in beside if isinstance(value, type) and value.__module__ == self.cls.__module__]
        return found + [value for value in own if _is_scheduler(value) and value not in found]

    def _scheduler_class(self, subject: Subject) -> type | None:
        return next((found for found in self.scheduler_classes if self._is(found, subject.cls)), None)

    def _is(self, cls: type, wanted: str) -> bool:
        declared = getattr(cls, "stands_for", ())
        explicit = self._stands_for or ((declared,) if isinstance(declared, str) else tuple(declared))
        if explicit:
            return wanted in explicit
        return wanted in {base.__name__ for base in cls.__mro__} or wanted in cls.__name__

    def _require(self, kind: str, subject: Subject) -> None:
        if not self.serves(subject, kind):
            raise Unsupported(f"{self.cls.__name__} does not stand for {subject.cls}")

    # --- contracts ----------------------------------------------------------------------------------------------------

    def subjects(self) -> Subjects:
        """A scheduler's class; a small network; a small pipeline and the schedulers of its own file.

        A pipeline is made from a small UNet2DModel of its library and its first scheduler, a network with its defaults
        (a UNet2DModel with a small size), unless a class method `conformance_subject` returns an instance.
        """
        cls: Any = self.cls
        name = cls.__name__
        if self.kind == "scheduler":
            return {name: partial(small_instance, cls, partial(_itself, cls))}
        if self.kind == "model":
            size = TINY_UNET if any(base.__name__ == "UNet2DModel" for base in cls.__mro__) else {}
            return {name: lambda: small_instance(cls, partial(cls, **size)).eval()}
        own = [found for found in self.scheduler_classes if found.__module__ == cls.__module__]
        schedulers: Subjects = {found.__name__: partial(_itself, found) for found in own}
        return {name: partial(small_instance, cls, self._small_pipeline), **schedulers}

    def _small_pipeline(self) -> Any:
        if not self.scheduler_classes:
            raise Unsupported("neither a scheduler_class nor a type of `scheduler` says what it samples with")
        return assemble_pipeline(self.cls, self._library.subjects()["UNet2DModel"](), self.scheduler_classes[0]())

    # --- building -----------------------------------------------------------------------------------------------------

    def scheduler(self, subject: Subject) -> Scheduler:
        self._require("scheduler", subject)
        cls: Any = self._scheduler_class(subject)
        parameters = inspect.signature(cls).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return cls(**subject.config)
        return cls(**{name: value for name, value in subject.config.items() if name in parameters})

    def original_shapes(self, subject: Subject) -> dict[str, tuple[int, ...]]:
        self._require(self.kind, subject)
        return self._library.original_shapes(subject)

    def tap_modules(self, subject: Subject) -> dict[str, str]:
        return self._library.tap_modules(subject)

    def model(self, subject: Subject, state: Mapping[str, np.ndarray]) -> torch.nn.Module:
        """The class with the configuration and weights that the converted checkpoint has in its library."""
        converted: Any = self._library.model(subject, state)
        make: Any = getattr(self.cls, "from_config", None) or (lambda config: self.cls(**config))
        network: torch.nn.Module = make(dict(converted.config))
        try:
            network.load_state_dict(converted.state_dict())
        except RuntimeError as error:
            raise Unsupported(f"the weights do not fit {self.cls.__name__}: {error}") from None
        return network.eval()

    def pipeline(self, subject: Subject, checkpoint: Path, original_config: Path) -> Any:
        """The class from the original's files, or else with the components that its library makes of them."""
        cls: Any = self.cls
        if hasattr(cls, "from_single_file") and self._library.name == "diffusers_ref":
            return quiet(cls.from_single_file(checkpoint, original_config=original_config))
        parts = self._library.pipeline(subject, checkpoint, original_config).components
        allowed = inspect.signature(cls).parameters
        return quiet(cls(**{name: part for name, part in parts.items() if name in allowed}))

    def pipeline_around(self, subject: Subject, network: torch.nn.Module) -> Any | None:
        if self.kind != "pipeline":
            return None
        self._require("scheduler", subject)
        return assemble_pipeline(self.cls, network, self.scheduler(subject))

    def set_timesteps(self, scheduler: Scheduler, subject: Subject) -> None:
        _require_arguments(scheduler.set_timesteps, subject.set_timesteps or {})
        super().set_timesteps(scheduler, subject)

    def step_options(self, scheduler: Scheduler, subject: Subject) -> dict[str, Any]:
        options = super().step_options(scheduler, subject)
        _require_arguments(scheduler.step, options)
        return options

    def loop_options(self, pipeline: Any, subject: Subject) -> dict[str, Any]:
        options = super().loop_options(pipeline, subject)
        _require_arguments(pipeline.__call__, options)
        return options

    @cached_property
    def _library(self) -> Implementation:
        """The implementation that reads original checkpoints for the class: the library that it is written for."""
        from conformance.implementations import open_implementation

        hf = any(base.__module__.split(".")[0] == "diffusers" for base in self.cls.__mro__)
        return open_implementation("diffusers" if hf else "diffusers_ref")


def kind_of(cls: type) -> str:
    """ "scheduler", "model" or "pipeline", by what the class can do. Raises ConformanceError for anything else."""
    if _is_scheduler(cls):
        return "scheduler"
    if issubclass(cls, torch.nn.Module):
        return "model"
    if hasattr(cls, "components") and any("__call__" in vars(base) for base in cls.__mro__):
        return "pipeline"
    raise ConformanceError(
        f"{cls.__name__} is neither a scheduler (set_timesteps, step), nor a network (torch.nn.Module), "
        "nor a pipeline (__call__, components)"
    )


def load_class(location: str) -> type:
    """The class at `path/to/file.py:Class` or `package.module:Class`.

    Raises:
        ConformanceError: no such file, module or class, or the module fails to import.
    """
    place, _, name = location.rpartition(":")
    try:
        if place.endswith(".py"):
            path = Path(place).absolute()  # Not resolved: the Hub's cache links to files without a suffix.
            if not path.is_file():
                raise ConformanceError(f"{place}: no such file")
            digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
            spec = importlib.util.spec_from_file_location(f"conformance_user_{path.stem}_{digest}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except ConformanceError:
        raise
    except Exception as error:
        raise ConformanceError(f"{place}: cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = sorted(k for k, v in vars(module).items() if isinstance(v, type) and v.__module__ != "typing")
        raise ConformanceError(f"{place} has no class {name!r}; it has: {', '.join(classes[:10]) or 'none'}")
    return found


def _annotated_scheduler(cls: type) -> Any:
    try:
        return typing.get_type_hints(cls.__init__).get("scheduler")  # type: ignore[misc]
    except (NameError, TypeError):  # names that exist for type checkers only
        return None


def _itself(cls: type) -> type:
    return cls


def _require_arguments(method: Any, options: Mapping[str, Any]) -> None:
    """Raise Unsupported for a method that takes no argument of these names."""
    parameters = inspect.signature(method).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if missing := [name for name in options if name not in parameters and not takes_any]:
        raise Unsupported(f"{method.__qualname__} takes no {', '.join(missing)}")


def _is_scheduler(cls: type) -> bool:
    return all(callable(getattr(cls, name, None)) for name in ("set_timesteps", "step"))
