"""An original without a git history, such as a notebook or an archive: pinned by the content of its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from conformance.errors import ConformanceError
from conformance.recorders.checkout import Original

CONTENT = "sha256:"
"""A recorder whose `ORIGINAL.commit` starts with this pins files rather than a commit."""


def content_digest(folder: Path) -> str:
    """`sha256:` and the digest over the relative paths and bytes of all files, but for hidden ones and byte code."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            payload = path.read_bytes()
            digest.update(f"{'/'.join(parts)}|{len(payload)}|".encode() + payload)
    return CONTENT + digest.hexdigest()


def inspect_folder(source: Path, original: Original, allow_modified: bool) -> tuple[str, bool]:
    """The folder's digest, and whether it differs from the pinned one.

    Raises:
        ConformanceError: no such folder, or another content without `allow_modified`.
    """
    if not source.is_dir():
        raise ConformanceError(f"{source}: no such folder with the files of {original.repository}")
    found = content_digest(source)
    modified = found != original.commit
    if modified and not allow_modified:
        raise ConformanceError(
            f"{source}: its content is {found}, the recorder is written against {original.commit}. "
            "Pass --allow-modified to record all the same; the manifest will say so."
        )
    return found, modified
