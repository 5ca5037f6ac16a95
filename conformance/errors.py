"""Errors that end a command with exit code 2 (usage or environment), as opposed to a divergence."""

from __future__ import annotations


class ConformanceError(Exception):
    """Something is wrong with the request, a file or the machine; says what was given and what is allowed."""


class FixtureError(ConformanceError):
    """A fixture is missing, damaged or of another format version."""


class Unsupported(Exception):  # noqa: N818 - it is a verdict, not an error
    """The implementation under test lacks what the fixture asks for. Counted and shown, never green."""
