"""The network of DDPM: a UNet over pixels, conditioned on the timestep and, optionally, on a class.

Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), appendix B; Nichol & Dhariwal, "Improved
Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), appendix A; with levels of another kind the NCSN++ of Song
et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (arXiv:2011.13456). Arguments,
defaults and state-dict keys are those of HF diffusers' `UNet2DModel`; the options that it does not have are named in
`convention_options`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffusers_ref.configuration import register_to_config
from diffusers_ref.modeling import ModelMixin
from diffusers_ref.outputs import BaseOutput

from .embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps
from .inputs import check_sample, timesteps_per_sample
from .layers import (
    ACTIVATIONS,
    Attention,
    Downsample2D,
    NetworkInNetwork,
    PointwiseLinear,
    ResnetBlock2D,
    Upsample2D,
    swish,
)
from .ncsnpp_blocks import (
    SKIP_DOWN_BLOCK_TYPES,
    SKIP_UP_BLOCK_TYPES,
    PyramidDownBlock,
    PyramidUpBlock,
    quarter_groups,
    skip_down_block,
    skip_up_block,
)
from .unet_2d_blocks import DOWN_BLOCK_TYPES, UP_BLOCK_TYPES, DownBlock, MidBlock, UpBlock

# The attention keys of checkpoints published before 2023 -> today's.
OLD_ATTENTION_KEYS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

FOURIER_SCALE = 16
"""Standard deviation of a new network's Fourier frequencies."""


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
        time_embedding_type: "positional" (sinusoidal), or "fourier": the time is a noise level σ > 0, Fourier features
            of ln σ are embedded, and the output is divided by σ.
        time_embedding_dim: width of the time embedding; None: 4 · block_out_channels[0].
        freq_shift, flip_sin_to_cos: of the sinusoidal embedding, see `Timesteps`.
        down_block_types: one per level from full resolution down: "DownBlock2D" or "AttnDownBlock2D", or those of
            NCSN++, "SkipDownBlock2D" or "AttnSkipDownBlock2D", above any others.
        mid_block_type: "UNetMidBlock2D", or None for no middle.
        up_block_types: one per level from the lowest resolution up: "UpBlock2D" or "AttnUpBlock2D", then
            "SkipUpBlock2D" or "AttnSkipUpBlock2D".
        block_out_channels: channels per level from full resolution down.
        layers_per_block: residual blocks per level on the way down (one more on the way up).
        mid_block_scale_factor: the residual sums of the middle are divided by it.
        downsample_padding: 1, or 0 for one pixel right and below only, see `Downsample2D`.
        downsample_type: "conv", or "avg_pool" for the mean of 2×2 pixels (the originals' resamp_with_conv: False).
        upsample_type: "conv", or "nearest" for repeated pixels only (the same).
        dropout: probability, inside residual blocks.
        act_fn: "silu" (alias "swish"), "mish", "gelu" or "relu", in the residual blocks; elsewhere it is always silu.
        attention_head_dim: channels per attention head; None: one head.
        norm_num_groups: of every group norm but those of NCSN++'s levels; None, if all levels are of these: a quarter
            of the channels, at most 32.
        norm_eps: of every group norm.
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
        _check_choice("time_embedding_type", time_embedding_type, ["positional", "fourier"])
        _check_choice("mid_block_type", mid_block_type, ["UNetMidBlock2D", None])
        _check_choice("downsample_padding", downsample_padding, [0, 1])
        _check_choice("downsample_type", downsample_type, ["conv", "avg_pool"])
        _check_choice("upsample_type", upsample_type, ["conv", "nearest"])
        _check_choice("act_fn", act_fn, list(ACTIVATIONS))
        _check_choice("resnet_time_scale_shift", resnet_time_scale_shift, ["default", "scale_shift"])
        _check_choice("class_embed_type", class_embed_type, [None])
        for block_type in down_block_types:
            _check_choice("down_block_types", block_type, [*DOWN_BLOCK_TYPES, *SKIP_DOWN_BLOCK_TYPES])
        for block_type in up_block_types:
            _check_choice("up_block_types", block_type, [*UP_BLOCK_TYPES, *SKIP_UP_BLOCK_TYPES])
        channels = list(block_out_channels)
        levels = len(channels)
        if not levels or not levels == len(down_block_types) == len(up_block_types):
            raise ValueError(
                "block_out_channels, down_block_types and up_block_types need one entry per level; "
                f"got {levels}, {len(down_block_types)} and {len(up_block_types)}"
            )
        if layers_per_block < 1:
            raise ValueError(f"layers_per_block must be at least 1, got {layers_per_block}")
        skips_down = [block_type in SKIP_DOWN_BLOCK_TYPES for block_type in down_block_types]
        skips_up = [block_type in SKIP_UP_BLOCK_TYPES for block_type in up_block_types]
        if skips_down != sorted(skips_down, reverse=True) or skips_up != sorted(skips_up):
            raise ValueError(
                "levels whose type begins with Skip or AttnSkip must be those of the highest resolutions; "
                f"got down_block_types={tuple(down_block_types)}, up_block_types={tuple(up_block_types)}"
            )
        is_ncsnpp = any(skips_down + skips_up)
        if norm_num_groups is None and not all(skips_down + skips_up):
            raise ValueError("norm_num_groups=None needs levels whose types begin with Skip or AttnSkip")
        if norm_num_groups is not None and (not norm_num_groups or any(width % norm_num_groups for width in channels)):
            raise ValueError(f"norm_num_groups={norm_num_groups} must divide every one of {tuple(channels)}")
        groups_below = norm_num_groups or quarter_groups(channels[-1])

        activation = ACTIVATIONS[act_fn]
        if is_ncsnpp and activation is swish:
            activation = nn.functional.silu  # The authors of NCSN++ use PyTorch's, which rounds once.
        temb_channels = time_embedding_dim or 4 * channels[0]
        resnet = partial(
            ResnetBlock2D,
            temb_channels=temb_channels,
            groups=groups_below,
            eps=norm_eps,
            dropout=dropout,
            scale_shift=resnet_time_scale_shift == "scale_shift",
            activation=activation,
        )

        def attention(
            width: int, *, on_the_way_up: bool = False, groups: int | None = groups_below, scale_factor: float = 1.0
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
                pointwise=NetworkInNetwork if is_ncsnpp else PointwiseLinear,
            )

        downsampler = partial(Downsample2D, with_conv=downsample_type == "conv", padding=downsample_padding)
        upsampler = partial(Upsample2D, with_conv=upsample_type == "conv")

        self.center_input_sample = center_input_sample
        self.activation = activation
        self.last_activation = nn.functional.silu if is_ncsnpp else swish
        self.in_channels = in_channels
        self.scale_by_sigma = time_embedding_type == "fourier"

        self.conv_in = nn.Conv2d(in_channels, channels[0], kernel_size=3, padding=1)
        self.time_proj = (
            GaussianFourierProjection(channels[0], scale=FOURIER_SCALE)
            if self.scale_by_sigma
            else Timesteps(channels[0], flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift)
        )
        embedded = 2 * channels[0] if self.scale_by_sigma else channels[0]
        self.time_embedding = TimestepEmbedding(embedded, temb_channels, self.last_activation)
        self.class_embedding = nn.Embedding(num_class_embeds, temb_channels) if num_class_embeds is not None else None

        self.down_blocks = nn.ModuleList()
        skip_channels = [channels[0]]
        for level, block_type in enumerate(down_block_types):
            width, is_last = channels[level], level == levels - 1
            if block_type in SKIP_DOWN_BLOCK_TYPES:
                block: nn.Module = skip_down_block(
                    block_type,
                    skip_channels[-1],
                    width,
                    layers=layers_per_block,
                    resnet=resnet,
                    attention=attention,
                    image_channels=None if is_last else in_channels,
                )
            else:
                block = DownBlock(
                    skip_channels[-1],
                    width,
                    layers=layers_per_block,
                    resnet=resnet,
                    attention=attention if DOWN_BLOCK_TYPES[block_type] else None,
                    downsampler=None if is_last else downsampler(width),
                )
            self.down_blocks.append(block)
            skip_channels += [width] * (layers_per_block if is_last else layers_per_block + 1)

        self.mid_block: MidBlock | None = None
        if mid_block_type is not None:
            groups = attn_norm_num_groups
            if groups is None and resnet_time_scale_shift == "default":
                groups = groups_below
            mid_attention = partial(attention, groups=groups, scale_factor=mid_block_scale_factor)
            self.mid_block = MidBlock(
                channels[-1],
                resnet=partial(resnet, output_scale_factor=mid_block_scale_factor),
                attention=mid_attention if add_attention else None,
            )

        self.up_blocks = nn.ModuleList()
        below = channels[-1]
        for level, block_type in zip(reversed(range(levels)), up_block_types, strict=True):
            width, taken = channels[level], [skip_channels.pop() for _ in range(layers_per_block + 1)]
            if block_type in SKIP_UP_BLOCK_TYPES:
                block = skip_up_block(
                    block_type,
                    below,
                    taken,
                    width,
                    resnet=resnet,
                    attention=partial(attention, on_the_way_up=True),
                    image_channels=out_channels if level else None,
                    eps=norm_eps,
                )
            else:
                block = UpBlock(
                    below,
                    taken,
                    width,
                    resnet=resnet,
                    attention=partial(attention, on_the_way_up=True) if UP_BLOCK_TYPES[block_type] else None,
                    upsampler=upsampler(width) if level else None,
                )
            self.up_blocks.append(block)
            below = width

        self.conv_norm_out = nn.GroupNorm(norm_num_groups or quarter_groups(channels[0]), channels[0], eps=norm_eps)
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
            timestep: one number for the batch or (B,), integer or fractional; σ > 0 with Fourier features.
            class_labels: (B,) integers in [0, num_class_embeds), exactly if the network is conditional.
            return_dict: False returns a tuple instead of an UNet2DOutput.

        Raises TypeError for what is not a tensor or number, ValueError for a wrong shape, dtype or value.
        """
        dtype, levels = self.conv_in.weight.dtype, len(self.down_blocks)
        check_sample(sample, channels=self.in_channels, dtype=dtype, levels=levels)
        if self.center_input_sample:
            sample = 2 * sample - 1

        timesteps = timesteps_per_sample(timestep, sample)
        temb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        if self.class_embedding is not None or class_labels is not None:
            temb = temb + self._embedded_classes(class_labels, sample)
        temb = self.activation(temb)

        h = self.conv_in(sample)
        skips, pyramid = [h], sample
        for down_block in self.down_blocks:
            if isinstance(down_block, PyramidDownBlock):
                h, computed, pyramid = down_block(h, temb, pyramid)
            else:
                h, computed = down_block(h, temb)
            skips += computed
        if self.mid_block is not None:
            h = self.mid_block(h, temb)
        gathered: Tensor | None = None  # The images that the levels of NCSN++ add to the output.
        for up_block in self.up_blocks:
            if isinstance(up_block, PyramidUpBlock):
                h, gathered = up_block(h, skips, temb, gathered)
            else:
                h = up_block(h, skips, temb)
        h = self.conv_out(self.last_activation(self.conv_norm_out(h)))
        if gathered is not None:
            h = gathered + h
        if self.scale_by_sigma:
            h = (h / timesteps[:, None, None, None]).to(h.dtype)

        return UNet2DOutput(sample=h) if return_dict else (h,)

    @classmethod
    def rename_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys of older checkpoints under today's names: query, key, value, proj_attn of attention; time_proj.W."""
        if "time_proj.W" in state:  # Published twice, or under this name alone.
            state = dict(state)
            frequencies = state.pop("time_proj.W")
            state.setdefault("time_proj.weight", frequencies)
        pattern = re.compile(r"(?<=\battentions\.)(\d+)\.(" + "|".join(OLD_ATTENTION_KEYS) + r")\.")
        return {
            pattern.sub(lambda match: f"{match[1]}.{OLD_ATTENTION_KEYS[match[2]]}.", key): value
            for key, value in state.items()
        }

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
