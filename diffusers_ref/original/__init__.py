"""The originals' own checkpoints: one file per format, declaring how its weights and modules correspond to ours."""

from __future__ import annotations

from .checkpoints import read_checkpoint
from .convert import (
    FORMATS,
    OriginalFormat,
    SingleFile,
    build_unet,
    detect_format,
    get_format,
    key_map,
    load_single_file,
    module_map,
    original_keys,
)
from .key_rules import KeyRule, Layer, Transform

__all__ = [
    "FORMATS",
    "KeyRule",
    "Layer",
    "OriginalFormat",
    "SingleFile",
    "Transform",
    "build_unet",
    "detect_format",
    "get_format",
    "key_map",
    "load_single_file",
    "module_map",
    "original_keys",
    "read_checkpoint",
]
