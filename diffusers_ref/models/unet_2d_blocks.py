"""The three kinds of levels a UNet is made of: on the way down, in the middle, on the way up.

A level's name says whether self-attention follows each residual block: `DownBlock2D` / `AttnDownBlock2D`,
`UpBlock2D` / `AttnUpBlock2D`. The classes differ in nothing else, so each pair is one class here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .layers import Attention, Downsample2D, ResnetBlock2D, Upsample2D

DOWN_BLOCK_TYPES = {"DownBlock2D": False, "AttnDownBlock2D": True}  # name -> has attention
UP_BLOCK_TYPES = {"UpBlock2D": False, "AttnUpBlock2D": True}

MakeResnet = Callable[[int, int], ResnetBlock2D]  # (in_channels, out_channels)
MakeAttention = Callable[[int], Attention]  # (channels)


class DownBlock(nn.Module):
    """`layers` residual blocks, each followed by attention where given, then an optional downsampler."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        resnet: MakeResnet,
        attention: MakeAttention | None,
        downsampler: Downsample2D | None,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (layers - 1)
        self.attentions = nn.ModuleList([attention(out_channels) for _ in inputs]) if attention else None
        self.resnets = nn.ModuleList([resnet(channels, out_channels) for channels in inputs])
        self.downsamplers = nn.ModuleList([downsampler]) if downsampler is not None else None

    def forward(self, h: Tensor, temb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the level's output and everything the way up will concatenate, in order of computation."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, temb)
            if self.attentions is not None:
                h = self.attentions[i](h)
            skips.append(h)
        if self.downsamplers is not None:
            h = self.downsamplers[0](h)
            skips.append(h)
        return h, skips


class MidBlock(nn.Module):
    """Residual block, attention where given, residual block; all at the lowest resolution."""

    def __init__(self, channels: int, *, resnet: MakeResnet, attention: MakeAttention | None) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([attention(channels)]) if attention else None
        self.resnets = nn.ModuleList([resnet(channels, channels), resnet(channels, channels)])

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        h = self.resnets[0](h, temb)
        if self.attentions is not None:
            h = self.attentions[0](h)
        return self.resnets[1](h, temb)


class UpBlock(nn.Module):
    """Residual blocks on the concatenation of input and skip, attention where given, then an optional upsampler.

    Args:
        in_channels: of the level below.
        skip_channels: of the skips in the order in which they are consumed (last computed first); one residual block
            for each.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: list[int],
        out_channels: int,
        *,
        resnet: MakeResnet,
        attention: MakeAttention | None,
        upsampler: Upsample2D | None,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.attentions = nn.ModuleList([attention(out_channels) for _ in inputs]) if attention else None
        self.resnets = nn.ModuleList([resnet(a + b, out_channels) for a, b in zip(inputs, skip_channels, strict=True)])
        self.upsamplers = nn.ModuleList([upsampler]) if upsampler is not None else None

    def forward(self, h: Tensor, skips: list[Tensor], temb: Tensor) -> Tensor:
        """Takes what it concatenates off the end of `skips`."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(torch.cat([h, skips.pop()], dim=1), temb)
            if self.attentions is not None:
                h = self.attentions[i](h)
        if self.upsamplers is not None:
            h = self.upsamplers[0](h)
        return h
