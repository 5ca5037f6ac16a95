from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffusers_ref.saving import replaced_folder, write_text


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_text_file_keeps_its_old_text(tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    write_text(file, "old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "new")
    assert contents(tmp_path) == {"config.json": "old"}


def test_a_folder_is_replaced_at_the_end_and_other_files_stay(tmp_path):
    folder = tmp_path / "pipe"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text("mine")
    (folder / "unet" / "old.bin").write_text("stale")
    (folder / "unet" / "notes.txt").write_text("mine too")
    (folder / "unet" / "config.json").write_text("old")
    with replaced_folder(folder, discard=lambda name: name.endswith(".bin")) as temporary:
        (temporary / "unet").mkdir()
        (temporary / "unet" / "config.json").write_text("new")
        assert contents(folder)["unet/config.json"] == "old"
    assert contents(tmp_path) == {
        "pipe/README.md": "mine",
        "pipe/unet/notes.txt": "mine too",
        "pipe/unet/config.json": "new",
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_folder_is_what_it_was(tmp_path, error):
    folder = tmp_path / "pipe"
    folder.mkdir()
    (folder / "a").write_text("old")
    with pytest.raises(error), replaced_folder(folder) as temporary:
        (temporary / "a").write_text("half of the n")
        raise error
    assert contents(tmp_path) == {"pipe/a": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_an_interruption_between_the_two_renames_is_undone(tmp_path, monkeypatch):
    folder = tmp_path / "pipe"
    folder.mkdir()
    (folder / "a").write_text("old")
    rename = Path.rename

    def interrupted_rename(self, target):
        if Path(target) == folder and (self / "b").exists():
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted_rename)
    with pytest.raises(KeyboardInterrupt), replaced_folder(folder) as temporary:
        (temporary / "b").write_text("new")
    assert contents(tmp_path) == {"pipe/a": "old"}


def test_the_working_directory_and_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (".", tmp_path):
        with pytest.raises(ValueError, match="working directory"), replaced_folder(folder):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="a folder is needed"), replaced_folder(tmp_path / "file"):
        pass
