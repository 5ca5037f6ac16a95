"""Checkpoints and configurations of the PNDM authors' code, luping-liu/PNDM.

Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (arXiv:2202.09778). The configuration is one of
its `config/*.yml`; `Model.struc` names the network: "DDIM" is that of ermongroup/ddim, "iDDPM" that of
openai/improved-diffusion. A checkpoint is a plain state dict (downloaded, or `ema.ckpt`), or the list
[model, optimiser, epoch, step] of `train.ckpt`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from diffusers_ref.configuration import ConfigError

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
from .improved_network import ImprovedNetwork
from .key_rules import Layer

NAME = "luping-liu/PNDM"

separator = "."
"""Between a module's path and the name of its parameter."""

pixel_rounding = "round"
"""torchvision's `save_image` writes the pixels."""

# Names of the noise schedules there -> ours.
BETA_SCHEDULES = {"linear": "linear", "quad": "scaled_linear", "cosine": "squaredcos_cap_v2"}

SCHEDULE = {"type": Field(one_of(*BETA_SCHEDULES)), "diffusion_step": Field(whole)}
BETA_ENDS = {"beta_start": Field(number), "beta_end": Field(number)}  # of all but the cosine schedule
DATASET = {"image_size": Field(whole)}
STRUC = Field(one_of("DDIM", "iDDPM"))
MODELS = {
    "DDIM": {
        "struc": STRUC,
        "type": Field(only("simple", "the one network that this code can train")),
        "image_size": Field(whole),
        "in_channels": Field(whole),
        "out_ch": Field(whole),
        "ch": Field(whole),
        "ch_mult": Field(wholes),
        "num_res_blocks": Field(whole),
        "attn_resolutions": Field(wholes),
        "dropout": Field(probability),
        "resamp_with_conv": Field(boolean),
    },
    "iDDPM": {
        "struc": STRUC,
        "in_channels": Field(whole),
        "model_channels": Field(whole),
        "out_channels": Field(whole),
        "num_res_blocks": Field(whole),
        "attention_resolutions": Field(wholes),
        "dropout": Field(probability),
        "channel_mult": Field(wholes),
        "dims": Field(only(2, "images")),
        "conv_resample": Field(only(True, "the original cannot build its average pooling")),
        "use_scale_shift_norm": Field(boolean),
        "num_heads": Field(whole),
        "num_heads_upsample": Field(whole),  # its -1 ("as num_heads") reaches the network as -1 heads
    },
}


def recognises_config(config: Mapping[str, Any]) -> bool:
    return {"Schedule", "Dataset", "Model"} <= set(config)


def recognises_state(names: Collection[str]) -> bool:
    return "temb.dense.0.weight" in names or "time_embed.0.weight" in names


def parse_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The sections `Schedule`, `Dataset` and `Model` of a .yml file or mapping, checked. Raises ConfigError."""
    config = read_mapping(source)
    where = f"{NAME} config"
    schedule = section(config, "Schedule", where)
    fields = SCHEDULE if isinstance(schedule, Mapping) and schedule.get("type") == "cosine" else SCHEDULE | BETA_ENDS
    model = section(config, "Model", where)
    struc = read_options(model, {"struc": STRUC}, f"{where}, Model", ignored=None)["struc"]
    parsed = {
        "Schedule": read_options(schedule, fields, f"{where}, Schedule", ignored=None),
        "Dataset": read_options(section(config, "Dataset", where), DATASET, f"{where}, Dataset", ignored=None),
        "Model": read_options(model, MODELS[struc], f"{where}, Model", ignored=("var_type", "use_checkpoint")),
    }
    model = parsed["Model"]
    if struc == "iDDPM" and model["out_channels"] != 2 * model["in_channels"]:
        raise ConfigError(
            f"{where}, Model: out_channels must be twice in_channels (the code drops a variance half), "
            f"got {model['out_channels']} and {model['in_channels']}"
        )
    return parsed


def _network(config: Mapping[str, Any]) -> DDPMNetwork | ImprovedNetwork:
    model = config["Model"]
    if model["struc"] == "DDIM":
        return DDPMNetwork(
            image_size=model["image_size"],
            in_channels=model["in_channels"],
            out_ch=model["out_ch"],
            ch=model["ch"],
            ch_mult=tuple(model["ch_mult"]),
            num_res_blocks=model["num_res_blocks"],
            attn_resolutions=tuple(model["attn_resolutions"]),
            dropout=model["dropout"],
            resamp_with_conv=model["resamp_with_conv"],
        )
    return ImprovedNetwork(
        image_size=config["Dataset"]["image_size"],
        in_channels=model["in_channels"],
        out_channels=model["out_channels"],
        model_channels=model["model_channels"],
        channel_mult=tuple(model["channel_mult"]),
        num_res_blocks=model["num_res_blocks"],
        attention_rates=tuple(model["attention_resolutions"]),
        num_heads=model["num_heads"],
        num_heads_upsample=model["num_heads_upsample"],
        use_scale_shift_norm=model["use_scale_shift_norm"],
        dropout=model["dropout"],
        num_classes=None,
    )


def unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of UNet2DModel for a parsed configuration."""
    return _network(config).unet_config()


def scheduler_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scheduler class -> options that reproduce `runner/method.py`: F-PNDM ("s_pndm" is its other solver)."""
    schedule = config["Schedule"]
    ends = {key: schedule[key] for key in BETA_ENDS if key in schedule}
    return {
        "PNDMScheduler": {
            "num_train_timesteps": schedule["diffusion_step"],
            "beta_schedule": BETA_SCHEDULES[schedule["type"]],
            **ends,
            "coefficients": "float32_cumprod",
            "solver": "f_pndm",
        }
    }


def extract_state(checkpoint: Any, use_ema: bool = True) -> dict[str, Any]:
    """Original parameter name -> tensor, out of a loaded checkpoint. Raises WeightsError.

    This code keeps the moving average in a file of its own, which is a plain state dict.
    """
    return state_of_training_list(checkpoint, use_ema=use_ema, ema_index=4, name=NAME)


def layers(config: Mapping[str, Any]) -> list[Layer]:
    """The network, module by module: key map, module map and the original's parameters are derived from it."""
    return _network(config).layers()
