"""Checkpoints and configurations of openai/improved-diffusion.

Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672). The configuration holds the
flags of its command lines (`script_util.model_and_diffusion_defaults`), with their defaults; the authors publish them
as MODEL_FLAGS and DIFFUSION_FLAGS beside each checkpoint. A checkpoint is a plain state dict, the moving average a file
of its own (`ema_0.9999_*.pt`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from diffusers_ref.configuration import ConfigError

from .checkpoints import named_tensors
from .config_fields import (
    Field,
    boolean,
    one_of,
    only,
    probability,
    read_mapping,
    read_options,
    whole,
    wholes,
)
from .improved_network import ImprovedNetwork
from .key_rules import Layer

NAME = "openai/improved-diffusion"

separator = "."
"""Between a module's path and the name of its parameter."""

pixel_rounding = "truncate"
"""(x + 1) · 127.5, clamped, then `.to(uint8)`."""

# Image size -> channel_mult, as the scripts choose it.
CHANNEL_MULT = {256: [1, 1, 2, 2, 4, 4], 64: [1, 2, 3, 4], 32: [1, 2, 2, 2]}

# Names of the noise schedules there -> ours.
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def _heads_upsample(value: Any) -> int:
    return -1 if str(value) == "-1" else whole(value)


FIELDS = {
    "image_size": Field(whole, 64),
    "num_channels": Field(whole, 128),
    "num_res_blocks": Field(whole, 2),
    "num_heads": Field(whole, 4),
    "num_heads_upsample": Field(_heads_upsample, -1),  # -1: as num_heads
    "attention_resolutions": Field(wholes, [16, 8]),
    "dropout": Field(probability, 0.0),
    "learn_sigma": Field(boolean, False),
    "sigma_small": Field(boolean, False),
    "class_cond": Field(boolean, False),
    "diffusion_steps": Field(whole, 1000),
    "noise_schedule": Field(one_of(*BETA_SCHEDULES), "linear"),
    "predict_xstart": Field(boolean, False),
    "rescale_timesteps": Field(boolean, True),
    "use_scale_shift_norm": Field(boolean, True),
    # Arguments of the network that the scripts do not expose; these are the scripts' values.
    "channel_mult": Field(wholes, None),  # None: by image size
    "in_channels": Field(whole, 3),
    "num_classes": Field(whole, 1000),
    "conv_resample": Field(only(True, "the original cannot build its average pooling"), True),
    "dims": Field(only(2, "images"), 2),
}
# Flags that the network and its samplers do not depend on (timestep_respacing: an argument of `set_timesteps`).
IGNORED = (
    *("timestep_respacing", "use_kl", "rescale_learned_sigmas", "use_checkpoint", "use_fp16", "fp16_scale_growth"),
    *("data_dir", "schedule_sampler", "lr", "weight_decay", "lr_anneal_steps", "batch_size", "microbatch", "ema_rate"),
    *("log_interval", "save_interval", "resume_checkpoint", "clip_denoised", "num_samples", "use_ddim", "model_path"),
)


def recognises_config(config: Mapping[str, Any]) -> bool:
    return bool({"num_channels", "diffusion_steps", "noise_schedule", "learn_sigma"} & set(config))


def recognises_state(names: Collection[str]) -> bool:
    return "time_embed.0.weight" in names


def parse_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a .json or .yml file or mapping, checked; values may be text, as on a command line.

    Raises ConfigError.
    """
    config = read_mapping(source)
    where = f"{NAME} config"
    if {"large_size", "small_size"} & set(config):
        raise ConfigError(f"{where}: large_size and small_size belong to its super-resolution network, not supported")
    options = read_options(config, FIELDS, where, ignored=IGNORED)
    if options["channel_mult"] is None:
        if options["image_size"] not in CHANNEL_MULT:
            raise ConfigError(
                f"{where}: image_size must be {' or '.join(map(str, CHANNEL_MULT))} unless channel_mult is given, "
                f"got {options['image_size']}"
            )
        options["channel_mult"] = CHANNEL_MULT[options["image_size"]]
    return options


def _network(config: Mapping[str, Any]) -> ImprovedNetwork:
    heads, heads_upsample = config["num_heads"], config["num_heads_upsample"]
    return ImprovedNetwork(
        image_size=config["image_size"],
        in_channels=config["in_channels"],
        out_channels=config["in_channels"] * (2 if config["learn_sigma"] else 1),
        model_channels=config["num_channels"],
        channel_mult=tuple(config["channel_mult"]),
        num_res_blocks=config["num_res_blocks"],
        attention_rates=tuple(config["image_size"] // resolution for resolution in config["attention_resolutions"]),
        num_heads=heads,
        num_heads_upsample=heads if heads_upsample == -1 else heads_upsample,
        use_scale_shift_norm=config["use_scale_shift_norm"],
        dropout=config["dropout"],
        num_classes=config["num_classes"] if config["class_cond"] else None,
    )


def unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of UNet2DModel for a parsed configuration."""
    return _network(config).unet_config()


def scheduler_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scheduler class -> options that reproduce `gaussian_diffusion.py` and `respace.py`."""
    steps = config["diffusion_steps"]
    if config["learn_sigma"]:
        variance_type = "learned_range"
    else:
        variance_type = "fixed_small" if config["sigma_small"] else "fixed_large"
    options: dict[str, Any] = {
        "num_train_timesteps": steps,
        "beta_schedule": BETA_SCHEDULES[config["noise_schedule"]],
        "prediction_type": "sample" if config["predict_xstart"] else "epsilon",
        "variance_type": variance_type,
        "clip_sample": True,
        "timestep_spacing": "improved_diffusion",
        "rescale_timesteps": config["rescale_timesteps"],
        "coefficients": "float64",
    }
    if config["noise_schedule"] == "linear":  # DDPM's schedule, stretched to any number of steps
        scale = 1000 / steps
        options |= {"beta_start": scale * 0.0001, "beta_end": scale * 0.02}
    return {"DDPMScheduler": options, "DDIMScheduler": {**options, "rederive_epsilon": True}}


def extract_state(checkpoint: Any, use_ema: bool = True) -> dict[str, Any]:
    """Original parameter name -> tensor, out of a loaded checkpoint. Raises WeightsError.

    A file holds either the moving average or the raw weights, so `use_ema` chooses nothing here.
    """
    return named_tensors(checkpoint, f"{NAME}: the checkpoint")


def layers(config: Mapping[str, Any]) -> list[Layer]:
    """The network, module by module: key map, module map and the original's parameters are derived from it."""
    return _network(config).layers()
