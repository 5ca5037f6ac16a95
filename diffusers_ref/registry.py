"""The classes of this package by name, and where each lives.

A name found in a file (`_class_name`, an entry of model_index.json) is looked up here and nowhere else, so a file can
only choose among these classes, never make Python import a module of its choice.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Class name -> module that defines it, by the configuration file in which such a class is described.
CLASSES: dict[str, dict[str, str]] = {
    "scheduler_config.json": {
        "DDIMScheduler": "diffusers_ref.schedulers.ddim",
        "DDPMScheduler": "diffusers_ref.schedulers.ddpm",
        "PNDMScheduler": "diffusers_ref.schedulers.pndm",
    },
    "config.json": {
        "UNet2DModel": "diffusers_ref.models.unet_2d",
    },
    "model_index.json": {
        "DDIMPipeline": "diffusers_ref.pipelines.ddim.pipeline",
        "DDPMPipeline": "diffusers_ref.pipelines.ddpm.pipeline",
        "PNDMPipeline": "diffusers_ref.pipelines.pndm.pipeline",
    },
}

# Everything above, in one mapping.
MODULE_OF_CLASS: dict[str, str] = {name: module for kind in CLASSES.values() for name, module in kind.items()}

# Classes that HF diffusers does not have under the same name: folders name them with the library "diffusers_ref".
ONLY_HERE: frozenset[str] = frozenset()


def load_class(name: str) -> Any:
    """The class registered under `name`. Raises KeyError if there is none."""
    return getattr(import_module(MODULE_OF_CLASS[name]), name)
