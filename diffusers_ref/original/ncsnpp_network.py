"""NCSN++, DDPM++ and DDPM in the layout of yang-song/score_sde_pytorch: `models/ncsnpp.py` and `models/ddpm.py`.

Its modules are numbered through in the order in which they run: `all_modules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers_ref.configuration import ConfigError

from .key_rules import Layer, Parameter, Transform

_SAME = (Parameter("weight", "weight"), Parameter("bias", "bias"))

_NIN = Transform(  # "Network in network" (I, O) -> (O, I)
    "nin", lambda w: w.t(), lambda shape: (shape[1], shape[0])
)
_PIXELS = (Parameter("W", "weight", _NIN), Parameter("b", "bias"))


@dataclass(frozen=True)
class NCSNppNetwork:
    """The original's own hyperparameters, under its names; see NCSNppModel.

    centered: images are in [−1, 1]; else the network maps them from [0, 1].
    norm_num_groups: 32 for its plain DDPM; None for a quarter of the channels, at most 32.
    """

    image_size: int
    num_channels: int
    centered: bool
    nf: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float
    resamp_with_conv: bool
    conditional: bool
    nonlinearity: str
    embedding_type: str
    scale_by_sigma: bool
    sigma_min: float
    sigma_max: float
    num_scales: int
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    skip_rescale: bool = False
    resblock_type: str = "ddpm"
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    norm_num_groups: int | None = None

    def __post_init__(self) -> None:
        multiple = 2 ** (len(self.ch_mult) - 1)
        if self.image_size % multiple:
            raise ConfigError(
                f"image_size must be a multiple of {multiple} for {len(self.ch_mult)} levels (ch_mult), "
                f"got {self.image_size}"
            )

    @property
    def level_has_attention(self) -> list[bool]:
        return [self.image_size // 2**level in self.attn_resolutions for level in range(len(self.ch_mult))]

    @property
    def widths(self) -> list[int]:
        return [self.nf * mult for mult in self.ch_mult]

    # --- our network -------------------------------------------------------------------------------------------------

    def network_config(self) -> dict[str, Any]:
        """Class and arguments of our network, as config.json holds them.

        UNet2DModel where it computes the same, so that HF diffusers can read what is saved; else NCSNppModel.
        """
        return self._unet_config() if self._is_published() else self._ncsnpp_config()

    def _is_published(self) -> bool:
        """Whether HF diffusers' SkipDownBlock2D and its relatives compute this network."""
        options = (
            self.progressive == "output_skip"
            and self.progressive_input == "input_skip"
            and self.progressive_combine == "sum"
            and self.resblock_type == "biggan"
            and self.fir
            and self.fir_kernel == (1, 3, 3, 1)
            and self.skip_rescale
            and self.conditional
            and self.embedding_type == "fourier"
            and self.scale_by_sigma
            and self.nonlinearity == "swish"
            and self.norm_num_groups is None
            and self.num_channels == 3
            and self.ch_mult[0] == 1
        )
        # There, norms in and before attention have 32 groups however few the channels are.
        wide = all(
            width >= 128 for width, attention in zip(self.widths, self.level_has_attention, strict=True) if attention
        )
        return options and wide

    def _unet_config(self) -> dict[str, Any]:
        attention = self.level_has_attention
        return {
            "_class_name": "UNet2DModel",
            "sample_size": self.image_size,
            "in_channels": self.num_channels,
            "out_channels": self.num_channels,
            "center_input_sample": not self.centered,
            "time_embedding_type": "fourier",
            "block_out_channels": tuple(self.widths),
            "layers_per_block": self.num_res_blocks,
            "down_block_types": tuple("AttnSkipDownBlock2D" if here else "SkipDownBlock2D" for here in attention),
            "up_block_types": tuple("AttnSkipUpBlock2D" if here else "SkipUpBlock2D" for here in reversed(attention)),
            "mid_block_scale_factor": 2.0**0.5,
            "dropout": self.dropout,
            "attention_head_dim": None,
            "norm_num_groups": None,
            "norm_eps": 1e-6,
        }

    def _ncsnpp_config(self) -> dict[str, Any]:
        names = (
            *("nf", "ch_mult", "num_res_blocks", "attn_resolutions", "resblock_type", "progressive"),
            *("progressive_input", "progressive_combine", "fir", "fir_kernel", "resamp_with_conv", "skip_rescale"),
            *("embedding_type", "conditional", "scale_by_sigma", "sigma_min", "sigma_max", "num_scales"),
            *("nonlinearity", "dropout", "norm_num_groups"),
        )
        return {
            "_class_name": "NCSNppModel",
            "sample_size": self.image_size,
            "in_channels": self.num_channels,
            "center_input_sample": not self.centered,
            **{name: getattr(self, name) for name in names},
        }

    # --- its modules -------------------------------------------------------------------------------------------------

    def layers(self) -> list[Layer]:
        """Every module by its path, in the original's order, which its moving average relies on."""
        found: list[Layer] = []
        number = -1
        biggan = self.resblock_type == "biggan"
        widths, attention, levels = self.widths, self.level_has_attention, len(self.ch_mult)

        def add(original: str, ours: str, parameters: tuple[Parameter, ...] = ()) -> None:
            found.append(Layer(original, ours, parameters))

        def following() -> str:
            nonlocal number
            number += 1
            return f"all_modules.{number}"

        def add_block(ours: str, width_in: int, width_out: int, *, resamples: bool = False) -> None:
            original = following()
            add(f"{original}.GroupNorm_0", f"{ours}.norm1", _SAME)
            add(f"{original}.Conv_0", f"{ours}.conv1", _SAME)
            add(f"{original}.Dense_0", f"{ours}.time_emb_proj", _SAME)
            add(f"{original}.GroupNorm_1", f"{ours}.norm2", _SAME)
            add(f"{original}.Conv_1", f"{ours}.conv2", _SAME)
            if biggan and (resamples or width_in != width_out):
                add(f"{original}.Conv_2", f"{ours}.conv_shortcut", _SAME)
            elif width_in != width_out:
                add(f"{original}.NIN_0", f"{ours}.conv_shortcut", _PIXELS)
            add(original, ours)

        def add_attention(ours: str) -> None:
            original = following()
            add(f"{original}.GroupNorm_0", f"{ours}.group_norm", _SAME)
            for i, name in enumerate(("to_q", "to_k", "to_v", "to_out.0")):
                add(f"{original}.NIN_{i}", f"{ours}.{name}", _PIXELS)
            add(original, ours)

        def add_resampling(ours: str, *, with_conv: bool, fused: bool) -> None:
            """fused: filter and convolution are one module there, `Conv2d_0`; ours adds the filter's own."""
            original = following()
            if with_conv and fused:
                found.append(Layer(f"{original}.Conv2d_0", f"{ours}.conv", _SAME))
            elif with_conv:
                add(f"{original}.Conv_0", f"{ours}.conv", _SAME)
            add(original, ours)

        # Time
        if self.embedding_type == "fourier":
            add(following(), "time_proj", (Parameter("W", "weight"),))
        if self.conditional:
            add(following(), "time_embedding.linear_1", _SAME)
            add(following(), "time_embedding.linear_2", _SAME)

        # Down
        add(following(), "conv_in", _SAME)
        width, skips = self.nf, [self.nf]
        for level in range(levels):
            ours = f"down_blocks.{level}"
            for i in range(self.num_res_blocks):
                add_block(f"{ours}.resnets.{i}", width, widths[level])
                width = widths[level]
                if attention[level]:
                    add_attention(f"{ours}.attentions.{i}")
                skips.append(width)
            if level == levels - 1:
                break
            if biggan:
                add_block(f"{ours}.resnet_down", width, width, resamples=True)
            else:
                add_resampling(f"{ours}.downsamplers.0", with_conv=self.resamp_with_conv, fused=self.fir)
            if self.progressive_input == "input_skip":
                add(f"{following()}.Conv_0", f"{ours}.skip_conv", _SAME)
                width *= 2 if self.progressive_combine == "cat" else 1
            elif self.progressive_input == "residual":
                add_resampling(f"{ours}.pyramid_down", with_conv=True, fused=self.fir)
            skips.append(width)

        # Middle
        add_block("mid_block.resnets.0", width, width)
        add_attention("mid_block.attentions.0")
        add_block("mid_block.resnets.1", width, width)

        # Up
        for level in reversed(range(levels)):
            ours = f"up_blocks.{levels - 1 - level}"
            for i in range(self.num_res_blocks + 1):
                add_block(f"{ours}.resnets.{i}", width + skips.pop(), widths[level])
                width = widths[level]
            if attention[level]:
                add_attention(f"{ours}.attentions.0")
            if self.progressive == "output_skip":
                add(following(), f"{ours}.skip_norm" if level else "conv_norm_out", _SAME)
                add(following(), f"{ours}.skip_conv" if level else "conv_out", _SAME)
            if level and biggan:
                add_block(f"{ours}.resnet_up", width, width, resamples=True)
            elif level:
                add_resampling(f"{ours}.upsamplers.0", with_conv=self.resamp_with_conv, fused=False)
        if self.progressive == "none":
            add(following(), "conv_norm_out", _SAME)
            add(following(), "conv_out", _SAME)
        return found
