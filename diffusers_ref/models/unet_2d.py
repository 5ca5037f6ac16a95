"""The network of DDPM: a UNet over pixels, conditioned on the timestep and, optionally, on a class.

Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), appendix B; Nichol & Dhariwal, "Improved
Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), appendix A. Arguments, defaults and state-dict keys are
those of HF diffusers' `UNet2DModel`; the options that it does not have are named in `convention_options`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffusers_ref.configuration import register_to_config
from diffusers_ref.modeling import ModelMixin
from diffusers_ref.outputs import BaseOutput

from .embeddings import TimestepEmbedding, Timesteps
from .layers import ACTIVATIONS, Attention, Downsample2D, ResnetBlock2D, Upsample2D, swish
from .unet_2d_blocks import DOWN_BLOCK_TYPES, UP_BLOCK_TYPES, DownBlock, MidBlock, UpBlock

# The attention keys of checkpoints published before 2023 -> today's.
OLD_ATTENTION_KEYS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(eq=False)
class UNet2DOutput(BaseOutput):
    """sample: (B, out_channels, H, W)."""

    sample: Tensor


class UNet2DModel(ModelMixin):
    """UNet: (B, in_channels, H, W) and a timestep per sample -> (B, out_channels, H, W).

    With L levels, H and W are multiples of 2^(L−1). Raises ValueError for an argument that is not supported.

    Args:
        sample_size: height and width that the network was trained on (int, or a pair), which pipelines draw.
        in_channels, out_channels: of the image; out_channels is twice in_channels where a variance is learned.
        center_input_sample: the input is in [0, 1] and is mapped to [−1, 1] first.
        time_embedding_type: "positional" (sinusoidal).
        time_embedding_dim: width of the time embedding; None: 4 · block_out_channels[0].
        freq_shift, flip_sin_to_cos: of the sinusoidal embedding, see `Timesteps`.
        down_block_types: one per level from full resolution down: "DownBlock2D" or "AttnDownBlock2D".
        mid_block_type: "UNetMidBlock2D", or None for no middle.
        up_block_types: one per level from the lowest resolution up: "UpBlock2D" or "AttnUpBlock2D".
        block_out_channels: channels per level from full resolution down.
        layers_per_block: residual blocks per level on the way down (one more on the way up).
        mid_block_scale_factor: the residual sums of the middle are divided by it.
        downsample_padding: 1, or 0 for one pixel right and below only, see `Downsample2D`.
        downsample_type: "conv", or "avg_pool" for the mean of 2×2 pixels (the originals' resamp_with_conv: False).
        upsample_type: "conv", or "nearest" for repeated pixels only (the same).
        dropout: probability, inside residual blocks.
        act_fn: "silu" (alias "swish"), "mish", "gelu" or "relu", in the residual blocks; elsewhere it is always silu.
        attention_head_dim: channels per attention head; None: one head.
        norm_num_groups, norm_eps: of every group norm.
        attn_norm_num_groups: groups in front of the middle's attention; None: norm_num_groups with
            resnet_time_scale_shift="default", else no norm there.
        resnet_time_scale_shift: how the time embedding enters a residual block: "default" (added) or "scale_shift".
        add_attention: whether the middle has attention.
        class_embed_type: None (a table of num_class_embeds vectors, if that is given).
        num_class_embeds: number of classes; None: unconditional.
        num_train_timesteps: accepted as published configs carry it; a sinusoidal embedding does not depend on it.
        num_attention_heads: heads on every level, instead of attention_head_dim; q and k are then scaled before their
            product, both as openai/improved-diffusion. HF diffusers has no such option and would ignore it.
        num_attention_heads_upsample: the same on the way up; None: num_attention_heads.
    """

    convention_options: ClassVar[frozenset[str]] = frozenset({"num_attention_heads", "num_attention_heads_upsample"})

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: Sequence[int] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        num_attention_heads: int | None = None,
        num_attention_heads_upsample: int | None = None,
    ) -> None:
        super().__init__()
        _check_choice("time_embedding_type", time_embedding_type, ["positional"])
        _check_choice("mid_block_type", mid_block_type, ["UNetMidBlock2D", None])
        _check_choice("downsample_padding", downsample_padding, [0, 1])
        _check_choice("downsample_type", downsample_type, ["conv", "avg_pool"])
        _check_choice("upsample_type", upsample_type, ["conv", "nearest"])
        _check_choice("act_fn", act_fn, list(ACTIVATIONS))
        _check_choice("resnet_time_scale_shift", resnet_time_scale_shift, ["default", "scale_shift"])
        _check_choice("class_embed_type", class_embed_type, [None])
        for block_type in down_block_types:
            _check_choice("down_block_types", block_type, list(DOWN_BLOCK_TYPES))
        for block_type in up_block_types:
            _check_choice("up_block_types", block_type, list(UP_BLOCK_TYPES))
        channels = list(block_out_channels)
        levels = len(channels)
        if not levels or not levels == len(down_block_types) == len(up_block_types):
            raise ValueError(
                "block_out_channels, down_block_types and up_block_types need one entry per level; "
                f"got {levels}, {len(down_block_types)} and {len(up_block_types)}"
            )
        if layers_per_block < 1:
            raise ValueError(f"layers_per_block must be at least 1, got {layers_per_block}")
        if not norm_num_groups or any(width % norm_num_groups for width in channels):
            raise ValueError(f"norm_num_groups={norm_num_groups} must divide every one of {tuple(channels)}")

        temb_channels = time_embedding_dim or 4 * channels[0]
        resnet = partial(
            ResnetBlock2D,
            temb_channels=temb_channels,
            groups=norm_num_groups,
            eps=norm_eps,
            dropout=dropout,
            scale_shift=resnet_time_scale_shift == "scale_shift",
            activation=ACTIVATIONS[act_fn],
        )

        def attention(
            width: int, *, on_the_way_up: bool = False, groups: int | None = norm_num_groups, scale_factor: float = 1.0
        ) -> Attention:
            fixed_heads = num_attention_heads
            if on_the_way_up and num_attention_heads_upsample is not None:
                fixed_heads = num_attention_heads_upsample
            return Attention(
                width,
                heads=_number_of_heads(width, fixed_heads, attention_head_dim),
                groups=groups,
                eps=norm_eps,
                scale_q_and_k=fixed_heads is not None,
                output_scale_factor=scale_factor,
            )

        downsampler = partial(Downsample2D, with_conv=downsample_type == "conv", padding=downsample_padding)
        upsampler = partial(Upsample2D, with_conv=upsample_type == "conv")

        self.center_input_sample = center_input_sample
        self.activation = ACTIVATIONS[act_fn]
        self.in_channels = in_channels
        self.size_multiple = 2 ** (levels - 1)

        self.conv_in = nn.Conv2d(in_channels, channels[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(channels[0], flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift)
        self.time_embedding = TimestepEmbedding(channels[0], temb_channels)
        self.class_embedding = nn.Embedding(num_class_embeds, temb_channels) if num_class_embeds is not None else None

        self.down_blocks = nn.ModuleList()
        skip_channels = [channels[0]]
        for level, block_type in enumerate(down_block_types):
            width, is_last = channels[level], level == levels - 1
            self.down_blocks.append(
                DownBlock(
                    skip_channels[-1],
                    width,
                    layers=layers_per_block,
                    resnet=resnet,
                    attention=attention if DOWN_BLOCK_TYPES[block_type] else None,
                    downsampler=None if is_last else downsampler(width),
                )
            )
            skip_channels += [width] * (layers_per_block if is_last else layers_per_block + 1)

        self.mid_block: MidBlock | None = None
        if mid_block_type is not None:
            groups = attn_norm_num_groups
            if groups is None and resnet_time_scale_shift == "default":
                groups = norm_num_groups
            mid_attention = partial(attention, groups=groups, scale_factor=mid_block_scale_factor)
            self.mid_block = MidBlock(
                channels[-1],
                resnet=partial(resnet, output_scale_factor=mid_block_scale_factor),
                attention=mid_attention if add_attention else None,
            )

        self.up_blocks = nn.ModuleList()
        below = channels[-1]
        for level, block_type in zip(reversed(range(levels)), up_block_types, strict=True):
            width = channels[level]
            self.up_blocks.append(
                UpBlock(
                    below,
                    [skip_channels.pop() for _ in range(layers_per_block + 1)],
                    width,
                    resnet=resnet,
                    attention=partial(attention, on_the_way_up=True) if UP_BLOCK_TYPES[block_type] else None,
                    upsampler=upsampler(width) if level else None,
                )
            )
            below = width

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, channels[0], eps=norm_eps)
        self.conv_out = nn.Conv2d(channels[0], out_channels, kernel_size=3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Evaluate the network.

        Args:
            sample: (B, in_channels, H, W), of the network's dtype.
            timestep: one number for the batch or (B,), integer or fractional.
            class_labels: (B,) integers in [0, num_class_embeds), exactly if the network is conditional.
            return_dict: False returns a tuple instead of an UNet2DOutput.

        Raises TypeError for what is not a tensor or number, ValueError for a wrong shape, dtype or value.
        """
        self._check_sample(sample)
        if self.center_input_sample:
            sample = 2 * sample - 1

        timesteps = _timesteps_per_sample(timestep, sample)
        temb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        if self.class_embedding is not None or class_labels is not None:
            temb = temb + self._embedded_classes(class_labels, sample)
        temb = self.activation(temb)

        h = self.conv_in(sample)
        skips = [h]
        for down_block in self.down_blocks:
            h, computed = down_block(h, temb)
            skips += computed
        if self.mid_block is not None:
            h = self.mid_block(h, temb)
        for up_block in self.up_blocks:
            h = up_block(h, skips, temb)
        h = self.conv_out(swish(self.conv_norm_out(h)))

        return UNet2DOutput(sample=h) if return_dict else (h,)

    @classmethod
    def rename_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The attention keys of older checkpoints (query, key, value, proj_attn) under today's names."""
        pattern = re.compile(r"(?<=\battentions\.)(\d+)\.(" + "|".join(OLD_ATTENTION_KEYS) + r")\.")
        return {
            pattern.sub(lambda match: f"{match[1]}.{OLD_ATTENTION_KEYS[match[2]]}.", key): value
            for key, value in state.items()
        }

    def _check_sample(self, sample: Tensor) -> None:
        if not isinstance(sample, Tensor):
            raise TypeError(f"sample must be a tensor, got {type(sample).__name__}")
        if sample.ndim != 4 or sample.shape[1] != self.in_channels:
            raise ValueError(f"sample must have shape (B, {self.in_channels}, H, W), got {tuple(sample.shape)}")
        dtype = self.conv_in.weight.dtype
        if sample.dtype != dtype:
            raise ValueError(
                f"sample is {sample.dtype} but the network is {dtype}; convert one of them with .to(dtype)"
            )
        height, width = sample.shape[2:]
        if not height or not width or height % self.size_multiple or width % self.size_multiple:
            raise ValueError(
                f"height and width must be positive multiples of {self.size_multiple} for a network of "
                f"{len(self.down_blocks)} levels, got {height} x {width}"
            )

    def _embedded_classes(self, class_labels: Tensor | None, sample: Tensor) -> Tensor:
        """(B,) labels -> (B, temb_channels). Their range is checked on the CPU only; elsewhere that would stall."""
        if self.class_embedding is None:
            raise ValueError("class_labels were given, but this network is unconditional (num_class_embeds is None)")
        classes = self.class_embedding.num_embeddings
        if class_labels is None:
            raise ValueError(f"this network is conditional: class_labels in [0, {classes}) are needed, one per sample")
        if not isinstance(class_labels, Tensor):
            raise TypeError(f"class_labels must be a tensor, got {type(class_labels).__name__}")
        if class_labels.dtype not in (torch.int32, torch.int64) or class_labels.shape != sample.shape[:1]:
            raise ValueError(
                f"class_labels must be integers (int32, int64) of shape ({sample.shape[0]},), got {class_labels.dtype} "
                f"of shape {tuple(class_labels.shape)}"
            )
        if class_labels.device.type == "cpu" and ((class_labels < 0) | (class_labels >= classes)).any():
            raise ValueError(f"class_labels must be in [0, {classes}), got {class_labels.tolist()}")
        return self.class_embedding(class_labels.to(sample.device))


def _timesteps_per_sample(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """One number or (B,) -> (B,) on the sample's device."""
    if not isinstance(timestep, Tensor):
        if isinstance(timestep, bool) or not isinstance(timestep, Real):
            raise TypeError(f"timestep must be a number or a tensor, got {type(timestep).__name__}")
        timestep = torch.tensor(float(timestep), dtype=torch.float32)
    batch = sample.shape[0]
    if timestep.ndim > 1 or timestep.numel() not in (1, batch):
        raise ValueError(f"timestep must be one number or have shape ({batch},), got {tuple(timestep.shape)}")
    if timestep.dtype == torch.bool or timestep.is_complex():
        raise ValueError(f"timestep must be integer or real, got {timestep.dtype}")
    return timestep.to(sample.device).expand(batch)


def _number_of_heads(channels: int, heads: int | None, head_dim: int | None) -> int:
    if heads is not None:
        name, count, divides = "num_attention_heads", heads, heads > 0 and channels % heads == 0
    else:
        head_dim = channels if head_dim is None else head_dim
        divides = head_dim > 0 and channels % head_dim == 0
        name, count = "attention_head_dim", channels // head_dim if divides else head_dim
    if not divides:
        raise ValueError(f"{name}={count} must divide the channels of every level with attention, here {channels}")
    return count


def _check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not supported; allowed: {', '.join(map(repr, allowed))}")
