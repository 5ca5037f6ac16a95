"""Building blocks of the DDPM network: residual block, self-attention, down- and upsampling.

Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), appendix B, with the scale-shift norm and the
attention heads of Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672).
Attribute names are those of published state dicts. The order of operations is the originals' own, so that float32
results agree with theirs to the last bit wherever the underlying kernels do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def swish(x: Tensor) -> Tensor:
    """x · sigmoid(x) with its two roundings, as the originals write it (`F.silu` rounds once)."""
    if torch.is_grad_enabled():
        return x * torch.sigmoid(x)
    return torch.sigmoid(x).mul_(x)  # The same product, without a second temporary: inference is bound by memory.


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": swish,
    "swish": swish,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


class ResnetBlock2D(nn.Module):
    """Residual block conditioned on the time embedding: (B, in_channels, H, W) -> (B, out_channels, H, W).

    Args:
        temb_channels: width of the time embedding.
        groups: of both group norms, or of the first and of the second.
        eps: of both group norms.
        scale_shift: the time embedding scales and shifts the second norm's output (improved DDPM) instead of being
            added before it (DDPM).
        activation: applied after each norm.
        output_scale_factor: the sum of both branches is divided by it.
        resampling: applied to both branches, to the residual one before its first convolution (BigGAN); the other one
            then passes a 1×1 convolution, as it does where the number of channels changes.
        shortcut: makes that convolution out of (in_channels, out_channels).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        *,
        groups: int | tuple[int, int],
        eps: float,
        dropout: float,
        scale_shift: bool,
        activation: Callable[[Tensor], Tensor],
        output_scale_factor: float = 1.0,
        resampling: nn.Module | None = None,
        shortcut: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        groups_in, groups_out = (groups, groups) if isinstance(groups, int) else groups
        self.scale_shift = scale_shift
        self.activation = activation
        self.output_scale_factor = output_scale_factor
        self.resampling = resampling
        self.norm1 = nn.GroupNorm(groups_in, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = nn.GroupNorm(groups_out, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        shortcut = shortcut or partial(nn.Conv2d, kernel_size=1)
        has_shortcut = in_channels != out_channels or resampling is not None
        self.conv_shortcut = shortcut(in_channels, out_channels) if has_shortcut else None

    def forward(self, x: Tensor, activated_temb: Tensor | None) -> Tensor:
        """x: (B, in_channels, H, W).

        activated_temb: (B, temb_channels), after the activation, shared by all blocks; None for a network that does
            not depend on the time.
        """
        h = self.activation(self.norm1(x))
        if self.resampling is not None:
            h, x = self.resampling(h), self.resampling(x)
        h = self.conv1(h)
        if activated_temb is None:
            return self._summed(x, self.norm2(h))
        temb = self.time_emb_proj(activated_temb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = temb.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + temb)
        return self._summed(x, h)

    def _summed(self, x: Tensor, h: Tensor) -> Tensor:
        h = self.conv2(self.dropout(self.activation(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return divided(x + h, self.output_scale_factor)


class PointwiseLinear(nn.Linear):
    """A 1×1 convolution whose weight is stored as (out, in), as published attention layers store it.

    (B, in, H, W) -> (B, out, H, W), so that outputs have the layout of the originals' 1×1 convolutions.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class NetworkInNetwork(PointwiseLinear):
    """The same, computed on the last axis as yang-song/score_sde_pytorch does.

    The output's memory has the channels last, which its kernels pass on, and their last bits with it.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.t().contiguous()  # (in, out), as it is stored there: kernels for few pixels differ.
        return (torch.einsum("bchw,co->bhwo", x, weight) + self.bias).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Self-attention over the pixels, with residual: (B, C, H, W) -> (B, C, H, W).

    The logits q·k / √d, d channels per head, are scaled in one of the originals' two ways, equal but for rounding.

    Args:
        heads: number of heads; it divides `channels`.
        groups: of the group norm in front; None for no norm.
        scale_q_and_k: q and k are each multiplied by d^(−1/4) before their product (openai/improved-diffusion),
            instead of the product by d^(−1/2) (ermongroup/ddim).
        output_scale_factor: the sum of both branches is divided by it.
        pointwise: class of the four projections.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        groups: int | None,
        eps: float,
        scale_q_and_k: bool,
        output_scale_factor: float = 1.0,
        pointwise: type[PointwiseLinear] = PointwiseLinear,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale_q_and_k = scale_q_and_k
        self.output_scale_factor = output_scale_factor
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps) if groups is not None else None
        self.to_q = pointwise(channels, channels)
        self.to_k = pointwise(channels, channels)
        self.to_v = pointwise(channels, channels)
        self.to_out = nn.ModuleList([pointwise(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        per_head = (b * self.heads, c // self.heads, height * width)  # (B·heads, d, HW)
        h = self.group_norm(x) if self.group_norm is not None else x
        q = self.to_q(h).reshape(per_head)
        k = self.to_k(h).reshape(per_head)
        v = self.to_v(h).reshape(per_head)

        d = per_head[1]
        if self.scale_q_and_k:
            scale = 1 / math.sqrt(math.sqrt(d))
            logits = torch.bmm((q * scale).transpose(1, 2), k * scale)  # (B·heads, HW of q, HW of k)
        else:
            logits = torch.bmm(q.transpose(1, 2), k) * d**-0.5
        # Half types leave the exponentials to float32.
        precision = torch.promote_types(logits.dtype, torch.float32)
        weights = torch.softmax(logits, dim=2, dtype=precision).to(logits.dtype)
        h = torch.bmm(v, weights.transpose(1, 2)).reshape(b, c, height, width)

        return divided(x + self.to_out[0](h), self.output_scale_factor)


class Downsample2D(nn.Module):
    """Halve height and width, by a strided 3×3 convolution or by averaging 2×2 pixels (no parameters).

    Args:
        out_channels: of the convolution; None: `channels`.
        padding: 1 pads all sides (openai/improved-diffusion); 0 pads one pixel right and below only, as TensorFlow's
            "SAME" does for a stride of 2 (hojonathanho/diffusion, ermongroup/ddim). Only the convolution uses it.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, with_conv: bool, padding: int) -> None:
        super().__init__()
        self.pad_right_and_below = with_conv and padding == 0
        out_channels = channels if out_channels is None else out_channels
        self.conv = nn.Conv2d(channels, out_channels, kernel_size=3, stride=2, padding=padding) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, kernel_size=2, stride=2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_right_and_below else x)


class Upsample2D(nn.Module):
    """Double height and width by repeating pixels, then a 3×3 convolution unless `with_conv` is False."""

    def __init__(self, channels: int, *, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


def divided(x: Tensor, factor: float) -> Tensor:
    """x / factor, without an operation where the factor is 1."""
    return x if factor == 1 else x / factor
