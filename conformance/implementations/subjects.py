"""What contracts are held against in a library that follows the common API: its schedulers, a small network, and
pipelines around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

Subjects = dict[str, Callable[[], Any]]
"""Name -> what makes the subject: a scheduler class or object, a network, or a pipeline."""

TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
}
TRAIN_TIMESTEPS = 100  # of the pipelines' schedulers
PIPELINES = {"DDPMPipeline": "DDPMScheduler", "DDIMPipeline": "DDIMScheduler", "PNDMPipeline": "PNDMScheduler"}


def scheduler_subjects(library: Any, names: Iterable[str], arguments: dict[str, dict[str, Any]]) -> Subjects:
    """The library's scheduler classes; those that need constructor arguments (`arguments` by class) as objects."""

    def subject(name: str) -> Any:
        cls = getattr(library, name)
        return cls(**arguments[name]) if name in arguments else cls

    return {name: partial(subject, name) for name in sorted(names)}


def image_subjects(library: Any) -> Subjects:
    """A small UNet2DModel, and the unconditional pipelines with it."""

    def unet() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return library.UNet2DModel(**TINY_UNET).eval()

    def pipeline(name: str) -> Any:
        scheduler = getattr(library, PIPELINES[name])(num_train_timesteps=TRAIN_TIMESTEPS)
        made = getattr(library, name)(unet=unet(), scheduler=scheduler)
        made.set_progress_bar_config(disable=True)
        return made

    pipelines = {name: partial(pipeline, name) for name in sorted(PIPELINES) if hasattr(library, name)}
    return {"UNet2DModel": unet, **pipelines}
