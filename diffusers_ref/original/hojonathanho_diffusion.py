"""Weights and configurations of the DDPM authors' TensorFlow code, hojonathanho/diffusion.

Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239). The configuration is the `kwargs.json` that
its scripts write, or a mapping with the network's hyperparameters spelled out. Weights are arrays by variable name, in
memory or as an .npz file, which TensorFlow writes from a checkpoint with

    numpy.savez(file, **{name: tf.train.load_variable(ckpt, name) for name, _ in tf.train.list_variables(ckpt)})

Convolutions are stored (H, W, in, out), dense and 1×1 layers (in, out).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from diffusers_ref.configuration import ConfigError

from .checkpoints import named_tensors
from .config_fields import (
    Field,
    boolean,
    number,
    one_of,
    only,
    probability,
    read_mapping,
    read_options,
    whole,
    wholes,
)
from .ddpm_network import DDPMNetwork, ParameterKinds
from .key_rules import (
    TF_CONV,
    TF_DENSE,
    TF_POINTWISE,
    Layer,
    Parameter,
    Transform,
)

NAME = "hojonathanho/diffusion"

separator = "/"
"""Between a module's path and the name of its parameter."""

pixel_rounding = "truncate"
"""(x + 1) · 127.5, clipped, then `astype('uint8')`."""

EMA_SUFFIX = "/ExponentialMovingAverage"

# The networks and images that the scripts know by name.
NETWORKS = {
    "unet2d16b2": {"ch": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16]},
    "unet2d16b2c112244": {"ch": 128, "ch_mult": [1, 1, 2, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [16]},
}
IMAGE_SIZES = {"cifar10": 32, "celebahq256": 256, "lsun": 256}

# Names there -> ours.
BETA_SCHEDULES = {
    "linear": "linear",
    "quad": "scaled_linear",
    "const": "const",
    "jsd": "jsd",
    "warmup10": "warmup10",
    "warmup50": "warmup50",
}
PREDICTION_TYPES = {"eps": "epsilon", "xstart": "sample", "xprev": "previous_sample"}
VARIANCE_TYPES = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large", "learned": "learned"}

FIELDS = {
    "image_size": Field(whole),
    "in_channels": Field(whole, 3),
    "ch": Field(whole),
    "ch_mult": Field(wholes),
    "num_res_blocks": Field(whole),
    "attn_resolutions": Field(wholes),
    "dropout": Field(probability, 0.0),
    "resamp_with_conv": Field(boolean, True),
    "block_size": Field(only(1, "pixels are not folded into channels"), 1),
    "num_diffusion_timesteps": Field(whole, 1000),
    "beta_schedule": Field(one_of(*BETA_SCHEDULES), "linear"),
    "beta_start": Field(number, 0.0001),
    "beta_end": Field(number, 0.02),
    "model_mean_type": Field(one_of(*PREDICTION_TYPES), "eps"),
    # The LSUN and CelebA-HQ scripts have no choice: `diffusion_utils.GaussianDiffusion` uses the posterior variance.
    "model_var_type": Field(one_of(*VARIANCE_TYPES), "fixedsmall"),
}
# Names in kwargs.json that the network and its sampler do not depend on.
IGNORED = (
    *("exp_name", "tpu_name", "bucket_name_prefix", "region", "tfds_data_dir", "tfr_file", "log_dir"),
    *("optimizer", "total_bs", "grad_clip", "lr", "warmup", "loss_type", "randflip", "keep_checkpoint_max"),
    "warm_start_model_dir",
)


def _parameters(weight: Transform) -> tuple[Parameter, ...]:
    return Parameter("W", "weight", weight), Parameter("b", "bias")


PARAMETERS: ParameterKinds = {
    "conv": _parameters(TF_CONV),
    "norm": (Parameter("gamma", "weight"), Parameter("beta", "bias")),
    "dense": _parameters(TF_DENSE),
    "shortcut": _parameters(TF_POINTWISE),
    "pixels": _parameters(TF_DENSE),
}


def recognises_config(config: Mapping[str, Any]) -> bool:
    return bool({"model_name", "ch_mult", "num_diffusion_timesteps"} & set(config))


def recognises_state(names: Collection[str]) -> bool:
    return "model/temb/dense0/W" in names


def parse_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The options of a kwargs.json file or mapping, checked, with `model_name` and `dataset` spelled out.

    Options given beside the two names win over what they stand for. Raises ConfigError.
    """
    config = dict(read_mapping(source))
    where = f"{NAME} config"
    implied: dict[str, Any] = {}
    if "model_name" in config:
        implied |= _known(config.pop("model_name"), NETWORKS, f"{where}: model_name")
    if "dataset" in config:
        implied["image_size"] = _known(config.pop("dataset"), IMAGE_SIZES, f"{where}: dataset")
    return read_options(implied | config, FIELDS, where, ignored=IGNORED)


def _known(name: Any, table: Mapping[str, Any], what: str) -> Any:
    if name not in table:
        raise ConfigError(f"{what} must be {' or '.join(map(repr, table))}, got {name!r}")
    return table[name]


def _network(config: Mapping[str, Any]) -> DDPMNetwork:
    learns_variance = config["model_var_type"] == "learned"
    return DDPMNetwork(
        image_size=config["image_size"],
        in_channels=config["in_channels"],
        out_ch=config["in_channels"] * (2 if learns_variance else 1),
        ch=config["ch"],
        ch_mult=tuple(config["ch_mult"]),
        num_res_blocks=config["num_res_blocks"],
        attn_resolutions=tuple(config["attn_resolutions"]),
        dropout=config["dropout"],
        resamp_with_conv=config["resamp_with_conv"],
    )


def unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of UNet2DModel for a parsed configuration."""
    return _network(config).unet_config()


def scheduler_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scheduler class -> options that reproduce `diffusion_utils_2.py` (ancestral sampling over all timesteps)."""
    return {
        "DDPMScheduler": {
            "num_train_timesteps": config["num_diffusion_timesteps"],
            "beta_schedule": BETA_SCHEDULES[config["beta_schedule"]],
            "beta_start": config["beta_start"],
            "beta_end": config["beta_end"],
            "prediction_type": PREDICTION_TYPES[config["model_mean_type"]],
            "variance_type": VARIANCE_TYPES[config["model_var_type"]],
            "clip_sample": True,
            "coefficients": "float64",
        }
    }


def extract_state(checkpoint: Any, use_ema: bool = True) -> dict[str, Any]:
    """Variable name -> array, out of all variables of a checkpoint. Raises WeightsError.

    The moving averages stand under the names of their variables. The optimiser's variables are left out.
    """
    named = named_tensors(checkpoint, f"{NAME}: the checkpoint")
    variables = {name.split(":")[0]: value for name, value in named.items()}
    averages = {name[: -len(EMA_SUFFIX)]: value for name, value in variables.items() if name.endswith(EMA_SUFFIX)}
    if use_ema and averages:
        return averages
    return {name: value for name, value in variables.items() if re.fullmatch(r"model/.*/(W|b|gamma|beta)", name)}


def _scope(path: str) -> str:
    """As in down.0.block.1.conv1 -> model/down_0/block_1/conv1 and temb.dense.0 -> model/temb/dense0."""
    numbered = re.sub(r"\.(\d+)", r"_\1", path).replace("dense_", "dense")
    return "model/" + numbered.replace(".", "/")


def layers(config: Mapping[str, Any]) -> list[Layer]:
    """The network, module by module: key map, module map and the original's parameters are derived from it."""
    return _network(config).layers(PARAMETERS, _scope)
