"""Writing a report: completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from conformance.errors import ConformanceError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` by way of a temporary file beside it.

    Raises:
        ConformanceError: there is no such folder, or it cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConformanceError(f"{path}: cannot be written: {error.strerror}") from None
