"""A class of the user's own: `path/to/file.py:Class` or `package.module:Class`.

The class stands in for the fixture's class of the same kind. Its configuration is the fixture's, reduced to what its
constructor accepts; the rest of the API is the common one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from conformance.errors import ConformanceError, Unsupported
from conformance.fixture import Subject
from conformance.implementations.base import Implementation, Scheduler


class UserImplementation(Implementation):
    """One class from a file or module; fixtures whose subject it cannot be are `unsupported`."""

    def __init__(self, location: str) -> None:
        self.name = location
        self.version = "local"
        self._class = load_class(location)

    def _serves(self, subject: Subject) -> None:
        wanted = subject.cls
        if wanted not in {base.__name__ for base in self._class.__mro__} and wanted not in self._class.__name__:
            raise Unsupported(f"{self._class.__name__} does not stand for {wanted}")

    def scheduler(self, subject: Subject) -> Scheduler:
        self._serves(subject)
        parameters = inspect.signature(self._class).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return self._class(**subject.config)
        return self._class(**{name: value for name, value in subject.config.items() if name in parameters})

    def pipeline(self, subject: Subject, checkpoint: Path, original_config: Path) -> Any:
        self._serves(subject)
        if not hasattr(self._class, "from_single_file"):
            raise Unsupported(f"{self._class.__name__} has no from_single_file")
        return self._class.from_single_file(checkpoint, original_config=original_config)


def load_class(location: str) -> type:
    """The class at `path/to/file.py:Class` or `package.module:Class`.

    Raises:
        ConformanceError: no such file, module or class, or the module fails to import.
    """
    place, _, name = location.rpartition(":")
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            if not path.is_file():
                raise ConformanceError(f"{place}: no such file")
            spec = importlib.util.spec_from_file_location(f"conformance_user_{path.stem}", path)
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
        classes = sorted(key for key, value in vars(module).items() if isinstance(value, type))
        raise ConformanceError(f"{place} has no class {name!r}; it has: {', '.join(classes[:10]) or 'none'}")
    return found
