"""NCSN++ and DDPM++: the score networks of Song et al.

"Score-Based Generative Modeling through Stochastic Differential Equations" (arXiv:2011.13456, appendix H);
yang-song/score_sde_pytorch `models/ncsnpp.py`, and its `models/ddpm.py`, which is the same network with other options.

What the options are called there is what they are called here. HF diffusers publishes the networks for 256 and 1024
pixels as `UNet2DModel` with `SkipDownBlock2D` and so on; that class has them too, under the same state-dict keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusers_ref.configuration import register_to_config
from diffusers_ref.modeling import ModelMixin

from .embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps
from .fir import TAPS, FirDownsample2D, FirDownsampleConv2D, FirUpsample2D
from .inputs import check_sample, timesteps_per_sample
from .layers import Attention, Downsample2D, NetworkInNetwork, ResnetBlock2D, Upsample2D
from .ncsnpp_blocks import MeanDownsample2D, PyramidDownBlock, PyramidUpBlock, quarter_groups
from .unet_2d import UNet2DOutput
from .unet_2d_blocks import MidBlock

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "elu": F.elu,
    "relu": F.relu,
    "lrelu": partial(F.leaky_relu, negative_slope=0.2),
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("fourier", "positional"),
    "nonlinearity": tuple(NONLINEARITIES),
}
NORM_EPS = 1e-6


class NCSNppModel(ModelMixin):
    """Score network: (B, in_channels, H, W) and a time per sample -> (B, in_channels, H, W).

    With L levels, H and W are multiples of 2^(L−1). Raises ValueError for an argument that is not supported.

    Args:
        sample_size: height and width that the network was trained on, which decide the levels with attention.
        in_channels: of the image.
        center_input_sample: images are in [0, 1] and are mapped to [−1, 1] first (`data.centered: False` there).
        nf: width of the first convolution; the time embedding is 4 · nf wide.
        ch_mult: channels per level from full resolution down, in units of nf.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attn_resolutions: sizes of the levels with attention, behind each residual block on the way down and once on the
            way up; the middle always has it.
        resblock_type: "biggan" (residual blocks that resample) or "ddpm" (a separate up- and downsampling).
        progressive: the output's pyramid: "none" or "output_skip" (the sum of an image from each level).
        progressive_input: the input's pyramid: "none"; "input_skip" (joined to each level by a 1×1 convolution);
            "residual" (added to each level after a 3×3 convolution).
        progressive_combine: how an input skip joins: "sum" or "cat".
        fir: resample with a FIR filter, instead of repeating pixels and averaging 2×2.
        fir_kernel: taps of the filter.
        resamp_with_conv: convolutions in the resampling of resblock_type="ddpm".
        skip_rescale: sums of two branches are divided by √2.
        embedding_type: the time is a noise level σ, embedded by "fourier" features of ln σ, or a label, embedded by
            "positional" sinusoids.
        fourier_scale: standard deviation of the frequencies of a new network.
        conditional: whether the network depends on the time (but for scale_by_sigma).
        scale_by_sigma: the output is divided by σ: the time itself for "fourier", else sigmas[int(time)].
        sigma_min, sigma_max, num_scales: sigmas is geometric from sigma_max down to sigma_min, num_scales long.
        nonlinearity: "swish", "elu", "relu" or "lrelu".
        dropout: probability, inside residual blocks.
        norm_num_groups: of every group norm; None: a quarter of the channels, at most 32.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        center_input_sample: bool = False,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        resblock_type: str = "biggan",
        progressive: str = "none",
        progressive_input: str = "none",
        progressive_combine: str = "sum",
        fir: bool = False,
        fir_kernel: Sequence[float] = TAPS,
        resamp_with_conv: bool = True,
        skip_rescale: bool = True,
        embedding_type: str = "positional",
        fourier_scale: float = 16.0,
        conditional: bool = True,
        scale_by_sigma: bool = False,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        num_scales: int = 1000,
        nonlinearity: str = "swish",
        dropout: float = 0.0,
        norm_num_groups: int | None = None,
    ) -> None:
        super().__init__()
        for name, allowed in CHOICES.items():
            if self.config[name] not in allowed:
                raise ValueError(
                    f"{name}: {self.config[name]!r} is not supported; allowed: {', '.join(map(repr, allowed))}"
                )
        levels = len(ch_mult)
        if not levels or num_res_blocks < 1 or sample_size % 2 ** (levels - 1):
            raise ValueError(
                "at least one level (ch_mult) and one residual block (num_res_blocks) are needed, and a sample_size "
                f"that can be halved at each level but the last; got {tuple(ch_mult)}, {num_res_blocks}, {sample_size}"
            )
        if fir and resblock_type == "ddpm" and resamp_with_conv:
            raise ValueError(
                "fir=True with resblock_type='ddpm' and resamp_with_conv=True would fuse upsampling and convolution, "
                "which the original cannot run; set one of fir and resamp_with_conv to False"
            )
        self.levels = levels
        self.in_channels = in_channels
        self.activation = NONLINEARITIES[nonlinearity]
        widths = [nf * mult for mult in ch_mult]
        has_attention = [sample_size // 2**level in attn_resolutions for level in range(levels)]
        factor = math.sqrt(2.0) if skip_rescale else 1.0

        def groups(channels: int) -> int:
            return quarter_groups(channels) if norm_num_groups is None else norm_num_groups

        def norm(channels: int) -> nn.GroupNorm:
            return nn.GroupNorm(groups(channels), channels, eps=NORM_EPS)

        def resnet(width_in: int, width_out: int, resampling: nn.Module | None = None) -> ResnetBlock2D:
            return ResnetBlock2D(
                width_in,
                width_out,
                4 * nf,
                groups=(groups(width_in), groups(width_out)),
                eps=NORM_EPS,
                dropout=dropout,
                scale_shift=False,
                activation=self.activation,
                output_scale_factor=factor,
                resampling=resampling,
                shortcut=NetworkInNetwork if resblock_type == "ddpm" else None,
            )

        def attention(channels: int) -> Attention:
            return Attention(
                channels,
                heads=1,
                groups=groups(channels),
                eps=NORM_EPS,
                scale_q_and_k=False,
                output_scale_factor=factor,
                pointwise=NetworkInNetwork,
            )

        def half(channels: int | None = None, width_out: int | None = None) -> nn.Module:
            """Half the size; with a convolution if channels are given."""
            if channels is None:
                return FirDownsample2D(fir_kernel) if fir else Downsample2D(0, with_conv=False, padding=0)
            if fir:
                return FirDownsampleConv2D(channels, width_out or channels, fir_kernel)
            return Downsample2D(channels, width_out, with_conv=True, padding=0)

        def twice(channels: int | None = None) -> nn.Module:
            """Twice the size; with a convolution if channels are given."""
            if channels is None:
                return FirUpsample2D(fir_kernel) if fir else Upsample2D(0, with_conv=False)
            return Upsample2D(channels, with_conv=True)

        # Time
        fourier = embedding_type == "fourier"
        self.time_proj = (
            GaussianFourierProjection(nf, scale=fourier_scale)
            if fourier
            else Timesteps(nf, flip_sin_to_cos=False, freq_shift=1)
        )
        self.time_embedding = (
            TimestepEmbedding(2 * nf if fourier else nf, 4 * nf, self.activation) if conditional else None
        )
        # A table, and float64 in the original whatever the network is; not a weight, so no buffer.
        self.sigmas = torch.from_numpy(np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), num_scales)))

        # Down
        self.conv_in = nn.Conv2d(in_channels, nf, kernel_size=3, padding=1)
        self.down_blocks = nn.ModuleList()
        skip_channels, width, pyramid_width = [nf], nf, in_channels
        for level in range(levels):
            inputs = [width] + [widths[level]] * (num_res_blocks - 1)
            width = widths[level]
            skip_channels += [width] * num_res_blocks
            step: dict[str, Any] = {}
            if level < levels - 1:
                if resblock_type == "biggan":
                    mean = FirDownsample2D(fir_kernel) if fir else MeanDownsample2D()
                    step["resnet_down"] = resnet(width, width, mean)
                else:
                    step["downsampler"] = half(width) if resamp_with_conv else half()
                if progressive_input == "input_skip":
                    step |= {"pyramid_down": half(), "skip_conv": nn.Conv2d(in_channels, width, kernel_size=1)}
                elif progressive_input == "residual":
                    step["pyramid_down"] = half(pyramid_width, width)
                    pyramid_width = width
            self.down_blocks.append(
                PyramidDownBlock(
                    [resnet(channels, widths[level]) for channels in inputs],
                    widths[level],
                    attention=attention if has_attention[level] else None,
                    combine=progressive_combine,  # type: ignore[arg-type]
                    scale_factor=factor,
                    **step,
                )
            )
            if level < levels - 1:
                if progressive_input == "input_skip" and progressive_combine == "cat":
                    width *= 2
                skip_channels.append(width)

        # Middle
        self.mid_block = MidBlock(width, resnet=resnet, attention=attention)

        # Up
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(levels)):
            inputs = [width] + [widths[level]] * num_res_blocks
            width = widths[level]
            step = {}
            if progressive == "output_skip":
                step["pyramid_up"] = twice()
                if level:
                    step["skip_norm"] = norm(width)
                    step["skip_conv"] = nn.Conv2d(width, in_channels, kernel_size=3, padding=1)
            if level and resblock_type == "biggan":
                step["resnet_up"] = resnet(width, width, twice())
            elif level:
                step["upsampler"] = twice(width) if resamp_with_conv else twice()
            self.up_blocks.append(
                PyramidUpBlock(
                    [resnet(channels + skip_channels.pop(), width) for channels in inputs],
                    attention=attention(width) if has_attention[level] else None,
                    activation=self.activation,
                    **step,
                )
            )

        self.conv_norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, in_channels, kernel_size=3, padding=1)

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
            timestep: one number for the batch or (B,): σ > 0 for a network with Fourier features, else a label.
            class_labels: must be None; pipelines pass it to every network.
            return_dict: False returns a tuple instead of an UNet2DOutput.

        Raises TypeError for what is not a tensor or number, ValueError for a wrong shape, dtype or value.
        """
        config = self.config
        check_sample(sample, channels=self.in_channels, dtype=self.conv_in.weight.dtype, levels=self.levels)
        if class_labels is not None:
            raise ValueError("class_labels were given, but this network is unconditional")
        times = timesteps_per_sample(timestep, sample)

        temb = None
        if self.time_embedding is not None:
            temb = self.activation(self.time_embedding(self.time_proj(times).to(sample.dtype)))

        x = 2 * sample - 1 if config.center_input_sample else sample
        h = self.conv_in(x)
        skips, pyramid = [h], x
        for down_block in self.down_blocks:
            h, computed, pyramid = down_block(h, temb, pyramid)
            skips += computed

        h = self.mid_block(h, temb)

        gathered: Tensor | None = None
        for up_block in self.up_blocks:
            h, gathered = up_block(h, skips, temb, gathered)
        h = self.conv_out(self.activation(self.conv_norm_out(h)))
        if gathered is not None:
            h = gathered + h

        if config.scale_by_sigma:
            h = (h / self._noise_levels(times)[:, None, None, None]).to(h.dtype)
        return UNet2DOutput(sample=h) if return_dict else (h,)

    def _noise_levels(self, times: Tensor) -> Tensor:
        """(B,) times -> (B,) σ. Their range is checked on the CPU only; elsewhere that would stall."""
        if self.config.embedding_type == "fourier":
            return times
        labels = times.long()
        count = len(self.sigmas)
        if labels.device.type == "cpu" and ((labels < 0) | (labels >= count)).any():
            raise ValueError(f"timestep must choose one of {count} noise levels (num_scales), got {times.tolist()}")
        return self.sigmas.to(labels.device)[labels]
