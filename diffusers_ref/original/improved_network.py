"""The network of improved DDPM in its authors' layout: openai/improved-diffusion `improved_diffusion/unet.py`.

Its blocks are numbered through, level after level: `input_blocks`, `middle_block`, `output_blocks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers_ref.configuration import ConfigError

from .key_rules import SQUEEZE_CONV_1D, Layer, Parameter, fused_qkv

_SAME = (Parameter("weight", "weight"), Parameter("bias", "bias"))
_SEQUENCE_CONV = (Parameter("weight", "weight", SQUEEZE_CONV_1D), Parameter("bias", "bias"))


def _qkv(heads: int) -> tuple[Parameter, ...]:
    parameters = []
    for part, name in enumerate(("to_q", "to_k", "to_v")):
        weight, bias = fused_qkv(part, heads)
        parameters += [Parameter("weight", f"{name}.weight", weight), Parameter("bias", f"{name}.bias", bias)]
    return tuple(parameters)


@dataclass(frozen=True)
class ImprovedNetwork:
    """The original's own hyperparameters.

    attention_rates: a level has attention if its downsampling rate (1, 2, 4, …) is one of these; the middle always has.
    """

    image_size: int
    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_rates: tuple[int, ...]
    num_heads: int
    num_heads_upsample: int
    use_scale_shift_norm: bool
    dropout: float
    num_classes: int | None

    def __post_init__(self) -> None:
        if self.channel_mult[:1] != (1,):
            raise ConfigError(
                f"channel_mult must begin with 1 (the first convolution's width), got {self.channel_mult}"
            )
        multiple = 2 ** (len(self.channel_mult) - 1)
        if self.image_size % multiple:
            raise ConfigError(
                f"image_size must be a multiple of {multiple} for {len(self.channel_mult)} levels (channel_mult), "
                f"got {self.image_size}"
            )

    @property
    def level_has_attention(self) -> list[bool]:
        return [2**level in self.attention_rates for level in range(len(self.channel_mult))]

    def unet_config(self) -> dict[str, Any]:
        """Arguments of our UNet2DModel."""
        attention = self.level_has_attention
        config: dict[str, Any] = {
            "sample_size": self.image_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": tuple(self.model_channels * mult for mult in self.channel_mult),
            "layers_per_block": self.num_res_blocks,
            "down_block_types": tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
            "up_block_types": tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
            "downsample_padding": 1,
            "dropout": self.dropout,
            "attention_head_dim": None,
            "num_attention_heads": self.num_heads,
            "norm_num_groups": 32,
            "attn_norm_num_groups": 32,
            "norm_eps": 1e-5,
            "freq_shift": 0,
            "flip_sin_to_cos": True,
            "resnet_time_scale_shift": "scale_shift" if self.use_scale_shift_norm else "default",
            "num_class_embeds": self.num_classes,
        }
        if self.num_heads_upsample != self.num_heads:
            config["num_attention_heads_upsample"] = self.num_heads_upsample
        return config

    def layers(self) -> list[Layer]:
        """Every module by its path."""
        found: list[Layer] = []

        def add(original: str, ours: str, parameters: tuple[Parameter, ...] = (), *, aligned: bool = True) -> None:
            found.append(Layer(original, ours, parameters, aligned))

        def add_block(original: str, ours: str, in_channels: int, out_channels: int) -> None:
            add(f"{original}.in_layers.0", f"{ours}.norm1", _SAME)
            add(f"{original}.in_layers.2", f"{ours}.conv1", _SAME)
            add(f"{original}.emb_layers.1", f"{ours}.time_emb_proj", _SAME)
            add(f"{original}.out_layers.0", f"{ours}.norm2", _SAME)
            add(f"{original}.out_layers.3", f"{ours}.conv2", _SAME)
            if in_channels != out_channels:
                add(f"{original}.skip_connection", f"{ours}.conv_shortcut", _SAME)
            add(original, ours)

        def add_attention(original: str, ours: str, heads: int) -> None:
            # Norm and projection work on flattened pixels there: the same numbers, another shape.
            add(f"{original}.norm", f"{ours}.group_norm", _SAME, aligned=False)
            add(f"{original}.qkv", ours, _qkv(heads), aligned=False)
            add(f"{original}.proj_out", f"{ours}.to_out.0", _SEQUENCE_CONV, aligned=False)
            add(original, ours)

        levels = len(self.channel_mult)
        channels = [self.model_channels * mult for mult in self.channel_mult]
        attention = self.level_has_attention
        add("time_embed.0", "time_embedding.linear_1", _SAME)
        add("time_embed.2", "time_embedding.linear_2", _SAME)
        if self.num_classes is not None:
            add("label_emb", "class_embedding", (Parameter("weight", "weight"),))
        add("input_blocks.0.0", "conv_in", _SAME)

        skips = [self.model_channels]
        for level in range(levels):
            ours = f"down_blocks.{level}"
            for i in range(self.num_res_blocks):
                original = f"input_blocks.{len(skips)}"
                add_block(f"{original}.0", f"{ours}.resnets.{i}", skips[-1], channels[level])
                if attention[level]:
                    add_attention(f"{original}.1", f"{ours}.attentions.{i}", self.num_heads)
                skips.append(channels[level])
            if level != levels - 1:
                original = f"input_blocks.{len(skips)}.0"
                add(f"{original}.op", f"{ours}.downsamplers.0.conv", _SAME)
                add(original, f"{ours}.downsamplers.0")
                skips.append(channels[level])

        add_block("middle_block.0", "mid_block.resnets.0", channels[-1], channels[-1])
        add_attention("middle_block.1", "mid_block.attentions.0", self.num_heads)
        add_block("middle_block.2", "mid_block.resnets.1", channels[-1], channels[-1])

        below, number = channels[-1], 0
        for level in reversed(range(levels)):
            ours = f"up_blocks.{levels - 1 - level}"
            for i in range(self.num_res_blocks + 1):
                original = f"output_blocks.{number}"
                add_block(f"{original}.0", f"{ours}.resnets.{i}", below + skips.pop(), channels[level])
                if attention[level]:
                    add_attention(f"{original}.1", f"{ours}.attentions.{i}", self.num_heads_upsample)
                if level and i == self.num_res_blocks:
                    original = f"{original}.{2 if attention[level] else 1}"
                    add(f"{original}.conv", f"{ours}.upsamplers.0.conv", _SAME)
                    add(original, f"{ours}.upsamplers.0")
                below, number = channels[level], number + 1

        add("out.0", "conv_norm_out", _SAME)
        add("out.2", "conv_out", _SAME)
        return found
