"""Checkpoints and configurations of yang-song/score_sde_pytorch.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (arXiv:2011.13456). Its
configurations are Python; given are their values, as `config.to_yaml()` or a mapping with the sections `training`,
`sampling`, `data` and `model` has them, or the name of an official one, such as "ve/cifar10_ncsnpp_continuous". A
checkpoint is {optimizer, model, ema, step}; the moving average, which its samplers use, is a list of the trained
parameters in the order of the model's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.loading import WeightsError

from .checkpoints import named_tensors, without_prefix
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
from .key_rules import Layer
from .ncsnpp_network import NCSNppNetwork
from .score_sde_configs import official_config

NAME = "yang-song/score_sde_pytorch"

separator = "."
"""Between a module's path and the name of its parameter."""

pixel_rounding = "truncate"
"""255 · x, clipped, then `.astype(np.uint8)`."""

SDES = {"vesde": "ScoreSdeVeScheduler", "vpsde": "ScoreSdeVpScheduler", "subvpsde": "ScoreSdeSubVpScheduler"}
SAMPLING_EPS = {"vesde": 1e-5, "vpsde": 1e-3, "subvpsde": 1e-3}  # run_lib.py


def _lower(*allowed: str) -> Any:
    """One of the names in any case, as the original reads them."""
    check = one_of(*allowed)
    return lambda value: check(value.lower() if isinstance(value, str) else value)


def _taps(value: Any) -> list[float]:
    """The numbers of a filter."""
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(tap, (int, float)) and not isinstance(tap, bool) for tap in value
    ):
        raise ValueError("must be a list of numbers")
    return list(value)


TRAINING = {"sde": Field(_lower(*SDES)), "continuous": Field(boolean)}
SAMPLING = {
    "method": Field(_lower("pc"), "pc"),  # "ode" leaves the steps to scipy's solver.
    "predictor": Field(_lower("none", "euler_maruyama", "reverse_diffusion", "ancestral_sampling")),
    "corrector": Field(_lower("none", "langevin", "ald")),
    "snr": Field(number, 0.16),
    "n_steps_each": Field(whole, 1),
    "noise_removal": Field(boolean, True),
    "probability_flow": Field(boolean, False),
}
DATA = {"image_size": Field(whole), "num_channels": Field(whole, 3), "centered": Field(boolean)}
NETWORK = Field(_lower("ncsnpp", "ddpm"))
_COMMON = {
    "name": NETWORK,
    "nf": Field(whole),
    "ch_mult": Field(wholes),
    "num_res_blocks": Field(whole),
    "attn_resolutions": Field(wholes),
    "resamp_with_conv": Field(boolean),
    "dropout": Field(probability),
    "nonlinearity": Field(_lower("swish", "elu", "relu", "lrelu"), "swish"),
    "scale_by_sigma": Field(boolean),
    "sigma_min": Field(number, 0.01),
    "sigma_max": Field(number, 50.0),
    "num_scales": Field(whole, 1000),
    "beta_min": Field(number, 0.1),
    "beta_max": Field(number, 20.0),
}
MODELS = {
    "ncsnpp": {
        **_COMMON,
        "conditional": Field(boolean, True),
        "embedding_type": Field(_lower("fourier", "positional")),
        "fir": Field(boolean),
        "fir_kernel": Field(_taps, [1, 3, 3, 1]),
        "skip_rescale": Field(boolean),
        "resblock_type": Field(_lower("biggan", "ddpm")),
        "progressive": Field(_lower("none", "output_skip")),  # The original cannot run its "residual".
        "progressive_input": Field(_lower("none", "input_skip", "residual")),
        "progressive_combine": Field(_lower("sum", "cat")),
    },
    "ddpm": {**_COMMON, "conditional": Field(only(True, "the original cannot build it otherwise"), True)},
}

# Options of `model` that the networks do not depend on, once they are trained; DDPM's files set some of NCSN++'s too.
_TRAINING_ONLY = (
    *("ema_rate", "normalization", "init_scale", "fourier_scale", "conv_size", "attention_type", "sigma_begin"),
)
IGNORED = {"ncsnpp": _TRAINING_ONLY, "ddpm": (*_TRAINING_ONLY, *(MODELS["ncsnpp"].keys() - MODELS["ddpm"].keys()))}


def recognises_config(config: Mapping[str, Any]) -> bool:
    return {"training", "sampling", "data", "model"} <= set(config) and "diffusion" not in config


def recognises_state(names: Collection[str]) -> bool:
    return any(name.startswith("all_modules.") for name in names)


def named_config(name: str) -> Mapping[str, Any] | None:
    """The official configuration of that name, if there is one."""
    return official_config(name)


def parse_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a configuration or of the official one of that name, checked. Raises ConfigError."""
    config = (official_config(source) if isinstance(source, str) else None) or read_mapping(source)
    where = f"{NAME} config"
    model = section(config, "model", where)
    name = read_options(model, {"name": NETWORK}, f"{where}, model", ignored=None)["name"]
    parsed = {
        part: read_options(section(config, part, where), fields, f"{where}, {part}", ignored=None)
        for part, fields in (("training", TRAINING), ("sampling", SAMPLING), ("data", DATA))
    }
    parsed["model"] = read_options(model, MODELS[name], f"{where}, model", ignored=IGNORED[name])
    if parsed["model"].get("embedding_type") == "fourier" and not parsed["training"]["continuous"]:
        raise ConfigError(
            f"{where}: embedding_type 'fourier' needs training.continuous, as the network is given noise levels"
        )
    return parsed


def _network(config: Mapping[str, Any]) -> NCSNppNetwork:
    model, data = dict(config["model"]), config["data"]
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in model.items()
        if name not in ("name", "beta_min", "beta_max")
    }
    if model["name"] == "ddpm":
        options |= {"embedding_type": "positional", "norm_num_groups": 32}
    return NCSNppNetwork(
        image_size=data["image_size"], num_channels=data["num_channels"], centered=data["centered"], **options
    )


def unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Class and arguments of the network for a parsed configuration, as config.json holds them."""
    return _network(config).network_config()


def scheduler_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scheduler class -> options that reproduce `sampling.py` with the SDE of the configuration."""
    sde, sampling, model = config["training"]["sde"], config["sampling"], config["model"]
    options = {
        "num_train_timesteps": model["num_scales"],
        "sampling_eps": SAMPLING_EPS[sde],
        **{name: sampling[name] for name in ("predictor", "corrector", "probability_flow", "noise_removal")},
        **{name: model[name] for name in (("sigma_min", "sigma_max") if sde == "vesde" else ("beta_min", "beta_max"))},
    }
    if sde != "subvpsde":  # Always continuous, and the original has no corrector for it.
        options |= {
            "snr": sampling["snr"],
            "correct_steps": sampling["n_steps_each"],
            "continuous": config["training"]["continuous"],
        }
    return {SDES[sde]: options}


def extract_state(checkpoint: Any, use_ema: bool = True) -> dict[str, Any]:
    """Original parameter name -> tensor, out of a loaded checkpoint or a plain state dict. Raises WeightsError.

    The table of noise levels, `sigmas`, is left out: it follows from the configuration.
    """
    is_training = isinstance(checkpoint, Mapping) and "model" in checkpoint
    what = f"{NAME}: `model` of the checkpoint" if is_training else f"{NAME}: the checkpoint"
    state = without_prefix(named_tensors(checkpoint["model"] if is_training else checkpoint, what), "module.")
    state.pop("sigmas", None)
    if is_training and use_ema:
        averages = _averages(checkpoint)
        trained = [name for name in state if not _is_fixed(name)]
        shapes = [(name, tuple(state[name].shape)) for name in trained]
        found = [tuple(average.shape) for average in averages]
        if found != [shape for _, shape in shapes]:
            place = next((i for i, (a, b) in enumerate(zip(found, shapes, strict=False)) if a != b[1]), None)
            first = "" if place is None else f"; the first that differs is {shapes[place][0]}, with {found[place]}"
            raise WeightsError(
                f"{NAME}: the moving average holds {len(found)} tensors, which are not those of the model's "
                f"{len(shapes)} trained parameters{first}"
            )
        state |= dict(zip(trained, averages, strict=True))
    return state


def _averages(checkpoint: Mapping[str, Any]) -> list[Tensor]:
    ema = checkpoint.get("ema")
    averages = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(averages, (list, tuple)) or not all(isinstance(average, Tensor) for average in averages):
        raise WeightsError(
            f"{NAME}: the checkpoint holds no moving average (ema.shadow_params, a list of tensors); "
            "pass use_ema=False for the raw weights"
        )
    return list(averages)


def _is_fixed(name: str) -> bool:
    """Whether a parameter is not trained: the frequencies of the Fourier features."""
    return re.fullmatch(r"all_modules\.\d+\.W", name) is not None


def layers(config: Mapping[str, Any]) -> list[Layer]:
    """The network, module by module: key map, module map and the original's parameters are derived from it."""
    return _network(config).layers()
