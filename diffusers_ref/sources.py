"""Where files come from: a folder on disk, or a repository on the Hugging Face Hub.

Both list their files before anything is fetched, so that what is wanted can be chosen on names alone.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)

PathOrName = str | os.PathLike[str]

_REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class LoadingError(OSError):
    """A folder, repository, revision or file that was asked for is not there, or cannot be reached."""


def check_entry_name(name: str, what: str) -> str:
    """Return `name` if it names an entry directly inside a folder; raise LoadingError if it could lead elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise LoadingError(f"{what} {name!r} must be the name of an entry of the folder, without separators or '..'")
    return name


@dataclass(frozen=True)
class LocalFolder:
    """Files in a folder on disk."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def entries(self, subfolder: str = "") -> list[str]:
        """Names of the files directly in `subfolder`; none if it is not there."""
        folder = self.folder / subfolder
        return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []

    def fetch(self, names: Iterable[str]) -> Path:
        """The folder; nothing needs to be brought here."""
        return self.folder


@dataclass(frozen=True)
class HubRepository:
    """Files of one revision of a model repository on the Hub, through its local cache."""

    name: str
    revision: str | None = None
    cache_dir: PathOrName | None = None
    local_files_only: bool = False
    token: str | bool | None = None

    def __str__(self) -> str:
        return f"{self.name} at revision {self.revision or 'main'}"

    def entries(self, subfolder: str = "") -> list[str]:
        """Names of the files directly in `subfolder`; none if it is not there."""
        parent = PurePosixPath(subfolder)
        return [path.name for path in map(PurePosixPath, self.files) if path.parent == parent]

    @functools.cached_property
    def files(self) -> list[str]:
        """Names of all files, with "/" between the parts; without a connection, of those in the cache."""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        if self.local_files_only:
            return self._cached_files(None)
        try:
            siblings = HfApi(token=self.token).model_info(self.name, revision=self.revision).siblings
            return sorted(sibling.rfilename for sibling in siblings or ())
        except RevisionNotFoundError as error:
            raise LoadingError(f"the Hub repository {self.name} has no revision {self.revision!r}") from error
        except GatedRepoError as error:
            raise LoadingError(
                f"access to the Hub repository {self.name} must be requested on its page first"
            ) from error
        except RepositoryNotFoundError as error:
            raise LoadingError(
                f"{self.name!r} is neither a local folder nor a Hub repository (or it is private: pass token=...)"
            ) from error
        except Exception as error:  # noqa: BLE001  the client's versions have different HTTP libraries
            files = self._cached_files(error)
            if not constants.HF_HUB_OFFLINE:
                logger.warning("%s: the Hub cannot be reached (%s), so the cached files are used", self, error)
            return files

    def _cached_files(self, cause: Exception | None) -> list[str]:
        try:
            folder = self._snapshot([], local_files_only=True)
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        except Exception as error:  # noqa: BLE001  as above
            reason = f"the Hub cannot be reached ({cause})" if cause else "only local files are allowed"
            raise LoadingError(f"{self}: {reason} and the cache does not hold it") from (cause or error)

    def fetch(self, names: Iterable[str]) -> Path:
        """Bring the named files here and return the folder that holds them."""
        try:
            return self._snapshot(sorted(names), local_files_only=self.local_files_only)
        except Exception as error:
            raise LoadingError(f"{self}: cannot be downloaded: {error}") from error

    def _snapshot(self, names: Sequence[str], *, local_files_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                self.name,
                revision=self.revision,
                cache_dir=None if self.cache_dir is None else Path(self.cache_dir),
                token=self.token,
                local_files_only=local_files_only,
                allow_patterns=[glob_escape(name) for name in names],
            )
        )


def glob_escape(name: str) -> str:
    """A pattern that matches `name` only."""
    return re.sub(r"([*?[])", r"[\1]", name)


def open_source(
    name_or_path: PathOrName,
    *,
    revision: str | None = None,
    cache_dir: PathOrName | None = None,
    local_files_only: bool | None = None,
    token: str | bool | None = None,
) -> LocalFolder | HubRepository:
    """A local folder if there is one of that name, else the Hub repository of that id. Raises LoadingError."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return LocalFolder(folder)
    name = os.fspath(name_or_path)
    if folder.exists():
        raise LoadingError(f"{name} is a file, a folder is needed (for one checkpoint file use from_single_file)")
    if isinstance(name_or_path, os.PathLike) or not _REPOSITORY_ID.fullmatch(name):
        raise LoadingError(f"there is no folder {name!r}, and it is not the id of a Hub repository (owner/name)")
    return HubRepository(name, revision, cache_dir, bool(local_files_only), token)


Source = LocalFolder | HubRepository
