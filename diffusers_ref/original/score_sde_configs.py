"""The official configurations of yang-song/score_sde_pytorch by name: `configs/ve/cifar10_ncsnpp_continuous.py`, ….

They are Python there, so they are data here: what networks and samplers depend on.
"""

from __future__ import annotations

from typing import Any

# Data sets: `default_*_configs.py`, and what the two files without defaults say instead.
_CIFAR10 = {
    "data": {"image_size": 32},
    "sampling": {"snr": 0.16},
    "model": {"sigma_max": 50.0, "num_scales": 1000, "dropout": 0.1},
}
_CELEBA = {
    "data": {"image_size": 64},
    "sampling": {"snr": 0.17},
    "model": {"sigma_max": 90.0, "num_scales": 1000, "dropout": 0.1},
}
_LSUN = {
    "data": {"image_size": 256},
    "sampling": {"snr": 0.075},
    "model": {"sigma_max": 378.0, "num_scales": 2000, "dropout": 0.0},
}
_MEGAPIXEL = {
    "data": {"image_size": 1024},
    "sampling": {"snr": 0.15},
    "model": {
        "sigma_max": 1348.0, "num_scales": 2000, "dropout": 0.0,
        "nf": 16, "ch_mult": [1, 2, 4, 8, 16, 32, 32, 32], "num_res_blocks": 1,
    },
}  # fmt: skip

# Networks.
_PLUS = {
    "name": "ncsnpp", "nf": 128, "attn_resolutions": [16], "resamp_with_conv": True, "conditional": True,
    "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "resblock_type": "biggan", "progressive_combine": "sum",
    "nonlinearity": "swish",
}  # fmt: skip
_NCSNPP = _PLUS | {
    "ch_mult": [1, 2, 2, 2], "num_res_blocks": 4, "fir": True, "progressive": "none", "progressive_input": "residual",
}  # fmt: skip
_DDPMPP = _NCSNPP | {"fir": False, "progressive_input": "none"}
_PYRAMIDS = _NCSNPP | {
    "ch_mult": [1, 1, 2, 2, 2, 2, 2], "num_res_blocks": 2, "progressive": "output_skip",
    "progressive_input": "input_skip",
}  # fmt: skip
_DDPM = {
    "name": "ddpm", "nf": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16],
    "resamp_with_conv": True, "conditional": True, "nonlinearity": "swish",
}  # fmt: skip

_DEEP = {"num_res_blocks": 8}

# Name -> data set, network, what the file changes in `model`, predictor, whether training was continuous.
_FILES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str, bool]] = {
    "ve/bedroom_ncsnpp_continuous": (_LSUN, _PYRAMIDS, {}, "reverse_diffusion", True),
    "ve/celeba_ncsnpp": (_CELEBA, _NCSNPP, {}, "reverse_diffusion", False),
    "ve/celebahq_256_ncsnpp_continuous": (_LSUN, _PYRAMIDS, {"sigma_max": 348.0}, "reverse_diffusion", True),
    "ve/celebahq_ncsnpp_continuous": (_MEGAPIXEL, _PYRAMIDS, {}, "reverse_diffusion", True),
    "ve/church_ncsnpp_continuous": (_LSUN, _PYRAMIDS, {"sigma_max": 380.0}, "reverse_diffusion", True),
    "ve/cifar10_ddpm": (_CIFAR10, _DDPM, {}, "reverse_diffusion", False),
    "ve/cifar10_ncsnpp": (_CIFAR10, _NCSNPP, {}, "reverse_diffusion", False),
    "ve/cifar10_ncsnpp_continuous": (_CIFAR10, _NCSNPP, {}, "reverse_diffusion", True),
    "ve/cifar10_ncsnpp_deep_continuous": (_CIFAR10, _NCSNPP, _DEEP, "reverse_diffusion", True),
    "ve/ffhq_256_ncsnpp_continuous": (_LSUN, _PYRAMIDS, {"sigma_max": 348.0}, "reverse_diffusion", True),
    "ve/ffhq_ncsnpp_continuous": (_MEGAPIXEL, _PYRAMIDS, {}, "reverse_diffusion", True),
    "vp/cifar10_ddpmpp": (_CIFAR10, _DDPMPP, {}, "ancestral_sampling", False),
    "vp/cifar10_ddpmpp_continuous": (_CIFAR10, _DDPMPP, {}, "euler_maruyama", True),
    "vp/cifar10_ddpmpp_deep_continuous": (_CIFAR10, _DDPMPP, _DEEP, "euler_maruyama", True),
    "vp/cifar10_ncsnpp": (_CIFAR10, _NCSNPP, {}, "reverse_diffusion", False),
    "vp/cifar10_ncsnpp_continuous": (_CIFAR10, _NCSNPP, {}, "euler_maruyama", True),
    "vp/cifar10_ncsnpp_deep_continuous": (_CIFAR10, _NCSNPP, _DEEP, "euler_maruyama", True),
    "subvp/cifar10_ddpm_continuous": (_CIFAR10, _DDPM, {}, "euler_maruyama", True),
    "subvp/cifar10_ddpmpp_continuous": (_CIFAR10, _DDPMPP, {}, "euler_maruyama", True),
    "subvp/cifar10_ddpmpp_deep_continuous": (_CIFAR10, _DDPMPP, _DEEP, "euler_maruyama", True),
    "subvp/cifar10_ncsnpp_continuous": (_CIFAR10, _NCSNPP, {}, "euler_maruyama", True),
    "subvp/cifar10_ncsnpp_deep_continuous": (_CIFAR10, _NCSNPP, _DEEP, "euler_maruyama", True),
}

NAMES = tuple(_FILES)
"""Every official configuration."""


def official_config(name: str) -> dict[str, Any] | None:
    """The configuration of that name, such as "ve/cifar10_ncsnpp_continuous", in the file's own sections, or None."""
    if name not in _FILES:
        return None
    dataset, network, changes, predictor, continuous = _FILES[name]
    sde = name.split("/")[0]
    model: dict[str, Any] = {"sigma_min": 0.01, "beta_min": 0.1, "beta_max": 20.0, "scale_by_sigma": sde == "ve"}
    if network["name"] == "ncsnpp":
        model["embedding_type"] = "fourier" if sde == "ve" and continuous else "positional"
    return {
        "training": {"sde": f"{sde}sde", "continuous": continuous},
        "sampling": {
            "method": "pc",
            "predictor": predictor,
            "corrector": "langevin" if sde == "ve" else "none",
            "n_steps_each": 1,
            "noise_removal": True,
            "probability_flow": False,
            **dataset["sampling"],
        },
        "data": {"num_channels": 3, "centered": sde != "ve", **dataset["data"]},
        "model": {**model, **network, **dataset["model"], **changes},
    }
