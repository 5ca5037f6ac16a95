"""Importing an implementation from a source checkout instead of the installed package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from conformance.errors import ConformanceError


def import_from(folder: Path, name: str) -> None:
    """Put `folder` first on the import path and import the package of the implementation `name` from there.

    Args:
        folder: holds the package's folder; for `path/to/file.py:Class` it holds what the file imports.

    Raises:
        ConformanceError: the folder does not hold the package, or it was imported from elsewhere before.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise ConformanceError(f"--pythonpath {folder}: no such folder")
    place = name.rpartition(":")[0] or name
    package = "" if place.endswith(".py") else place.split(".")[0]
    if package:
        if not (folder / package / "__init__.py").is_file() and not (folder / f"{package}.py").is_file():
            raise ConformanceError(f"--pythonpath {folder}: there is no package {package!r} in it")
        if package in sys.modules and not _lies_in(package, folder):
            raise ConformanceError(
                f"--pythonpath {folder}: {package!r} has been imported already, from {sys.modules[package].__file__}"
            )
    if str(folder) not in sys.path[:1]:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    if package:
        try:
            importlib.import_module(package)
        except Exception as error:
            raise ConformanceError(
                f"{folder / package}: cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if not _lies_in(package, folder):
            raise ConformanceError(f"{package!r} was imported from {sys.modules[package].__file__}, not from {folder}")


def _lies_in(package: str, folder: Path) -> bool:
    file = getattr(sys.modules[package], "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(folder)
