"""Pipelines out of the originals' own checkpoint and configuration files."""

from __future__ import annotations

import json

import pytest
import torch
from original_examples import ERMONGROUP, LUPINGLIU_IDDPM, OPENAI, original_state
from tiny_pipelines import generator, quiet, tiny_unet

from diffusers_ref import ConfigError, DDIMPipeline, DDPMPipeline, DDPMScheduler, PNDMPipeline

FORMATS = {
    "ermongroup/ddim": (ERMONGROUP, "round", DDIMPipeline),
    "luping-liu/PNDM": (LUPINGLIU_IDDPM, "round", PNDMPipeline),
    "openai/improved-diffusion": (OPENAI, "truncate", DDPMPipeline),
}


@pytest.fixture
def files(tmp_path):
    """Writes a checkpoint and a configuration file of a format; JSON is YAML as well."""

    def write(name):
        torch.save(original_state(name, FORMATS[name][0]), tmp_path / "model.pt")
        (tmp_path / "config.yml").write_text(json.dumps(FORMATS[name][0]))
        return tmp_path / "model.pt", tmp_path / "config.yml"

    return write


@pytest.mark.parametrize("name", FORMATS)
def test_an_original_checkpoint_becomes_a_pipeline_and_a_folder(files, tmp_path, name):
    _, rounding, pipeline_class = FORMATS[name]
    pipeline = quiet(pipeline_class.from_single_file(*files(name)))
    assert pipeline.pixel_rounding == rounding and not pipeline.unet.training
    call = {"num_inference_steps": 4, "output_type": "raw", "class_labels": 3 if "openai" in name else None}
    images = pipeline(generator=generator(), **call).images
    assert images.shape == (1, 3, 8, 8) and images.isfinite().all()

    pipeline.save_pretrained(tmp_path / "pipe")
    again = quiet(pipeline_class.from_pretrained(tmp_path / "pipe"))
    assert again.config == pipeline.config and again.scheduler.config == pipeline.scheduler.config
    assert torch.equal(again(generator=generator(), **call).images, images)


def test_keywords_win_over_the_original(files):
    checkpoint, config = files("ermongroup/ddim")
    scheduler = DDPMScheduler(num_train_timesteps=40)
    pipeline = DDPMPipeline.from_single_file(
        checkpoint,
        config,
        original_format="ermongroup/ddim",
        torch_dtype=torch.float64,
        scheduler=scheduler,
        pixel_rounding="half_even",
    )
    assert pipeline.scheduler is scheduler and pipeline.pixel_rounding == "half_even"
    assert pipeline.dtype == torch.float64
    unet = tiny_unet()
    assert (
        DDPMPipeline.from_single_file(checkpoint, config, unet=unet, torch_dtype=torch.float64).unet.dtype
        == torch.float32
    )


def test_what_a_format_does_not_offer(files):
    checkpoint, config = files("openai/improved-diffusion")
    with pytest.raises(
        ConfigError, match="openai/improved-diffusion has no PNDMScheduler, only DDIMScheduler, DDPMSche"
    ):
        PNDMPipeline.from_single_file(checkpoint, config)
    with pytest.raises(ConfigError, match="DDIMPipeline has no option 'sheduler'"):
        DDIMPipeline.from_single_file(checkpoint, config, sheduler=None)
