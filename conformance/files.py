"""Writing a file: completely or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from conformance.errors import ConformanceError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`, by way of a temporary file beside it that is flushed to the disk.

    Raises:
        ConformanceError: there is no such folder, or it cannot be written to; what stood there before still does.
    """
    payload = content.encode("utf-8") if isinstance(content, str) else content
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise ConformanceError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
