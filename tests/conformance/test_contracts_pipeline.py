"""Contracts of pipelines: a sound pipeline keeps all of them, each is broken by one that was broken for it."""

from __future__ import annotations

import random
import re
from functools import lru_cache

import numpy as np
import pytest
import torch
from broken_pipelines import BROKEN, TINY, SoundPipeline

from conformance.contracts.checks import check_pipeline
from conformance.contracts.pipeline import CONTRACTS
from conformance.contracts.pipeline.driver import PipelineUnderTest
from conformance.contracts.result import Status

BY_NAME = {contract.name: contract for contract in CONTRACTS}


@lru_cache
def sound() -> PipelineUnderTest:
    return PipelineUnderTest(SoundPipeline.tiny())


@pytest.mark.parametrize("name", BY_NAME)
def test_a_sound_pipeline_keeps_the_contract(name):
    result = BY_NAME[name].hold(sound())

    assert result.status is Status.PASSED, result.reason


@pytest.mark.parametrize(
    ("name", "broken", "reason"),
    [pytest.param(name, *each, id=f"{name}-{each[0].__name__}") for name in BROKEN for each in BROKEN[name]],
)
def test_a_broken_pipeline_fails_by_the_contract_that_names_its_fault(name, broken, reason):
    result = BY_NAME[name].hold(PipelineUnderTest(broken.tiny()))

    assert result.status is Status.FAILED, result.reason
    assert re.search(reason, result.reason)


def test_every_contract_has_a_pipeline_that_breaks_it():
    assert BROKEN.keys() == BY_NAME.keys()


def test_checks_leave_the_pipeline_and_the_global_random_state_alone():
    pipeline = SoundPipeline.tiny()
    weights = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    BY_NAME["second_call_equals_first"].hold(PipelineUnderTest(pipeline))
    BY_NAME["global_random_state_stays"].hold(PipelineUnderTest(pipeline))

    assert all(torch.equal(value, weights[name]) for name, value in pipeline.unet.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


class NeedsAnImage(SoundPipeline):
    def __call__(self, image, generator=None, num_inference_steps=4, output_type="pil"):
        return super().__call__(len(image), generator, num_inference_steps, image, output_type)


def test_arguments_that_are_not_found_can_be_given():
    names = ("call_works", "generator_decides_the_result", "batch_equals_singles")
    unknown = PipelineUnderTest(NeedsAnImage.tiny())
    known = PipelineUnderTest(NeedsAnImage.tiny(), {"image": torch.ones(1, 3, 4, 4)})

    assert "name it with call={...}" in BY_NAME["call_works"].hold(unknown).reason
    assert [BY_NAME[name].hold(known).status for name in names] == [Status.PASSED] * 3


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(TypeError, match="Linear is no pipeline"):
        check_pipeline(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="SoundPipeline takes no image; it takes batch_size, generator"):
        check_pipeline(SoundPipeline.tiny(), call={"image": None})


class NeedsAPromptOfWords(SoundPipeline):
    def check(self, batch_size, output_type):
        raise ValueError("a prompt is needed")


def test_a_pipeline_that_refuses_the_arguments_that_were_found_is_not_applicable():
    subject = PipelineUnderTest(NeedsAPromptOfWords.tiny())
    results = [BY_NAME[name].hold(subject) for name in ("call_works", "second_call_equals_first")]

    assert [result.status for result in results] == [Status.NOT_APPLICABLE] * 2
    assert "ValueError: a prompt is needed. If its arguments (batch_size, num_inference_steps" in results[0].reason


class FromAnImage(SoundPipeline):
    def begin(self, batch, generator, latents):
        x = super().begin(batch, generator, latents) / self.scheduler.init_noise_sigma
        return self.scheduler.add_noise(torch.zeros_like(x), x, self.scheduler.timesteps[:1])


def test_a_start_made_by_add_noise_needs_no_initial_scaling():
    result = BY_NAME["scheduler_scales_the_network_input"].hold(PipelineUnderTest(FromAnImage.tiny()))

    assert result.status is Status.PASSED, result.reason


def test_hf_ddpm_pipeline_neither_scales_inputs_nor_knows_its_output_types():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(**TINY)
    subject = PipelineUnderTest(diffusers.DDPMPipeline(network.eval(), diffusers.DDPMScheduler()))
    reasons = {
        "scheduler_scales_the_network_input": "halved by scale_model_input",
        "unknown_output_type_raises": "output_type='jpeg' is accepted",
        "wrong_generators_raise": "3 generators for 2 images is accepted",
    }

    for name, reason in reasons.items():
        assert reason in BY_NAME[name].hold(subject).reason
    assert BY_NAME["second_call_equals_first"].hold(subject).status is Status.PASSED
