"""From the sampler's last tensor to images.

Networks work on [-1, 1], images on [0, 1] or on the integers 0..255. How a real number becomes an integer differs
between the papers' codes and is a named convention here.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

OUTPUT_TYPES = ("pil", "np", "pt", "latent", "raw")


class PixelRounding(str, Enum):
    """How y in [0, 1] becomes an integer."""

    HALF_EVEN = "half_even"
    """255·y to the nearest integer, halves to the even one: HF diffusers (NumPy's round)."""

    ROUND = "round"
    """floor(255·y + 0.5): torchvision's save_image, as in ermongroup/ddim and luping-liu/PNDM."""

    TRUNCATE = "truncate"
    """floor(255·y), written (x + 1)·127.5 there: hojonathanho/diffusion, openai/improved-diffusion, CompVis."""


def check_output_type(output_type: str) -> None:
    """Raise ValueError unless `output_type` is one of OUTPUT_TYPES."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}; allowed: {', '.join(OUTPUT_TYPES)}")


def check_pixel_rounding(rounding: str) -> str:
    """The plain value of a PixelRounding or its name. Raises ValueError."""
    try:
        return PixelRounding(rounding).value
    except ValueError:
        allowed = ", ".join(each.value for each in PixelRounding)
        raise ValueError(f"pixel_rounding is {rounding!r}; allowed: {allowed}") from None


def to_unit_range(sample: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped: x / 2 + 0.5. Halving is exact: this is the originals' (x + 1) / 2 bit for bit."""
    return (sample / 2 + 0.5).clamp(0, 1)


def to_integers(pixels: Tensor, rounding: str) -> Tensor:
    """[0, 1] -> uint8 in 0..255, computed in the dtype of `pixels` but at least in float32."""
    scaled = 255 * pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    rounding = check_pixel_rounding(rounding)
    if rounding == PixelRounding.HALF_EVEN.value:
        scaled = scaled.round()
    elif rounding == PixelRounding.ROUND.value:
        scaled = (scaled + 0.5).clamp(max=255)
    return scaled.to(torch.uint8)  # Truncates.


def to_pil(pixels: Tensor, rounding: str) -> list[Image.Image]:
    """pixels: (B, C, H, W) in [0, 1] with C = 1 (grey), 3 (RGB) or 4 (RGBA). Returns B images."""
    from PIL import Image

    if pixels.shape[1] not in (1, 3, 4):
        raise ValueError(f'images of {pixels.shape[1]} channels are not PIL images (1, 3 or 4); use output_type="pt"')
    arrays = to_integers(pixels, rounding).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]


def postprocess(sample: Tensor, output_type: str, pixel_rounding: str, *, centered: bool = True) -> Any:
    """The sampler's last tensor (B, C, H, W) in [-1, 1], or in [0, 1] if not `centered`, as the output asked for.

    "pil": B PIL images. "np": array (B, H, W, C) in [0, 1], at least float32. "pt": tensor (B, C, H, W) in [0, 1].
    "latent" or "raw": the tensor untouched.
    """
    check_output_type(output_type)
    if output_type in ("latent", "raw"):
        return sample
    pixels = to_unit_range(sample) if centered else sample.clamp(0, 1)
    if output_type == "pt":
        return pixels
    if output_type == "np":
        return pixels.to(torch.promote_types(pixels.dtype, torch.float32)).permute(0, 2, 3, 1).cpu().numpy()
    return to_pil(pixels, pixel_rounding)
