"""Checkpoints and configurations of the DDIM authors' code, ermongroup/ddim.

Song et al., "Denoising Diffusion Implicit Models" (arXiv:2010.02502). The configuration is one of its `configs/*.yml`.
A checkpoint is what `runners/diffusion.py` saves, [model, optimiser, epoch, step, moving average], or a plain state
dict, such as the files converted from TensorFlow that the code downloads.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from .checkpoints import state_of_training_list
from .config_fields import (
    Field,
    boolean,
    number,
    one_of,
    only,
    probability,
    read_mapping,
    read_options,
    section,
    whole,
    wholes,
)
from .ddpm_network import DDPMNetwork
from .key_rules import Layer

NAME = "ermongroup/ddim"

separator = "."
"""Between a module's path and the name of its parameter."""

pixel_rounding = "round"
"""torchvision's `save_image` writes the pixels."""

# Names of the noise schedules there -> ours.
BETA_SCHEDULES = {"linear": "linear", "quad": "scaled_linear", "const": "const", "jsd": "jsd", "sigmoid": "sigmoid"}

DATA = {"image_size": Field(whole)}
MODEL = {
    "type": Field(only("simple", "the one network that this code can train")),
    "in_channels": Field(whole),
    "out_ch": Field(whole),
    "ch": Field(whole),
    "ch_mult": Field(wholes),
    "num_res_blocks": Field(whole),
    "attn_resolutions": Field(wholes),
    "dropout": Field(probability),
    "resamp_with_conv": Field(boolean),
}
DIFFUSION = {
    "beta_schedule": Field(one_of(*BETA_SCHEDULES)),
    "beta_start": Field(number),
    "beta_end": Field(number),
    "num_diffusion_timesteps": Field(whole),
}


def recognises_config(config: Mapping[str, Any]) -> bool:
    return {"data", "model", "diffusion"} <= set(config)


def recognises_state(names: Collection[str]) -> bool:
    return "temb.dense.0.weight" in names


def parse_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The sections `data`, `model` and `diffusion` of a .yml file or mapping, checked. Raises ConfigError."""
    config = read_mapping(source)
    where = f"{NAME} config"
    return {
        "data": read_options(section(config, "data", where), DATA, f"{where}, data", ignored=None),
        # Neither training with a moving average nor the declared variance changes what its samplers compute.
        "model": read_options(
            section(config, "model", where), MODEL, f"{where}, model", ignored=("var_type", "ema_rate", "ema")
        ),
        "diffusion": read_options(section(config, "diffusion", where), DIFFUSION, f"{where}, diffusion"),
    }


def _network(config: Mapping[str, Any]) -> DDPMNetwork:
    model = config["model"]
    return DDPMNetwork(
        image_size=config["data"]["image_size"],
        in_channels=model["in_channels"],
        out_ch=model["out_ch"],
        ch=model["ch"],
        ch_mult=tuple(model["ch_mult"]),
        num_res_blocks=model["num_res_blocks"],
        attn_resolutions=tuple(model["attn_resolutions"]),
        dropout=model["dropout"],
        resamp_with_conv=model["resamp_with_conv"],
    )


def unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of UNet2DModel for a parsed configuration."""
    return _network(config).unet_config()


def scheduler_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scheduler class -> options that reproduce `functions/denoising.py`.

    Its ancestral sampler uses log β as log variance whatever `var_type` says, and clips x0;
    its DDIM sampler does not clip.
    """
    diffusion = config["diffusion"]
    tables = {
        "num_train_timesteps": diffusion["num_diffusion_timesteps"],
        "beta_schedule": BETA_SCHEDULES[diffusion["beta_schedule"]],
        "beta_start": diffusion["beta_start"],
        "beta_end": diffusion["beta_end"],
        "coefficients": "float32_cumprod",
    }
    grid = {"timestep_spacing": "ddim_uniform"}
    return {
        "DDPMScheduler": {**tables, **grid, "variance_type": "fixed_large", "clip_sample": True},
        "DDIMScheduler": {**tables, **grid, "clip_sample": False, "set_alpha_to_one": True},
        "PNDMScheduler": {**tables, "solver": "f_pndm"},
    }


def extract_state(checkpoint: Any, use_ema: bool = True) -> dict[str, Any]:
    """Original parameter name -> tensor, out of a loaded checkpoint. Raises WeightsError."""
    return state_of_training_list(checkpoint, use_ema=use_ema, ema_index=4, name=NAME)


def layers(config: Mapping[str, Any]) -> list[Layer]:
    """The network, module by module: key map, module map and the original's parameters are derived from it."""
    return _network(config).layers()
