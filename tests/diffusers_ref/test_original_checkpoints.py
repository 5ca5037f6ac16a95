from __future__ import annotations

import collections
import json
import logging
import os

import numpy as np
import pytest
import torch
from original_examples import ERMONGROUP, EXAMPLES, HOJONATHANHO, LUPINGLIU_DDIM, OPENAI, original_state
from safetensors.torch import save_file

from diffusers_ref import ConfigError, LoadingError, WeightsError
from diffusers_ref.original import get_format, key_map, load_single_file
from diffusers_ref.original.key_rules import convert

DDIM = "ermongroup/ddim"
TF = "hojonathanho/diffusion"


def parallel(state):
    """As DataParallel names parameters."""
    return collections.OrderedDict((f"module.{name}", value) for name, value in state.items())


def same(unet, format, config, state) -> bool:
    module, ours = get_format(format), unet.state_dict()
    expected = convert(state, key_map(module, module.parse_config(config)), ours, "the state")
    return expected.keys() == ours.keys() and all(torch.equal(ours[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("format", "config"), EXAMPLES.values(), ids=EXAMPLES)
def test_a_plain_state_of_every_format(format, config, tmp_path):
    state = original_state(format, config)
    if format == TF:
        file = tmp_path / "model.npz"
        np.savez(file, **{name: value.numpy() for name, value in state.items()})
    else:
        file = tmp_path / "model.pt"
        torch.save(state, file)
    single = load_single_file(file, config)
    assert single.format == format and same(single.unet, format, config, state)
    assert single.scheduler_configs and single.pixel_rounding in ("round", "truncate")
    assert not single.unet.training


def test_training_lists_of_the_ddim_authors(tmp_path, caplog):
    raw, ema = (original_state(DDIM, ERMONGROUP, seed) for seed in (1, 2))
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    optimiser = {"state": {0: moments}, "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999), "params": [0]}]}  # Adam's
    config = tmp_path / "cifar10.yml"
    config.write_text(json.dumps(ERMONGROUP))
    file = tmp_path / "ckpt.pth"
    torch.save([parallel(raw), optimiser, 12, 3400, ema], file)
    assert same(load_single_file(file, config).unet, DDIM, ERMONGROUP, ema)
    assert same(load_single_file(str(file), str(config), use_ema=False).unet, DDIM, ERMONGROUP, raw)
    assert not caplog.records

    torch.save([parallel(raw), optimiser, 12, 3400], file)
    with caplog.at_level(logging.WARNING):
        assert same(load_single_file(file, config).unet, DDIM, ERMONGROUP, raw)
    assert "holds no moving average" in caplog.text


def test_files_of_the_pndm_authors(tmp_path):
    state = original_state("luping-liu/PNDM", LUPINGLIU_DDIM)
    for name, checkpoint in {
        "ema_cifar10.ckpt": state,
        "wrapped.ckpt": parallel(state),
        "train.ckpt": [parallel(state), {}, 1, 2],
    }.items():
        torch.save(checkpoint, tmp_path / name)
        single = load_single_file(tmp_path / name, LUPINGLIU_DDIM, use_ema=name != "train.ckpt")
        assert same(single.unet, "luping-liu/PNDM", LUPINGLIU_DDIM, state)


def test_variables_of_a_tensorflow_checkpoint(tmp_path):
    raw, ema = (original_state(TF, HOJONATHANHO, seed) for seed in (1, 2))
    variables = {"global_step": np.int64(7), "beta1_power": np.float32(0.9)}
    for name, value in raw.items():
        variables[name] = value.numpy()
        variables[f"{name}/Adam"] = variables[f"{name}/Adam_1"] = np.zeros(1, np.float32)
        variables[f"{name}/ExponentialMovingAverage"] = ema[name].numpy()
    file = tmp_path / "model.npz"
    np.savez(file, **variables)
    assert same(load_single_file(file, HOJONATHANHO).unet, TF, HOJONATHANHO, ema)
    assert same(load_single_file(file, HOJONATHANHO, use_ema=False).unet, TF, HOJONATHANHO, raw)

    in_memory = {"global_step": np.int64(7)} | {name: value.numpy() for name, value in raw.items()}
    assert get_format(TF).extract_state(in_memory).keys() == raw.keys()
    np.savez(file, **{f"{name}:0": value.numpy() for name, value in raw.items()})  # as TensorFlow prints names
    assert same(load_single_file(file, HOJONATHANHO).unet, TF, HOJONATHANHO, raw)


def test_safetensors_and_an_explicit_format(tmp_path):
    state = original_state("openai/improved-diffusion", OPENAI)
    file = tmp_path / "ema.safetensors"
    save_file(state, file)
    single = load_single_file(file, OPENAI, original_format="openai/improved-diffusion")
    assert same(single.unet, "openai/improved-diffusion", OPENAI, state)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("place", ["alone", "in a list", "in an array"])
def test_nothing_in_a_checkpoint_is_executed(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if place == "in an array":
        file, config = tmp_path / "model.npz", HOJONATHANHO
        np.savez(file, **{"model/temb/dense0/W": np.array([Payload()], dtype=object)})
    else:
        file, config = tmp_path / "ckpt.pth", ERMONGROUP
        torch.save(Payload() if place == "alone" else [original_state(DDIM, ERMONGROUP), Payload()], file)
    with pytest.raises(WeightsError):
        load_single_file(file, config)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ([], r"is an empty list, not \[model, optimiser"),
        (3, "must map parameter names to tensors, got a int"),
        ({}, "got a dict of 0"),
        ({"model": {"conv_in.weight": torch.zeros(1)}}, "'model' is a dict of 1"),
        ([[1, 2]], "entry 0 of the checkpoint must map parameter names to tensors, got a list of 2"),
        ({"weight": torch.zeros(1)}, "does not hold its network: its parameters begin with weight"),
    ],
)
def test_other_contents_are_described(checkpoint, message, tmp_path):
    file = tmp_path / "ckpt.pth"
    torch.save(checkpoint, file)
    with pytest.raises(WeightsError, match=message):
        load_single_file(file, ERMONGROUP)


def test_a_checkpoint_of_another_format_is_recognised(tmp_path):
    file = tmp_path / "ema.pt"
    torch.save(original_state("openai/improved-diffusion", OPENAI), file)
    with pytest.raises(WeightsError, match=r"one of ermongroup/ddim.* named as in .*openai/improved-diffusion"):
        load_single_file(file, ERMONGROUP)


def test_contradictions_name_the_file(tmp_path):
    file = tmp_path / "ckpt.pth"
    state = original_state(DDIM, ERMONGROUP)
    del state["mid.block_1.norm1.weight"]
    torch.save(state, file)
    with pytest.raises(WeightsError, match=r"ckpt\.pth contradicts its config.*\n.*\n    mid.block_1.norm1.weight$"):
        load_single_file(file, ERMONGROUP)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(LoadingError, match=r"there is no checkpoint file .*none\.pt"):
        load_single_file(tmp_path / "none.pt", ERMONGROUP)
    for name in ("a.pt", "a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(WeightsError, match=name):
            load_single_file(tmp_path / name, ERMONGROUP)
    with pytest.raises(ConfigError, match="original_config is needed"):
        load_single_file(tmp_path / "a.pt", None)
