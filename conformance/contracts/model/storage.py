"""Contracts of saving and loading: every bit comes back, and weights that do not fit are never ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_same
from conformance.contracts.model.driver import ModelUnderTest
from conformance.contracts.result import NotApplicable, Violation

State = dict[str, torch.Tensor]


def save_and_load_keep_every_bit(subject: ModelUnderTest, given: Given) -> None:
    """A saved and loaded network has the same keys, the same bits and the same output, and is in evaluation mode."""
    inputs = subject.make()
    with subject.saved() as folder:
        loaded = subject.load(folder)
    before, after = subject.live.state_dict(), loaded.state_dict()
    if before.keys() != after.keys():
        raise Violation(f"other keys after loading: {', '.join(sorted(before.keys() ^ after.keys())[:4])}")
    for key, value in before.items():
        require_same(after[key], value, f"{key} after loading")
    if loaded.training:
        raise Violation("the loaded network is in training mode")
    require_same(subject.run(loaded, inputs), subject.run(subject.live, inputs), "the output of the loaded network")


def config_round_trip_keeps_the_network(subject: ModelUnderTest, given: Given) -> None:
    """The configuration survives JSON, and makes a network of the same parameters that computes the same with the same
    weights."""
    inputs = subject.make()
    config = json.loads(json.dumps(subject.config()))
    twin = subject.cls.from_config(config)  # type: ignore[attr-defined]
    again = json.loads(json.dumps(dict(twin.config)))
    changed = [name for name in config if config[name] != again.get(name)]
    if changed:
        name = changed[0]
        raise Violation(f"{name} was {config.get(name)!r} and is {again.get(name)!r} after from_config")
    try:
        twin.load_state_dict(subject.live.state_dict())
    except RuntimeError as error:
        raise Violation(f"a network made from the configuration has other parameters: {error}") from error
    found = subject.run(twin.eval(), inputs)
    require_same(found, subject.run(subject.live, inputs), "the output of the network made from the configuration")


def missing_weights_raise(subject: ModelUnderTest, given: Given) -> None:
    """A weight file that lacks a parameter is an error, not a network with random numbers in its place."""

    def drop(state: State) -> str:
        name = sorted(state)[0]
        del state[name]
        return f"{name} missing from the file"

    _require_refused(subject, drop)


def unused_weights_raise(subject: ModelUnderTest, given: Given) -> None:
    """A weight file with a tensor that the network does not have is an error: it belongs to another network."""

    def add(state: State) -> str:
        state["not_a_layer.weight"] = torch.ones(2)
        return "an unknown not_a_layer.weight in the file"

    _require_refused(subject, add)


def misshapen_weights_raise(subject: ModelUnderTest, given: Given) -> None:
    """A weight of another shape is an error, also where it could be broadcast."""

    def reshape(state: State) -> str:
        name = next(name for name in sorted(state) if state[name].numel() > 1)
        shape = tuple(state[name].shape)
        state[name] = state[name].reshape(-1)[:1].clone()
        return f"{name} of shape (1,) instead of {shape}"

    _require_refused(subject, reshape)


def _require_refused(subject: ModelUnderTest, spoil: Callable[[State], str]) -> None:
    with subject.saved() as folder:
        what = _spoiled(folder, spoil)
        try:
            subject.load(folder)
        except Exception:  # noqa: BLE001 - how it refuses is the class's own affair
            return
        raise Violation(f"from_pretrained accepts {what}")


def _spoiled(folder: Path, spoil: Callable[[State], str]) -> str:
    """Change the only weight file of the folder; returns what was done."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise NotApplicable(f"save_pretrained wrote {len(files)} safetensors files, one was expected")
    with safe_open(files[0], "pt") as file:
        metadata = file.metadata()
    state = load_file(files[0])
    what = spoil(state)
    save_file(state, files[0], metadata=metadata)
    return what


CONTRACTS = (
    Contract(save_and_load_keep_every_bit),
    Contract(config_round_trip_keeps_the_network),
    Contract(missing_weights_raise),
    Contract(unused_weights_raise),
    Contract(misshapen_weights_raise),
)
