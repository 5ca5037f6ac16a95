"""Explaining a network: the module that a fault was planted in is the one that is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from planted import planted
from typer.testing import CliRunner

import diffusers_ref.models.layers
import diffusers_ref.models.unet_2d
from conformance.cli import app
from conformance.explain import Explanation, explain
from conformance.implementations.reference import ReferenceImplementation
from conformance.library import open_library
from conformance.replay import Settings

CASE = "ddim/network-pooling"


class Damaged(ReferenceImplementation):
    """The network with one of its modules (by its name in the original) changed."""

    def __init__(self, module: str, change: Callable[[Any], None]) -> None:
        super().__init__()
        self._module, self._change = module, change

    def model(self, subject: Any, state: Any) -> torch.nn.Module:
        model = super().model(subject, state)
        self._change(model.get_submodule(self.tap_modules(subject)[self._module]))
        return model


def larger_weights(module: Any) -> None:
    with torch.no_grad():
        module.weight.mul_(1 + 1e-3)


def another_epsilon(module: Any) -> None:
    module.eps = 1e-3


def explained(implementation: ReferenceImplementation, case: str = CASE) -> Explanation:
    return explain(open_library().get(case), implementation, Settings())


@pytest.mark.parametrize(
    ("module", "change", "last", "inputs"),
    [
        ("conv_in", larger_weights, "temb.dense.1", ("the input",)),
        ("down.0.block.0.norm1", another_epsilon, "conv_in", ("conv_in",)),
        ("mid.attn_1.q", larger_weights, "mid.attn_1.norm", ("mid.attn_1.norm",)),
    ],
)
def test_a_module_whose_input_is_anothers_output(
    module: str, change: Callable[[Any], None], last: str, inputs: tuple[str, ...]
) -> None:
    found = explained(Damaged(module, change)).module

    assert found is not None
    assert (found.module, found.last_agreeing, found.inputs, found.around) == (module, last, inputs, "")


@pytest.mark.parametrize("module", ["down.0.block.0.norm2", "down.0.block.0.conv2"])
def test_a_module_whose_input_is_computed_between_modules(module: str) -> None:
    found = explained(Damaged(module, larger_weights)).module

    assert found is not None
    assert (found.module, found.around) == (module, "down.0.block.0")


def test_arithmetic_between_modules_is_said_to_be_there() -> None:
    faulty = planted(diffusers_ref.models.layers, "torch.bmm(q.transpose(1, 2), k)", "torch.bmm(k.transpose(1, 2), q)")
    with patch.object(diffusers_ref.models.unet_2d, "Attention", faulty.Attention):
        found = explained(ReferenceImplementation(), "ddim/network-tiny")
        result = CliRunner().invoke(app, ["explain", "ddim/network-tiny"])

    assert found.module is not None
    assert found.module.module == "down.1.attn.0.proj_out"
    assert found.module.around == "down.1.attn.0"
    assert (found.module.last_agreeing, found.trials) == ("down.1.attn.0.v", 0)
    assert "first divergent module: down.1.attn.0.proj_out" in result.stdout
    assert "the fault is in this module, or in what down.1.attn.0 computes before it" in result.stdout


def test_a_fault_below_the_float32_floor_is_localised_in_float64() -> None:
    def slightly(module: Any) -> None:
        with torch.no_grad():
            module.weight.mul_(1 + 1e-6)

    found = explained(Damaged("mid.attn_1.k", slightly)).module

    assert found is not None
    assert (found.module, found.output) == ("mid.attn_1.k", "tap:mid.attn_1.k.f64")


def test_after_the_last_module() -> None:
    class Scaled(ReferenceImplementation):
        def model(self, subject: Any, state: Any) -> torch.nn.Module:
            model = super().model(subject, state)
            model.register_forward_hook(lambda module, inputs, output: _scaled(output))
            return model

    explanation = explained(Scaled())
    found = explanation.module

    assert found is not None
    assert (found.module, found.last_agreeing) == ("", "conv_out")
    assert explanation.trials == 0  # the causes that are tried are those of samplers


def _scaled(output: Any) -> Any:
    output.sample = output.sample * 1.01
    return output
