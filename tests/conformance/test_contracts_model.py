"""Contracts of networks: a sound network keeps all of them, each is broken by one that was broken for it."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import torch
from broken_networks import BROKEN, SoundNetwork

from conformance.contracts.checks import check_model
from conformance.contracts.model import CONTRACTS
from conformance.contracts.model.driver import ModelUnderTest
from conformance.contracts.result import Status
from diffusers_ref import UNet2DModel

BY_NAME = {contract.name: contract for contract in CONTRACTS}


@lru_cache
def sound() -> ModelUnderTest:
    return ModelUnderTest(SoundNetwork())


@pytest.mark.parametrize("name", BY_NAME)
def test_a_sound_network_keeps_the_contract(name):
    result = BY_NAME[name].hold(sound())

    assert result.status is Status.PASSED, result.reason


@pytest.mark.parametrize(
    ("name", "broken", "reason"),
    [pytest.param(name, *each, id=f"{name}-{each[0].__name__}") for name in BROKEN for each in BROKEN[name]],
)
def test_a_broken_network_fails_by_the_contract_that_names_its_fault(name, broken, reason):
    result = BY_NAME[name].hold(ModelUnderTest(broken()))

    assert result.status is Status.FAILED
    assert re.search(reason, result.reason)


def test_every_contract_has_a_network_that_breaks_it():
    assert BROKEN.keys() == BY_NAME.keys()


def test_our_network_keeps_every_contract_that_applies_to_it():
    network = UNet2DModel(
        sample_size=4,
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        num_class_embeds=3,
    )

    results = check_model(network)

    assert [result.reason for result in results if result.status is Status.FAILED] == []
    missing = [result.name for result in results if result.status is Status.NOT_APPLICABLE]
    assert missing == ["masked_tokens_do_not_matter", "attention_masks_matter"]


class Mixer(torch.nn.Module):
    """A network whose inputs follow from no configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(6, 6)

    def forward(self, x, condition):
        return self.mix(x) * condition["scale"]


def test_inputs_that_are_not_found_can_be_given():
    unknown = {result.name: result for result in check_model(Mixer())}
    inputs = {"x": torch.randn(2, 6), "condition": {"scale": torch.ones(2, 1)}}
    known = {result.name: result for result in check_model(Mixer(), inputs=inputs)}

    assert unknown["evaluates"].status is Status.NOT_APPLICABLE
    assert "name one with inputs={...}" in unknown["evaluates"].reason
    assert known["batch_equals_singles"].status is Status.PASSED
    assert known["fractional_times_matter"].reason == "forward takes no timestep"


class TimeFirst(torch.nn.Module):
    """A network whose first argument is the time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, t, x):
        return self.conv(x) * (1 + t.reshape(-1, 1, 1, 1) / 1000)


def test_the_time_may_come_first():
    results = {result.name: result for result in check_model(TimeFirst())}

    assert results["evaluates"].status is results["fractional_times_matter"].status is Status.PASSED


def test_inputs_that_do_not_work_are_the_finding_of_one_contract_only():
    results = {result.name: result for result in check_model(Mixer(), inputs={"x": torch.randn(2, 5), "condition": {}})}

    assert [name for name, result in results.items() if result.status is Status.FAILED] == ["evaluates"]
    assert "there is no call that works" in results["evaluation_repeats"].reason


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="str is no network"):
        check_model("unet")
    with pytest.raises(TypeError, match=r"forward has no y; inputs are called by name: x, condition"):
        check_model(Mixer(), inputs={"y": torch.zeros(1)})


def test_hf_loads_weights_that_do_not_fit_by_name():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=4,
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    subject = ModelUnderTest(network)
    names = ("missing_weights_raise", "unused_weights_raise", "misshapen_weights_raise", "half_precision_is_close")

    statuses = [BY_NAME[name].hold(subject).status for name in names]

    assert statuses == [Status.FAILED, Status.FAILED, Status.PASSED, Status.PASSED]
