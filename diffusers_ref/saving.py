"""Files and folders that are either written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def _temporary_sibling(path: Path) -> Path:
    """A free hidden name beside `path`, thus on the same file system, so that a rename replaces `path` at once."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    """Flush one file, or the entries of one folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder; its renames are journaled.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file; whoever reads `path` sees the old text or the new one, never a part."""
    temporary = _temporary_sibling(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextlib.contextmanager
def replaced_folder(
    folder: str | os.PathLike[str], discard: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """Fill a temporary sibling folder in the `with` block; at its end it takes the place of `folder`.

    Files of an existing `folder`, and of its subfolders, that the block did not write stay there, except those whose
    name `discard` accepts (files of an earlier save that would contradict the new ones). If the block or the exchange
    fails or is interrupted, the temporary folder is removed and `folder` is what it was.

    Raises FileExistsError if `folder` is a file, ValueError if it is the working directory or contains it.
    """
    target = Path(folder).resolve()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"cannot save into {target}: it is a file, a folder is needed")
    if target in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(f"cannot save into {target}: it is the working directory or holds it; name a folder inside")
    target.parent.mkdir(parents=True, exist_ok=True)

    temporary, previous = _temporary_sibling(target), _temporary_sibling(target)
    try:
        temporary.mkdir()
        yield temporary
        if target.is_dir():
            _keep_other_entries(target, temporary, discard)
        for entry in sorted(temporary.rglob("*")):
            _sync(entry)
        _sync(temporary)
        _exchange(temporary, target, previous)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _keep_other_entries(source: Path, destination: Path, discard: Callable[[str], bool]) -> None:
    """Bring the entries of `source` that `destination` lacks over, as hard links where the file system has them."""

    def link(file: str, copy: str) -> None:
        try:
            os.link(file, copy, follow_symlinks=False)
        except OSError:
            shutil.copy2(file, copy, follow_symlinks=False)

    for entry in source.iterdir():
        copy = destination / entry.name
        if entry.is_dir() and not entry.is_symlink():
            if not copy.exists():
                copy.mkdir()
            if copy.is_dir():
                _keep_other_entries(entry, copy, discard)
        elif not copy.exists() and not discard(entry.name):
            link(str(entry), str(copy))
    shutil.copymode(source, destination)


def _exchange(new: Path, target: Path, previous: Path) -> None:
    """Rename `target` to `previous` and `new` to `target`; on any failure put `target` back."""
    try:
        if target.exists():
            target.rename(previous)
        new.rename(target)
    except BaseException:
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise
