"""The fixture format: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from toy_fixture import TOY_ID, edit_json, toy_manifest, toy_tensors, write_toy

import conformance.files
from conformance.errors import FixtureError
from conformance.fixture import read_fixture, read_manifest, tensor_digest, write_fixture


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- round trip ------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write_toy(tmp_path)

    fixture = read_fixture(path)

    assert path == tmp_path / "toy" / "one-step.json"
    assert sorted(contents(tmp_path)) == ["toy/one-step.json", "toy/one-step.safetensors"]
    assert dataclasses.replace(fixture.manifest, tensors=toy_manifest().tensors) == toy_manifest()
    assert fixture.manifest.tensors.file == "one-step.safetensors"
    assert (fixture.id, fixture.manifest.system) == (TOY_ID, "toy")
    for name, tensor in toy_tensors().items():
        assert fixture.tensors[name].dtype == tensor.dtype
        assert torch.equal(fixture.tensors[name], tensor)
    assert fixture.manifest.output("step").noise_floor_max == 2e-7


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_toy(tmp_path / "a")
    write_toy(tmp_path / "b")

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_view_is_stored_as_what_it_shows(tmp_path: Path) -> None:
    transposed = torch.arange(6.0).reshape(2, 3).T

    path = write_fixture(tmp_path, toy_manifest(), {"inputs": transposed})

    assert torch.equal(read_fixture(path).tensors["inputs"], transposed)


def test_a_manifest_is_read_without_torch_tensors(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    path.with_suffix(".safetensors").unlink()

    assert read_fixture(path).manifest.title == "one step"


def test_the_digest_covers_name_dtype_shape_and_bytes() -> None:
    tensor = torch.zeros(2, 3)
    variants = [("x", tensor), ("y", tensor), ("x", tensor.reshape(3, 2)), ("x", tensor.int()), ("x", tensor + 1)]

    assert len({tensor_digest(name, value) for name, value in variants}) == len(variants)
    assert tensor_digest("x", tensor)[:16] == "ab7c296af1e47625"


# --- strict parsing --------------------------------------------------------------------------------------------------


def removed(*keys: str) -> Callable[[dict[str, Any]], object]:
    def edit(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return edit


def changed(value: Any, *keys: Any) -> Callable[[dict[str, Any]], object]:
    def edit(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed(1, "extra"), "unknown key 'extra'; allowed: environment, float64_tolerance"),
        (changed(1, "paper", "doi"), "paper: unknown key 'doi'; allowed: arxiv, location, title"),
        (changed(1, "tape", "draws", 0, "device"), r"tape: draws\[0\]: unknown key 'device'"),
        (changed("../x.safetensors", "tensors", "file"), "'../x.safetensors'; allowed: 'one-step.safetensors'"),
        (removed("title"), "missing key 'title'"),
        (removed("reference", "modified"), "reference: missing key 'modified'"),
        (removed("weights"), "missing key 'weights'"),
        (changed(7, "title"), "title: expected str, found int"),
        (changed("3", "tape", "seed"), "tape: seed: expected int, found str"),
        (changed(True, "tape", "seed"), "tape: seed: expected int, found bool"),
        (changed(1, "repeatable"), "repeatable: expected bool, found int"),
        (changed("1e-7", "float64_tolerance"), "float64_tolerance: expected a number, found str"),
        (changed(True, "float64_tolerance"), "float64_tolerance: expected a number, found bool"),
        (changed("x", "outputs"), "outputs: expected a list, found str"),
        (changed(["a", 2], "reference", "functions"), r"reference: functions\[1\]: expected str, found int"),
        (changed([], "information"), "information: expected an object, found list"),
        (changed({"steps": "1"}, "information"), "information: steps: expected a number, found str"),
        (changed([], "paper"), "paper: expected an object, found list"),
        (changed("network", "kind"), "kind: 'network' is not one of 'scheduler', 'model', 'pipeline'"),
        (changed("last", "outputs", 1, "level"), r"outputs\[1\]: level: 'last' is not one of 'table', 'step'"),
        (changed({"rule": "x", "seed": 0}, "weights"), "weights: missing key 'overrides'"),
    ],
)
def test_a_manifest_that_deviates_is_refused_by_key(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write_toy(tmp_path)
    edit_json(path, edit)

    with pytest.raises(FixtureError, match=message) as caught:
        read_manifest(path)

    assert str(caught.value).startswith(str(path))


def test_a_whole_number_is_accepted_where_a_number_is_wanted(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    edit_json(path, changed(1, "float64_tolerance"))

    assert read_manifest(path).float64_tolerance == 1.0


@pytest.mark.parametrize(("version", "shown"), [(2, "2"), (0, "0"), ("1", "'1'"), (None, "None")])
def test_another_format_version_is_refused(tmp_path: Path, version: object, shown: str) -> None:
    path = write_toy(tmp_path)
    edit_json(path, changed(version, "format"))

    with pytest.raises(FixtureError, match=f"fixture format {shown}; this version reads format 1"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"[]", "fixture format 'list'"), (b"{", "not a JSON manifest"), (b"\xff\xfe", "not a JSON manifest")],
)
def test_what_is_not_a_json_object_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "case.json"
    path.write_bytes(text)

    with pytest.raises(FixtureError, match=message):
        read_manifest(path)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(FixtureError, match=r"nowhere\.json: no such fixture manifest"):
        read_manifest(tmp_path / "nowhere.json")


# --- damage ----------------------------------------------------------------------------------------------------------


def test_missing_tensors_are_named_with_their_hash(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    expected = read_manifest(path).tensors.sha256
    path.with_suffix(".safetensors").unlink()

    with pytest.raises(FixtureError, match=rf"one-step\.safetensors: tensors are missing \(expected.*{expected[:16]}"):
        read_fixture(path).tensors  # noqa: B018


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    file = write_toy(tmp_path).with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:kept])

    with pytest.raises(FixtureError, match=r"one-step\.safetensors: not a readable safetensors file"):
        read_fixture(file.with_suffix(".json")).tensors  # noqa: B018


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    file = path.with_suffix(".safetensors")
    payload = file.read_bytes()

    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        with pytest.raises(FixtureError, match=r"one-step\.safetensors"):
            read_fixture(path).tensors  # noqa: B018


def test_a_flipped_bit_names_its_tensor(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    tensors = toy_tensors()
    tensors["times"] = torch.nextafter(tensors["times"], torch.tensor(torch.inf, dtype=torch.float64))
    save_file(tensors, path.with_suffix(".safetensors"))

    with pytest.raises(FixtureError, match=r"changed \['times'\], missing \[\]"):
        read_fixture(path).tensors  # noqa: B018


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    save_file({"inputs": toy_tensors()["inputs"]}, path.with_suffix(".safetensors"))

    with pytest.raises(FixtureError, match=r"changed \[\], missing \['times'\]"):
        read_fixture(path).tensors  # noqa: B018


def test_an_extra_tensor_is_named(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    save_file({**toy_tensors(), "smuggled": torch.zeros(1)}, path.with_suffix(".safetensors"))

    with pytest.raises(FixtureError, match=r"changed \['smuggled'\]"):
        read_fixture(path).tensors  # noqa: B018


def test_the_right_tensors_in_another_file_are_refused(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    file = path.with_suffix(".safetensors")
    file.write_bytes(save(toy_tensors(), metadata={"made": "elsewhere"}))
    assert torch.equal(load_file(file)["inputs"], toy_tensors()["inputs"])

    with pytest.raises(FixtureError, match=r"sha256 is .*, the manifest says"):
        read_fixture(path).tensors  # noqa: B018


# --- interrupted writes ----------------------------------------------------------------------------------------------


class Interruption(BaseException):
    """Like KeyboardInterrupt, not an Exception."""


def interrupted_at(monkeypatch: pytest.MonkeyPatch, function: str, number: int) -> None:
    """The `number`-th call of os.<function> is interrupted."""
    original, calls = getattr(os, function), []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number:
            raise Interruption
        return original(*arguments)

    monkeypatch.setattr(conformance.files.os, function, interrupted)


@pytest.mark.parametrize(("function", "number"), [("replace", 1), ("replace", 2), ("fsync", 1), ("fsync", 2)])
@pytest.mark.parametrize("exists", [True, False])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, exists: bool
) -> None:
    if exists:
        write_toy(tmp_path)
    before = contents(tmp_path)
    interrupted_at(monkeypatch, function, number)

    with pytest.raises(Interruption):
        write_fixture(tmp_path, toy_manifest(title="another"), {"inputs": torch.ones(5)})

    assert contents(tmp_path) == before


def test_a_manifest_that_is_not_json_leaves_what_was_there(tmp_path: Path) -> None:
    write_toy(tmp_path)
    before = contents(tmp_path)

    with pytest.raises(TypeError):
        write_toy(tmp_path, information={"steps": torch.zeros(1)})

    assert contents(tmp_path) == before


def test_the_manifest_is_written_for_readers(tmp_path: Path) -> None:
    lines = write_toy(tmp_path).read_text(encoding="utf-8").splitlines()

    assert ' "paper": { "title": "A Paper", "arxiv": "2010.02502", "location": "equation 12" },' in lines
    assert max(map(len, lines)) <= 130
    assert json.loads("\n".join(lines))["id"] == TOY_ID
