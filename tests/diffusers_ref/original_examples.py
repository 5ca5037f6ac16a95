"""Small configurations in each original's own words, and states in its layout, for the tests."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import torch

from diffusers_ref.original import get_format, original_keys

ERMONGROUP: dict[str, Any] = {
    "data": {"dataset": "CIFAR10", "image_size": 8, "channels": 3, "rescaled": True},
    "model": {
        "type": "simple",
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.1,
        "var_type": "fixedlarge",
        "ema_rate": 0.9999,
        "ema": True,
        "resamp_with_conv": True,
    },
    "diffusion": {
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "num_diffusion_timesteps": 1000,
    },
    "training": {"batch_size": 128},
}
HOJONATHANHO: dict[str, Any] = {
    "image_size": 8,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "num_diffusion_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "model_mean_type": "eps",
    "model_var_type": "fixedlarge",
    "total_bs": 128,
}
LUPINGLIU_DDIM: dict[str, Any] = {
    "Schedule": {"type": "linear", "beta_start": 0.0001, "beta_end": 0.02, "diffusion_step": 1000},
    "Dataset": {"dataset": "CIFAR10", "image_size": 8, "channels": 3},
    "Model": {
        "struc": "DDIM",
        "type": "simple",
        "image_size": 8,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.1,
        "var_type": "fixedlarge",
        "resamp_with_conv": True,
    },
    "Sample": {"batch_size": 512},
}
LUPINGLIU_IDDPM: dict[str, Any] = {
    "Schedule": {"type": "cosine", "diffusion_step": 1000, "learn_sigma": True},
    "Dataset": {"dataset": "CIFAR10", "image_size": 8, "channels": 3},
    "Model": {
        "struc": "iDDPM",
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 6,
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "dropout": 0.3,
        "channel_mult": [1, 2],
        "dims": 2,
        "conv_resample": True,
        "use_scale_shift_norm": True,
        "use_checkpoint": False,
        "num_heads": 2,
        "num_heads_upsample": 4,
    },
}
OPENAI: dict[str, Any] = {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_heads": 2,
    "attention_resolutions": "4",
    "channel_mult": "1,2",
    "learn_sigma": True,
    "class_cond": True,
    "num_classes": 7,
    "diffusion_steps": 4000,
    "noise_schedule": "cosine",
}
YANG_SONG: dict[str, Any] = {
    "training": {"sde": "vesde", "continuous": True, "batch_size": 128},
    "sampling": {"method": "pc", "predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.16},
    "data": {"dataset": "CIFAR10", "image_size": 8, "num_channels": 3, "centered": False},
    "model": {
        "name": "ncsnpp",
        "nf": 16,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "resamp_with_conv": True,
        "conditional": True,
        "fir": True,
        "fir_kernel": [1, 3, 3, 1],
        "skip_rescale": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "residual",
        "progressive_combine": "sum",
        "embedding_type": "fourier",
        "fourier_scale": 16,
        "scale_by_sigma": True,
        "nonlinearity": "swish",
        "dropout": 0.1,
        "sigma_min": 0.01,
        "sigma_max": 50,
        "num_scales": 1000,
        "ema_rate": 0.999,
        "init_scale": 0.0,
    },
    "seed": 42,
}

EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "ermongroup": ("ermongroup/ddim", ERMONGROUP),
    "hojonathanho": ("hojonathanho/diffusion", HOJONATHANHO),
    "lupingliu DDIM": ("luping-liu/PNDM", LUPINGLIU_DDIM),
    "lupingliu iDDPM": ("luping-liu/PNDM", LUPINGLIU_IDDPM),
    "openai": ("openai/improved-diffusion", OPENAI),
    "yang-song": ("yang-song/score_sde_pytorch", YANG_SONG),
}


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy; "section__option" reaches into a section."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *sections, option = name.split("__")
        place = config
        for section in sections:
            place = place[section]
        place[option] = value
    return config


def original_state(format: str, config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights, of a size that keeps activations near 1, under the original's names; do not write into them."""
    return dict(_original_state(format, json.dumps(config), seed))


@functools.cache
def _original_state(format: str, config: str, seed: int) -> dict[str, torch.Tensor]:
    module = get_format(format)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in original_keys(module, module.parse_config(json.loads(config))).items():
        value = torch.randn(shape, generator=generator)
        state[name] = value / (value.numel() / max(shape)) ** 0.5 if len(shape) > 1 else 1 + 0.1 * value
    return state
