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
TINY_NCSNPP = {
    "sample_size": 8,
    "nf": 8,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
    "progressive": "output_skip",
    "progressive_input": "residual",
    "fir": True,
    "embedding_type": "fourier",
    "scale_by_sigma": True,
}
NETWORKS: dict[str, dict[str, Any]] = {"UNet2DModel": TINY_UNET, "NCSNppModel": TINY_NCSNPP}
SHORT = {"num_train_timesteps": 100}
PIPELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "DDPMPipeline": ("DDPMScheduler", SHORT),
    "DDIMPipeline": ("DDIMScheduler", SHORT),
    "PNDMPipeline": ("PNDMScheduler", SHORT),
    # At the noise of 1348 where its schedule begins, a network that is not divided by the noise level overflows half
    # types.
    "ScoreSdeVePipeline": ("ScoreSdeVeScheduler", {**SHORT, "sigma_max": 5.0}),
    "ScoreSdeVpPipeline": ("ScoreSdeVpScheduler", SHORT),
    # Of its samplers the one whose network is given a multiple of the sample, as contracts have it.
    "KarrasVePipeline": ("EDMHeunScheduler", {"sigma_max": 5.0}),
}
"""Pipeline -> its scheduler, and the options of that."""


def scheduler_subjects(library: Any, names: Iterable[str], arguments: dict[str, dict[str, Any]]) -> Subjects:
    """The library's scheduler classes; those that need constructor arguments (`arguments` by class) as objects."""

    def subject(name: str) -> Any:
        cls = getattr(library, name)
        return cls(**arguments[name]) if name in arguments else cls

    return {name: partial(subject, name) for name in sorted(names)}


def image_subjects(library: Any) -> Subjects:
    """Small networks, and the unconditional pipelines with a UNet2DModel."""

    def network(name: str, config: dict[str, Any]) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return getattr(library, name)(**config).eval()

    def pipeline(name: str) -> Any:
        scheduler, options = PIPELINES[name]
        made = getattr(library, name)(
            unet=network("UNet2DModel", TINY_UNET), scheduler=getattr(library, scheduler)(**options)
        )
        made.set_progress_bar_config(disable=True)
        return made

    pipelines = {
        name: partial(pipeline, name)
        for name, (scheduler, _) in sorted(PIPELINES.items())
        if hasattr(library, name) and hasattr(library, scheduler)
    }
    networks = {name: partial(network, name, config) for name, config in NETWORKS.items() if hasattr(library, name)}
    return {**networks, **pipelines}
