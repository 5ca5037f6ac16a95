"""Where fixtures are found: shipped with the package, in a folder, or in a dataset repository on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from conformance.errors import FixtureError
from conformance.fixture import Fixture, read_fixture

HUB_PREFIX = "hub:"


@dataclass(frozen=True)
class Library:
    """The fixtures below one folder, by id `<system>/<case>`."""

    root: Path

    def ids(self) -> list[str]:
        """All ids, sorted."""
        return sorted(f"{path.parent.name}/{path.stem}" for path in self.root.glob("*/*.json"))

    def get(self, fixture_id: str) -> Fixture:
        """The fixture `fixture_id`.

        Raises:
            FixtureError: there is none (the message names close ones), it is damaged, or its manifest has another id.
        """
        path = self.root / f"{fixture_id}.json"
        if not path.is_file():
            raise FixtureError(f"no fixture {fixture_id!r} in {self.root}{_did_you_mean(fixture_id, self.ids())}")
        fixture = read_fixture(path)
        if fixture.id != fixture_id:
            raise FixtureError(f"{path}: the manifest's id is {fixture.id!r}, its place says {fixture_id!r}")
        return fixture

    def select(self, patterns: list[str] | tuple[str, ...] = (), tier: str | None = None) -> list[str]:
        """Ids that match any of the shell patterns; a bare system name selects all its cases. No pattern: all.

        Args:
            tier: only fixtures of this tier.

        Raises:
            FixtureError: a pattern matches nothing, or what matches is of other tiers.
        """
        chosen = self._matching(patterns)
        if tier is not None:
            chosen = [i for i in chosen if self.get(i).manifest.tier == tier]
            if not chosen:
                raise FixtureError(f"no fixture of tier {tier!r} in the selection")
        return chosen

    def _matching(self, patterns: list[str] | tuple[str, ...]) -> list[str]:
        ids = self.ids()
        if not patterns:
            return ids
        chosen: set[str] = set()
        for pattern in patterns:
            found = [i for i in ids if fnmatchcase(i, pattern) or i.split("/", 1)[0] == pattern]
            if not found:
                raise FixtureError(f"no fixture matches {pattern!r} in {self.root}{_did_you_mean(pattern, ids)}")
            chosen.update(found)
        return sorted(chosen)


def open_library(source: str | Path | None = None) -> Library:
    """The library at `source`: None for the fixtures of the package, a folder, or `hub:owner/name[@revision]`.

    Raises:
        FixtureError: the folder does not exist or holds no fixture, or the Hub repository cannot be had.
    """
    if source is None:
        root = _bundled()
    elif str(source).startswith(HUB_PREFIX):
        root = _download(str(source)[len(HUB_PREFIX) :])
    else:
        root = Path(source)
        if not root.is_dir():
            raise FixtureError(f"{root}: no such fixture folder")
    library = Library(root)
    if not library.ids():
        raise FixtureError(f"{root}: holds no fixtures (<system>/<case>.json)")
    return library


def _bundled() -> Path:
    package = Path(__file__).resolve().parent
    for root in (package / "_fixtures", package.parent / "fixtures"):
        if root.is_dir():
            return root
    raise FixtureError(f"the fixtures that belong to this package are missing: looked in {package / '_fixtures'}")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FixtureError(f"fixture repository {repository!r} (revision {revision or 'main'}): {error}") from None


def _did_you_mean(name: str, ids: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, ids, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""
