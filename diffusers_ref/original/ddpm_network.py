"""The network of DDPM in the layout of its authors (TensorFlow) and of its exact PyTorch port (ermongroup/ddim).

hojonathanho/diffusion `diffusion_tf/models/unet.py`, ermongroup/ddim `models/diffusion.py`, luping-liu/PNDM
`model/ddim.py`: one network, the same modules under three spellings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers_ref.configuration import ConfigError

from .key_rules import SQUEEZE_CONV, Layer, Parameter

# How each kind of module stores its parameters. "shortcut" and "pixels" are 1×1 convolutions; ours is a convolution for
# the first and a linear layer for the second.
ParameterKinds = Mapping[str, tuple[Parameter, ...]]

_SAME = (Parameter("weight", "weight"), Parameter("bias", "bias"))
TORCH_PARAMETERS: ParameterKinds = {
    "conv": _SAME,
    "norm": _SAME,
    "dense": _SAME,
    "shortcut": _SAME,
    "pixels": (Parameter("weight", "weight", SQUEEZE_CONV), Parameter("bias", "bias")),
}


@dataclass(frozen=True)
class DDPMNetwork:
    """The original's own hyperparameters.

    attn_resolutions: a level has attention if its height is one of these; the middle always has.
    resamp_with_conv: False for average pooling and plain repetition.
    """

    image_size: int
    in_channels: int
    out_ch: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float
    resamp_with_conv: bool

    def __post_init__(self) -> None:
        if self.ch_mult[:1] != (1,):
            raise ConfigError(f"ch_mult must begin with 1 (the first convolution's width), got {self.ch_mult}")
        multiple = 2 ** (len(self.ch_mult) - 1)
        if self.image_size % multiple:
            raise ConfigError(
                f"image_size must be a multiple of {multiple} for {len(self.ch_mult)} levels (ch_mult), "
                f"got {self.image_size}"
            )

    @property
    def level_has_attention(self) -> list[bool]:
        return [self.image_size // 2**level in self.attn_resolutions for level in range(len(self.ch_mult))]

    def unet_config(self) -> dict[str, Any]:
        """Arguments of our UNet2DModel."""
        attention = self.level_has_attention
        return {
            "sample_size": self.image_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_ch,
            "block_out_channels": tuple(self.ch * mult for mult in self.ch_mult),
            "layers_per_block": self.num_res_blocks,
            "down_block_types": tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
            "up_block_types": tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
            "downsample_padding": 0,
            "downsample_type": "conv" if self.resamp_with_conv else "avg_pool",
            "upsample_type": "conv" if self.resamp_with_conv else "nearest",
            "dropout": self.dropout,
            "attention_head_dim": None,
            "norm_num_groups": 32,
            "norm_eps": 1e-6,
            "freq_shift": 1,
            "flip_sin_to_cos": False,
        }

    def layers(
        self, parameters: ParameterKinds = TORCH_PARAMETERS, spelled: Callable[[str], str] = lambda path: path
    ) -> list[Layer]:
        """Every module, by its PyTorch path; `spelled` turns such a path into the spelling of another original."""
        found: list[Layer] = []

        def add(original: str, ours: str, kind: str | None = None) -> None:
            found.append(Layer(spelled(original), ours, parameters[kind] if kind else ()))

        def add_block(original: str, ours: str, in_channels: int, out_channels: int) -> None:
            add(f"{original}.norm1", f"{ours}.norm1", "norm")
            add(f"{original}.conv1", f"{ours}.conv1", "conv")
            add(f"{original}.temb_proj", f"{ours}.time_emb_proj", "dense")
            add(f"{original}.norm2", f"{ours}.norm2", "norm")
            add(f"{original}.conv2", f"{ours}.conv2", "conv")
            if in_channels != out_channels:
                add(f"{original}.nin_shortcut", f"{ours}.conv_shortcut", "shortcut")
            add(original, ours)

        def add_attention(original: str, ours: str) -> None:
            add(f"{original}.norm", f"{ours}.group_norm", "norm")
            for theirs, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
                add(f"{original}.{theirs}", f"{ours}.{name}", "pixels")
            add(original, ours)

        def add_resampling(original: str, ours: str) -> None:
            if self.resamp_with_conv:
                add(f"{original}.conv", f"{ours}.conv", "conv")
            add(original, ours)

        levels = len(self.ch_mult)
        channels = [self.ch * mult for mult in self.ch_mult]
        attention = self.level_has_attention
        add("temb.dense.0", "time_embedding.linear_1", "dense")
        add("temb.dense.1", "time_embedding.linear_2", "dense")
        add("conv_in", "conv_in", "conv")

        skips = [self.ch]
        for level in range(levels):
            original, ours = f"down.{level}", f"down_blocks.{level}"
            for i in range(self.num_res_blocks):
                add_block(f"{original}.block.{i}", f"{ours}.resnets.{i}", skips[-1], channels[level])
                if attention[level]:
                    add_attention(f"{original}.attn.{i}", f"{ours}.attentions.{i}")
                skips.append(channels[level])
            if level != levels - 1:
                add_resampling(f"{original}.downsample", f"{ours}.downsamplers.0")
                skips.append(channels[level])

        add_block("mid.block_1", "mid_block.resnets.0", channels[-1], channels[-1])
        add_attention("mid.attn_1", "mid_block.attentions.0")
        add_block("mid.block_2", "mid_block.resnets.1", channels[-1], channels[-1])

        below = channels[-1]
        for level in reversed(range(levels)):
            original, ours = f"up.{level}", f"up_blocks.{levels - 1 - level}"
            for i in range(self.num_res_blocks + 1):
                add_block(f"{original}.block.{i}", f"{ours}.resnets.{i}", below + skips.pop(), channels[level])
                below = channels[level]
                if attention[level]:
                    add_attention(f"{original}.attn.{i}", f"{ours}.attentions.{i}")
            if level:
                add_resampling(f"{original}.upsample", f"{ours}.upsamplers.0")

        add("norm_out", "conv_norm_out", "norm")
        add("conv_out", "conv_out", "conv")
        return found
