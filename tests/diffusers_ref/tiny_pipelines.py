"""The smallest networks and pipelines that still have every kind of part, for the tests."""

from __future__ import annotations

from typing import Any

import torch

from diffusers_ref import DDIMPipeline, DDIMScheduler, UNet2DModel

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
}


def tiny_unet(seed: int = 0, **options: Any) -> UNet2DModel:
    """A network of two levels for images of 8 x 8; every seed has its weights, global randomness is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**(UNET_CONFIG | options)).eval()


def quiet(pipeline: Any) -> Any:
    """The pipeline, with its progress bar off."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_ddim(seed: int = 0, **scheduler_options: Any) -> DDIMPipeline:
    """A DDIM pipeline of a tiny network and 40 training timesteps."""
    scheduler = DDIMScheduler(**({"num_train_timesteps": 40} | scheduler_options))
    return quiet(DDIMPipeline(tiny_unet(seed), scheduler))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
