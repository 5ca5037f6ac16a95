"""Configurations as they are published on the Hub, most of them written by releases of 2022."""

from __future__ import annotations

import json
import logging

import pytest

from diffusers_ref import (
    ConfigError,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    PNDMScheduler,
    UNet2DModel,
)
from diffusers_ref.modeling import shapes_only


def ddpm_unet(widths, attention_at, size):
    """config.json of google/ddpm-cifar10-32 and of google/ddpm-{celebahq,church,bedroom,cat}-256 and their EMAs."""
    levels = range(len(widths))
    down = ["AttnDownBlock2D" if level == attention_at else "DownBlock2D" for level in levels]
    up = ["AttnUpBlock2D" if level == attention_at else "UpBlock2D" for level in reversed(levels)]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": widths,
        "center_input_sample": False,
        "down_block_types": down,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": size,
        "time_embedding_type": "positional",
        "up_block_types": up,
    }


DDPM_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_small",
}
STABLE_DIFFUSION_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
LATENT_DIFFUSION_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.1.3",
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "timestep_values": None,
    "trained_betas": None,
}
LATENT_DIFFUSION_INDEX = {
    "_class_name": "LDMPipeline",
    "_diffusers_version": "0.1.3",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
    "vqvae": ["diffusers", "VQModel"],
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ddpm_unet([128, 256, 256, 256], 1, 32), 35_746_307),
        (ddpm_unet([128, 128, 256, 256, 512, 512], 4, 256), 113_673_219),
    ],
    ids=["32", "256"],
)
def test_the_networks_of_the_ddpm_authors(config, parameters, caplog):
    with shapes_only():
        unet = UNet2DModel.from_config(config)
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters
    assert not caplog.records


@pytest.mark.parametrize(
    ("config", "scheduler_class", "ignored"),
    [
        (DDPM_SCHEDULER, DDPMScheduler, None),
        (DDPM_SCHEDULER, DDIMScheduler, None),
        (STABLE_DIFFUSION_SCHEDULER, PNDMScheduler, "clip_sample"),
        (STABLE_DIFFUSION_SCHEDULER, DDIMScheduler, "skip_prk_steps"),
        (LATENT_DIFFUSION_SCHEDULER, DDIMScheduler, "timestep_values"),
    ],
)
def test_schedulers_drop_only_what_says_nothing_to_them(config, scheduler_class, ignored, tmp_path, caplog):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        scheduler = scheduler_class.from_pretrained(tmp_path)
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key != ignored}
    assert {key: scheduler.config[key] for key in kept} == kept
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ([f"{scheduler_class.__name__} has no option {ignored}: ignored"] if ignored else [])


def test_a_pipeline_of_another_kind_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps(LATENT_DIFFUSION_INDEX))
    with pytest.raises(ConfigError, match="names the pipeline class 'LDMPipeline'; known: DDIMPipeline, DDPM"):
        DiffusionPipeline.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="DDIMPipeline has no option 'vqvae'; allowed: pixel_rounding, scheduler"):
        DDIMPipeline.from_pretrained(tmp_path)
