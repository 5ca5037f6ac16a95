"""The levels of NCSN++ and DDPM++, beside whose path a pyramid of images can run.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (arXiv:2011.13456, appendix H);
the pyramids are those of Karras et al. (arXiv:1912.04958, figure 7). On the way down the pyramid is the input,
resampled level by level; on the way up it gathers the output. `UNet2DModel` has the levels that HF diffusers publishes
under the names `SkipDownBlock2D` and so on, `NCSNppModel` has all. Attribute names are those of published state dicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from .fir import FirDownsample2D, FirUpsample2D
from .layers import Attention, ResnetBlock2D, divided

SKIP_DOWN_BLOCK_TYPES = {"SkipDownBlock2D": False, "AttnSkipDownBlock2D": True}  # name -> has attention
SKIP_UP_BLOCK_TYPES = {"SkipUpBlock2D": False, "AttnSkipUpBlock2D": True}
PUBLISHED_ATTENTION_GROUPS = 32

MakeAttention = Callable[[int], Attention]  # (channels)
Combine = Literal["sum", "cat"]


def quarter_groups(channels: int) -> int:
    """Groups of a norm: a quarter of its channels, at most 32. Raises ValueError where they do not divide."""
    groups = min(channels // 4, 32)
    if not groups or channels % groups:
        raise ValueError(f"{channels} channels cannot be normed in min(channels // 4, 32) = {groups} groups")
    return groups


class MeanDownsample2D(nn.Module):
    """Mean of 2×2 pixels: (B, C, H, W) -> (B, C, H / 2, W / 2), added up in the original's order."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        return x.reshape(b, c, height // 2, 2, width // 2, 2).mean(dim=(3, 5))


class PyramidDownBlock(nn.Module):
    """Residual blocks, each followed by attention where given; then half the size, joined by the input's pyramid.

    Args:
        resnets: one or more, the first one from the channels of the level above.
        attention: makes the attention behind each of them.
        resnet_down: residual block that halves the size (BigGAN); None with `downsampler`, or at the last level.
        downsampler: halves the size (DDPM).
        pyramid_down: halves the pyramid; None where there is none.
        skip_conv: 1×1 convolution from the pyramid ("input skip"); None for a pyramid that has the level's channels
            and takes up the level's output ("residual").
        combine: how the output of skip_conv joins: added, or in front of the channels.
        scale_factor: the sum of a residual pyramid is divided by it.
    """

    def __init__(
        self,
        resnets: list[ResnetBlock2D],
        channels: int,
        *,
        attention: MakeAttention | None,
        resnet_down: ResnetBlock2D | None = None,
        downsampler: nn.Module | None = None,
        pyramid_down: nn.Module | None = None,
        skip_conv: nn.Conv2d | None = None,
        combine: Combine = "sum",
        scale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.combine = combine
        self.scale_factor = scale_factor
        self.attentions = nn.ModuleList([attention(channels) for _ in resnets]) if attention else None
        self.resnets = nn.ModuleList(resnets)
        self.resnet_down = resnet_down
        self.downsamplers = nn.ModuleList([downsampler]) if downsampler is not None else None
        self.pyramid_down = pyramid_down
        self.skip_conv = skip_conv

    def forward(self, h: Tensor, temb: Tensor | None, pyramid: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Returns the level's output, what the way up will concatenate in order of computation, and the pyramid."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, temb)
            if self.attentions is not None:
                h = self.attentions[i](h)
            skips.append(h)
        if self.resnet_down is not None:
            h = self.resnet_down(h, temb)
        elif self.downsamplers is not None:
            h = self.downsamplers[0](h)
        else:
            return h, skips, pyramid

        if self.pyramid_down is not None:
            pyramid = self.pyramid_down(pyramid)
            if self.skip_conv is None:
                h = pyramid = divided(pyramid + h, self.scale_factor)
            elif self.combine == "sum":
                h = self.skip_conv(pyramid) + h
            else:
                h = torch.cat([self.skip_conv(pyramid), h], dim=1)
        skips.append(h)
        return h, skips, pyramid


class PyramidUpBlock(nn.Module):
    """Residual blocks on input and skips, one attention where given, the output's pyramid; then twice the size.

    Args:
        resnets: one for each skip that is taken.
        attention: behind all of them.
        pyramid_up: doubles the size of the pyramid, which begins at the lowest level; None where there is none.
        skip_norm, skip_conv: make the level's part of the pyramid, an image; None where there is none, or where the
            network's last norm and convolution make it.
        activation: behind skip_norm.
        resnet_up: residual block that doubles the size (BigGAN); None with `upsampler`, or at the last level.
        upsampler: doubles the size (DDPM).
    """

    def __init__(
        self,
        resnets: list[ResnetBlock2D],
        *,
        attention: Attention | None,
        pyramid_up: nn.Module | None = None,
        skip_norm: nn.GroupNorm | None = None,
        skip_conv: nn.Conv2d | None = None,
        activation: Callable[[Tensor], Tensor] = nn.functional.silu,
        resnet_up: ResnetBlock2D | None = None,
        upsampler: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.attentions = nn.ModuleList([attention]) if attention is not None else None
        self.resnets = nn.ModuleList(resnets)
        self.pyramid_up = pyramid_up
        self.skip_norm = skip_norm
        self.skip_conv = skip_conv
        self.resnet_up = resnet_up
        self.upsamplers = nn.ModuleList([upsampler]) if upsampler is not None else None

    def forward(
        self, h: Tensor, skips: list[Tensor], temb: Tensor | None, pyramid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Takes what it concatenates off the end of `skips`; returns the level's output and the pyramid."""
        for resnet in self.resnets:
            h = resnet(torch.cat([h, skips.pop()], dim=1), temb)
        if self.attentions is not None:
            h = self.attentions[0](h)

        if pyramid is not None and self.pyramid_up is not None:
            pyramid = self.pyramid_up(pyramid)
        if self.skip_norm is not None and self.skip_conv is not None:
            part = self.skip_conv(self.activation(self.skip_norm(h)))
            pyramid = part if pyramid is None else pyramid + part

        if self.resnet_up is not None:
            h = self.resnet_up(h, temb)
        elif self.upsamplers is not None:
            h = self.upsamplers[0](h)
        return h, pyramid


# --- the levels that HF diffusers publishes: BigGAN blocks, FIR filters, skips on both ways, sums divided by √2 ------


def skip_down_block(
    block_type: str,
    in_channels: int,
    out_channels: int,
    *,
    layers: int,
    resnet: Callable[..., ResnetBlock2D],
    attention: Callable[..., Attention],
    image_channels: int | None,
) -> PyramidDownBlock:
    """A level on the way down. image_channels: of the pyramid; None at the last level, which keeps its size."""
    factor, groups = math.sqrt(2.0), quarter_groups(out_channels)

    def block(channels: int, resampling: nn.Module | None = None) -> ResnetBlock2D:
        both = (quarter_groups(channels), groups)
        return resnet(channels, out_channels, groups=both, output_scale_factor=factor, resampling=resampling)

    def level_attention(channels: int) -> Attention:
        return attention(channels, groups=PUBLISHED_ATTENTION_GROUPS, scale_factor=factor)

    goes_on = image_channels is not None
    return PyramidDownBlock(
        [block(channels) for channels in [in_channels] + [out_channels] * (layers - 1)],
        out_channels,
        attention=level_attention if SKIP_DOWN_BLOCK_TYPES[block_type] else None,
        resnet_down=block(out_channels, FirDownsample2D()) if goes_on else None,
        pyramid_down=FirDownsample2D() if goes_on else None,
        skip_conv=nn.Conv2d(image_channels, out_channels, kernel_size=1) if image_channels is not None else None,
    )


def skip_up_block(
    block_type: str,
    in_channels: int,
    skip_channels: list[int],
    out_channels: int,
    *,
    resnet: Callable[..., ResnetBlock2D],
    attention: Callable[..., Attention],
    image_channels: int | None,
    eps: float,
) -> PyramidUpBlock:
    """A level on the way up. image_channels: of the pyramid; None at the last level, which keeps its size."""
    factor, groups = math.sqrt(2.0), quarter_groups(out_channels)
    has_attention = SKIP_UP_BLOCK_TYPES[block_type]

    def block(channels: int, skip: int = 0, resampling: nn.Module | None = None) -> ResnetBlock2D:
        # As published: in a level with attention only the skip's channels are counted by quarters.
        groups_in = min(channels + skip // 4, 32) if has_attention and skip else quarter_groups(channels + skip)
        both = (groups_in, groups)
        return resnet(channels + skip, out_channels, groups=both, output_scale_factor=factor, resampling=resampling)

    inputs = [in_channels] + [out_channels] * (len(skip_channels) - 1)
    goes_on = image_channels is not None
    return PyramidUpBlock(
        [block(channels, skip) for channels, skip in zip(inputs, skip_channels, strict=True)],
        attention=attention(out_channels, groups=PUBLISHED_ATTENTION_GROUPS, scale_factor=factor)
        if has_attention
        else None,
        pyramid_up=FirUpsample2D(),
        skip_norm=nn.GroupNorm(groups, out_channels, eps=eps) if goes_on else None,
        skip_conv=nn.Conv2d(out_channels, image_channels, kernel_size=3, padding=1)
        if image_channels is not None
        else None,
        resnet_up=block(out_channels, resampling=FirUpsample2D()) if goes_on else None,
    )
