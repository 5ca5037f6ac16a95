from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from diffusers_ref import LoadingError, WeightsError
from diffusers_ref.loading import (
    TRANSFORMERS_WEIGHTS,
    choose_weights,
    is_network_weight,
    is_weight_file,
    list_variants,
    load_folder_weights,
    load_weights,
    resolve_folder,
)

STEM = "diffusion_pytorch_model"
SAFE, BIN = f"{STEM}.safetensors", f"{STEM}.bin"
SHARDS = [f"{STEM}-00001-of-00002.safetensors", f"{STEM}-00002-of-00002.safetensors"]
HALF_SHARDS = [f"{STEM}.fp16-00001-of-00002.safetensors", f"{STEM}.fp16-00002-of-00002.safetensors"]
OLD_HALF_SHARDS = [f"{STEM}-00001-of-00002.fp16.bin", f"{STEM}-00002-of-00002.fp16.bin"]


@pytest.mark.parametrize(
    ("names", "variant", "chosen"),
    [
        ([SAFE, BIN, "config.json"], None, [SAFE]),
        ([BIN, "config.json"], None, [BIN]),
        ([SAFE, f"{STEM}.fp16.safetensors"], "fp16", [f"{STEM}.fp16.safetensors"]),
        ([SAFE], "fp16", []),
        ([f"{STEM}.fp16.safetensors"], None, []),
        ([BIN, *SHARDS, f"{SAFE}.index.json"], None, [f"{SAFE}.index.json", *SHARDS]),
        ([SAFE, *HALF_SHARDS, f"{SAFE}.index.fp16.json"], "fp16", [f"{SAFE}.index.fp16.json", *HALF_SHARDS]),
        ([*OLD_HALF_SHARDS, f"{STEM}.fp16.bin.index.json"], "fp16", [f"{STEM}.fp16.bin.index.json", *OLD_HALF_SHARDS]),
        (["model.safetensors", "flax_model.msgpack"], None, []),
    ],
)
def test_which_weights_are_chosen(names, variant, chosen):
    assert choose_weights(names, variant) == chosen


def test_transformers_weights_have_other_names():
    names = ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors"]
    assert choose_weights(names, kinds=TRANSFORMERS_WEIGHTS) == ["model.safetensors"]
    assert list_variants(names, TRANSFORMERS_WEIGHTS) == ["fp16"]


def test_which_files_an_old_save_left():
    plain = [SAFE, BIN, *SHARDS, f"{SAFE}.index.json"]
    half = [f"{STEM}.fp16.safetensors", *HALF_SHARDS, *OLD_HALF_SHARDS, f"{SAFE}.index.fp16.json"]
    others = ["config.json", "model.safetensors", "README.md"]
    assert [name for name in plain + half + others if is_network_weight(name, None)] == plain
    assert [name for name in plain + half + others if is_network_weight(name, "fp16")] == half
    assert all(is_weight_file(name) for name in plain + half)
    assert not any(map(is_weight_file, ["config.json", "vocab.txt"]))


def test_safetensors_and_pickled_tensors_load(tmp_path):
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.float64)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.bin")
    torch.save(state, tmp_path / "w.ckpt")
    for name in ("w.safetensors", "w.bin", "w.ckpt"):
        loaded = load_weights(tmp_path / name)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) and loaded[key].dtype == state[key].dtype for key in state)


class Payload:
    """An object that would touch a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"a": Payload(tmp_path / "hacked")}, tmp_path / "w.bin")
    (tmp_path / "old.bin").write_bytes(pickle.dumps(Payload(tmp_path / "hacked"), protocol=2))
    for name in ("w.bin", "old.bin"):
        with pytest.raises(WeightsError, match=f"{name} is damaged or holds more than tensors"):
            load_weights(tmp_path / name)
    assert not (tmp_path / "hacked").exists()


def test_unreadable_weights(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not a header")
    (tmp_path / "w.bin").write_bytes(b"neither")
    (tmp_path / "w.npy").touch()
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "nested.pt")
    for name, message in [
        ("w.safetensors", "not a readable safetensors file"),
        ("w.bin", "damaged"),
        ("w.npy", "unknown kind of weight file; allowed: .safetensors"),
        ("nested.pt", "flat mapping"),
    ]:
        with pytest.raises(WeightsError, match=message):
            load_weights(tmp_path / name)
    with pytest.raises(LoadingError, match="no weight file"):
        load_weights(tmp_path / "absent.bin")


def write_shards(folder, weight_map):
    for number, name in enumerate(SHARDS):
        save_file({f"k{number}": torch.full((1,), float(number))}, folder / name)
    (folder / f"{SAFE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_joined_by_their_index(tmp_path):
    write_shards(tmp_path, {"k0": SHARDS[0], "k1": SHARDS[1]})
    state, source = load_folder_weights(tmp_path)
    assert {key: value.item() for key, value in state.items()} == {"k0": 0.0, "k1": 1.0}
    assert source.name == f"{SAFE}.index.json"


@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        ({"k0": SHARDS[0], "k1": SHARDS[0]}, WeightsError, "disagree on 1 keys: k1"),
        ({"k0": SHARDS[0], "k1": "absent.safetensors"}, LoadingError, "no weight file .*absent"),
        ({"k0": "../outside.safetensors"}, LoadingError, "without separators"),
        (["k0"], WeightsError, "not an index of shards"),
    ],
)
def test_an_index_that_lies(tmp_path, weight_map, error, message):
    write_shards(tmp_path, weight_map)
    with pytest.raises(error, match=message):
        load_folder_weights(tmp_path)


def test_a_folder_without_weights_says_what_it_has(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / f"{STEM}.fp16.safetensors")
    with pytest.raises(LoadingError, match=rf"expected one of {SAFE}, {BIN}; variants present: fp16"):
        load_folder_weights(tmp_path)


def test_a_local_folder_and_its_subfolder(tmp_path):
    (tmp_path / "unet").mkdir()
    assert resolve_folder(tmp_path) == tmp_path
    assert resolve_folder(str(tmp_path), subfolder="unet") == tmp_path / "unet"
    with pytest.raises(LoadingError, match="no subfolder 'vae'"):
        resolve_folder(tmp_path, subfolder="vae")


@pytest.mark.parametrize("subfolder", ["..", "a/b", "/etc", "a\\b", "C:"])
def test_a_subfolder_stays_inside(tmp_path, subfolder):
    with pytest.raises(LoadingError, match="without separators or"):
        resolve_folder(tmp_path, subfolder=subfolder)


def test_names_that_are_neither_folder_nor_repository(tmp_path):
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(LoadingError, match="is a file, a folder is needed"):
        resolve_folder(tmp_path / "model.ckpt")
    for name in ("./absent", "a/b/c", "/absent", tmp_path / "absent"):
        with pytest.raises(LoadingError, match="there is no folder"):
            resolve_folder(name)
