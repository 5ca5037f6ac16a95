"""Implementations under test: `diffusers_ref`, HF `diffusers`, or a class of the user's own, by file or module."""

from __future__ import annotations

from pathlib import Path

from conformance.errors import ConformanceError
from conformance.implementations.base import Implementation
from conformance.implementations.source import import_from


def open_implementation(name: str = "diffusers_ref", pythonpath: Path | None = None) -> Implementation:
    """The implementation `name`: `diffusers_ref`, `diffusers`, `path/to/file.py:Class` or `package.module:Class`.

    A local file is executed only because it is named here.

    Args:
        pythonpath: a folder to import the implementation from, such as the `src` of a checkout.

    Raises:
        ConformanceError: unknown name, or it cannot be imported, or not from `pythonpath`.
    """
    if pythonpath is not None:
        import_from(pythonpath, name)
    if name == "diffusers_ref":
        from conformance.implementations.reference import ReferenceImplementation

        return ReferenceImplementation()
    if name == "diffusers":
        from conformance.implementations.hf_diffusers import DiffusersImplementation

        return DiffusersImplementation()
    if ":" in name:
        from conformance.implementations.user_class import UserImplementation

        return UserImplementation(name)
    raise ConformanceError(
        f"implementation {name!r}; allowed: diffusers_ref, diffusers, path/to/file.py:Class, package.module:Class"
    )
