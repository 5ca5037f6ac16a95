"""Where fixtures are found, and how they are chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_fixture import TOY_ID, edit_json, write_toy

import conformance.library
from conformance.errors import FixtureError
from conformance.library import Library, open_library


@pytest.fixture
def library(tmp_path: Path) -> Library:
    for name in ("toy/one-step", "toy/two-steps", "other/one-step"):
        write_toy(tmp_path, id=name)
    return open_library(tmp_path)


def test_ids_are_sorted_and_gettable(library: Library) -> None:
    assert library.ids() == ["other/one-step", "toy/one-step", "toy/two-steps"]
    assert [library.get(name).id for name in library.ids()] == library.ids()


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ((), ["other/one-step", "toy/one-step", "toy/two-steps"]),
        (("toy",), ["toy/one-step", "toy/two-steps"]),
        (("*/one-*",), ["other/one-step", "toy/one-step"]),
        (("toy/two-steps", "toy", "toy/*"), ["toy/one-step", "toy/two-steps"]),
        (("to?/one-step",), ["toy/one-step"]),
    ],
)
def test_patterns_select(library: Library, patterns: tuple[str, ...], chosen: list[str]) -> None:
    assert library.select(patterns) == chosen


@pytest.mark.parametrize("pattern", ["toy/one-stp", "TOY/one-step"])
def test_a_pattern_without_a_match_names_the_nearest(library: Library, pattern: str) -> None:
    with pytest.raises(FixtureError, match=rf"no fixture matches '{pattern}' .*did you mean .*toy/one-step"):
        library.select(["toy", pattern])


def test_an_unknown_id_names_the_nearest(library: Library) -> None:
    with pytest.raises(FixtureError, match=r"no fixture 'toy/one_step' in .*; did you mean toy/one-step"):
        library.get("toy/one_step")


def test_an_id_like_no_other_gets_no_suggestion(library: Library) -> None:
    with pytest.raises(FixtureError, match=r"no fixture 'zzz' in [^;]*$"):
        library.get("zzz")


def test_a_manifest_in_the_wrong_place_is_refused(library: Library) -> None:
    edit_json(library.root / "toy" / "two-steps.json", lambda data: data.update(id="toy/renamed"))

    with pytest.raises(FixtureError, match=r"the manifest's id is 'toy/renamed', its place says 'toy/two-steps'"):
        library.get("toy/two-steps")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FixtureError, match="absent: no such fixture folder"):
        open_library(tmp_path / "absent")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FixtureError, match=r"holds no fixtures \(<system>/<case>\.json\)"):
        open_library(str(tmp_path))


def test_the_bundled_fixtures_cover_every_system() -> None:
    systems = {name.split("/")[0] for name in open_library().ids()}

    assert {"ddim", "ddpm", "improved-diffusion", "latent-diffusion", "pndm"} <= systems


def test_a_package_without_its_fixtures_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance.library, "__file__", str(tmp_path / "package" / "library.py"))

    with pytest.raises(FixtureError, match=r"fixtures that belong to this package are missing: .*_fixtures"):
        open_library()


# --- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str, str | None]]]:
    """Stand in for `snapshot_download`: answers with a folder or an error; returns the list of requests."""

    def install(answer: Path | Exception) -> list[tuple[str, str, str | None]]:
        requests: list[tuple[str, str, str | None]] = []

        def snapshot_download(name: str, *, repo_type: str, revision: str | None) -> str:
            requests.append((name, repo_type, revision))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return requests

    return install


@pytest.mark.parametrize(("name", "revision"), [("hub:someone/cases", None), ("hub:someone/cases@v1", "v1")])
def test_a_dataset_repository_is_a_library(
    library: Library, snapshots: Callable[..., list[object]], name: str, revision: str | None
) -> None:
    requests = snapshots(library.root)

    assert open_library(name).get(TOY_ID).id == TOY_ID
    assert requests == [("someone/cases", "dataset", revision)]


def test_a_repository_that_cannot_be_had_is_an_error(snapshots: Callable[..., list[object]]) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    snapshots(LocalEntryNotFoundError("offline"))

    with pytest.raises(FixtureError, match=r"fixture repository 'someone/cases' \(revision main\): offline"):
        open_library("hub:someone/cases")


def test_a_name_that_is_no_repository_is_an_error() -> None:
    with pytest.raises(FixtureError, match=r"fixture repository 'not a name'"):
        open_library("hub:not a name")


def test_a_hub_library_is_checked_like_any_other(tmp_path: Path, snapshots: Callable[..., list[object]]) -> None:
    snapshots(tmp_path)

    with pytest.raises(FixtureError, match="holds no fixtures"):
        open_library("hub:someone/cases")
