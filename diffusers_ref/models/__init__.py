"""Networks, one architecture per file, under the names and state-dict keys of published checkpoints."""

from __future__ import annotations

from .ncsnpp import NCSNppModel
from .unet_2d import UNet2DModel, UNet2DOutput

__all__ = ["NCSNppModel", "UNet2DModel", "UNet2DOutput"]
