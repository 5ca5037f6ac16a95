from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from tiny_pipelines import tiny_unet

from diffusers_ref import LoadingError, ModelMixin, UNet2DModel, WeightsError, modeling, register_to_config
from diffusers_ref.modeling import load_state_dict_strictly, shapes_only

SAFE = "diffusion_pytorch_model.safetensors"


class Net(ModelMixin):
    @register_to_config
    def __init__(self, width=4, extra=False):
        super().__init__()
        self.first = torch.nn.Linear(3, width)
        self.second = torch.nn.Linear(width, 2)
        self.register_buffer("count", torch.tensor([7]))
        if extra:
            self.register_buffer("table", torch.ones(2), persistent=False)

    @classmethod
    def rename_keys(cls, state):
        return {key.replace("premier.", "first."): value for key, value in state.items()}


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_round_trip_through_safetensors(tmp_path):
    net = Net(width=5)
    net.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", SAFE]
    with safe_open(tmp_path / SAFE, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (tmp_path / SAFE).stat().st_mode == (tmp_path / "config.json").stat().st_mode
    state = torch.random.get_rng_state()
    again = Net.from_pretrained(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state), "loading must not draw random numbers"
    assert same_weights(net, again) and again.config == net.config and not again.training
    again.first.weight.sum().backward()  # The weights are ordinary parameters.


def test_shapes_without_values():
    with shapes_only():
        net, table = Net(), torch.nn.Embedding(5, 3)
        assert torch.nn.init.normal_(torch.zeros(2, device="cpu")).tolist() == [0, 0], "nothing is initialised"
    assert {key: value.shape for key, value in net.state_dict().items()} == {
        key: value.shape for key, value in Net().state_dict().items()
    }
    assert net.device.type == table.weight.device.type == "meta" and net.dtype == torch.float32


def test_shards_replace_a_single_file_and_the_reverse(tmp_path):
    net = tiny_unet()
    net.save_pretrained(tmp_path)
    net.save_pretrained(tmp_path, max_shard_size="20KB")
    names = {path.name for path in tmp_path.iterdir()}
    assert SAFE not in names and f"{SAFE}.index.json" in names and len(names) > 3
    index = json.loads((tmp_path / f"{SAFE}.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in net.state_dict().values())
    assert same_weights(net, UNet2DModel.from_pretrained(tmp_path))

    tiny_unet(seed=1).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", SAFE}
    assert same_weights(tiny_unet(seed=1), UNet2DModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("max_shard_size", ["10GB", 60])
def test_variants_live_side_by_side(tmp_path, max_shard_size):
    net, half = Net(), Net().half()
    net.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size=max_shard_size)
    assert same_weights(Net.from_pretrained(tmp_path), net)
    loaded = Net.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert same_weights(loaded, half) and loaded.dtype == torch.float16
    with pytest.raises(LoadingError, match="no weights of variant 'bf16'; present: fp16"):
        Net.from_pretrained(tmp_path, variant="bf16")


def test_pickled_weights_and_old_spellings_load(tmp_path):
    net = Net()
    net.save_config(tmp_path)
    old = {key.replace("first.", "premier."): value for key, value in net.state_dict().items()}
    torch.save(old, tmp_path / "diffusion_pytorch_model.bin")
    assert same_weights(Net.from_pretrained(tmp_path), net)


def test_dtype_of_loaded_weights(tmp_path):
    Net().half().save_pretrained(tmp_path)
    assert Net.from_pretrained(tmp_path).dtype == torch.float32
    double = Net.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert double.dtype == torch.float64 and double.count.dtype == torch.int64
    assert double.device == torch.device("cpu")


def test_options_can_be_overridden_and_the_weights_must_still_fit(tmp_path):
    Net(width=4).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"first.weight is \(4, 3\), the network needs \(6, 3\)"):
        Net.from_pretrained(tmp_path, width=6)


def test_the_report_lists_what_does_not_fit():
    net = Net()
    state = net.state_dict()
    bias = state.pop("first.bias")
    state |= {f"ghost.{number}": bias for number in range(10)}
    state["second.weight"] = torch.zeros(2, 5)
    with pytest.raises(WeightsError) as caught:
        load_state_dict_strictly(net, state, "w.bin")
    assert str(caught.value) == (
        "the weights of w.bin do not fit Net (5 keys):\n"
        "  keys missing: 1\n    first.bias\n"
        "  keys unknown to the network: 10\n"
        + "".join(f"    ghost.{number}\n" for number in range(8))
        + "    ... and 2 more\n"
        "  tensors of another shape: 1\n    second.weight is (2, 5), the network needs (2, 4)"
    )


def test_a_network_on_a_device_keeps_its_dtype():
    net, source = Net().double(), Net()
    load_state_dict_strictly(net, source.state_dict(), "memory")
    assert net.dtype == torch.float64 and torch.equal(net.first.weight, source.first.weight.double())


def test_buffers_that_are_not_saved_are_refused(tmp_path):
    Net(extra=True).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="buffers must be saved with the weights, these are not: table"):
        Net.from_pretrained(tmp_path)


def test_an_interrupted_save_leaves_the_previous_network(tmp_path, monkeypatch):
    old, new = Net(), Net(width=9)
    old.save_pretrained(tmp_path / "net")

    def interrupt(state, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(modeling, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(tmp_path / "net")
    assert same_weights(Net.from_pretrained(tmp_path / "net"), old)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("size", ["0", "1TB2", -1, "much"])
def test_shard_sizes_are_checked(tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size must be a positive number of bytes"):
        Net().save_pretrained(tmp_path / "net", max_shard_size=size)


def test_a_network_without_parameters_has_a_device_and_a_dtype():
    class Empty(ModelMixin):
        @register_to_config
        def __init__(self):
            super().__init__()

    assert Empty().device == torch.device("cpu") and Empty().dtype == torch.float32
