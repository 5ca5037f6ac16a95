"""One declaration of how an original network's layout corresponds to ours.

A format lists `Layer`s: where a module sits in the original and in our network, and how its parameters are stored.
Everything else is derived from that list: the rules that convert weights, the alignment of modules, and the names and
shapes of all original parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_ref import registry
from diffusers_ref.loading import WeightsError
from diffusers_ref.modeling import ModelMixin, listed, shapes_only

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """How one original parameter becomes one of ours.

    apply: original tensor -> our tensor. original_shape: shape of our tensor -> shape of the original one.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    original_shape: Callable[[Shape], Shape]

    def __repr__(self) -> str:
        return self.name


IDENTITY = Transform("identity", lambda w: w, lambda shape: shape)
SQUEEZE_CONV = Transform(  # 1×1 convolution (O, I, 1, 1) -> (O, I)
    "squeeze_conv", lambda w: w[:, :, 0, 0], lambda shape: (*shape, 1, 1)
)
SQUEEZE_CONV_1D = Transform(  # 1×1 convolution over a sequence (O, I, 1) -> (O, I)
    "squeeze_conv_1d", lambda w: w[:, :, 0], lambda shape: (*shape, 1)
)
TF_CONV = Transform(  # TensorFlow's (H, W, I, O) -> (O, I, H, W)
    "tf_conv", lambda w: w.permute(3, 2, 0, 1), lambda shape: (shape[2], shape[3], shape[1], shape[0])
)
TF_DENSE = Transform(  # TensorFlow's (I, O) -> (O, I)
    "tf_dense", lambda w: w.t(), lambda shape: (shape[1], shape[0])
)
TF_POINTWISE = Transform(  # TensorFlow's (I, O) over channels -> 1×1 convolution (O, I, 1, 1)
    "tf_pointwise", lambda w: w.t()[:, :, None, None], lambda shape: (shape[1], shape[0])
)


def fused_qkv(part: int, heads: int) -> tuple[Transform, Transform]:
    """Weight and bias of q (part 0), k (1) or v (2) from one 1×1 convolution whose 3·C rows are heads × [q | k | v]."""

    def rows(w: Tensor) -> Tensor:
        return w.reshape(heads, 3, -1, *w.shape[1:])[:, part].flatten(0, 1)

    name = f"fused_{'qkv'[part]}(heads={heads})"
    weight = Transform(name, lambda w: rows(w)[:, :, 0], lambda shape: (3 * shape[0], shape[1], 1))
    bias = Transform(name, rows, lambda shape: (3 * shape[0],))
    return weight, bias


@dataclass(frozen=True)
class Parameter:
    """A parameter of a layer: its name below the original module, below ours, and the transform between them."""

    original: str
    ours: str
    transform: Transform = IDENTITY


@dataclass(frozen=True)
class Layer:
    """A module of the original network (its path or scope) and the one of ours that stands for it.

    aligned: both compute the same tensor in the same place, so that their outputs can be compared. False where only the
        parameters correspond.
    """

    original: str
    ours: str
    parameters: tuple[Parameter, ...] = ()
    aligned: bool = True


@dataclass(frozen=True)
class KeyRule:
    """`ours` = transform(`original`). A key of ours has one rule, an original key one for each part taken from it."""

    original: str
    ours: str
    transform: Transform


def key_rules(layers: Iterable[Layer], separator: str = ".") -> list[KeyRule]:
    """The rules of all parameters. separator: between scope and parameter name in the original."""
    return [
        KeyRule(
            f"{layer.original}{separator}{parameter.original}", f"{layer.ours}.{parameter.ours}", parameter.transform
        )
        for layer in layers
        for parameter in layer.parameters
    ]


def aligned_modules(layers: Iterable[Layer]) -> dict[str, str]:
    """Original module path -> our module path, for the modules whose outputs can be compared."""
    return {layer.original: layer.ours for layer in layers if layer.aligned}


def empty_network(config: Mapping[str, Any]) -> ModelMixin:
    """The network on the meta device: names and shapes, no memory.

    config: its arguments, and its class as `_class_name`, by default UNet2DModel.
    """
    arguments = dict(config)
    cls = registry.load_class(arguments.pop("_class_name", "UNet2DModel"))
    with shapes_only():
        network: ModelMixin = cls(**arguments)
    return network


def original_shapes(rules: Iterable[KeyRule], ours: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Original parameter name -> shape. ours: our state dict (meta tensors will do)."""
    return {rule.original: rule.transform.original_shape(tuple(ours[rule.ours].shape)) for rule in rules}


def convert(
    state: Mapping[str, Any], rules: list[KeyRule], ours: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """A state in the original layout -> new float32 tensors under our keys.

    Args:
        state: original name -> tensor or array; exactly the parameters that the rules name, in their shapes.
        ours: our state dict (meta tensors will do), which says what the configuration implies.
        source: what the state was read from, for the message.

    Raises WeightsError that says what the configuration implies and what the state has instead.
    """
    implied = original_shapes(rules, ours)
    missing = [key for key in implied if key not in state]
    unexpected = [key for key in state if key not in implied]
    misshapen = [
        f"{key}: the config implies {shape}, the checkpoint has {tuple(state[key].shape)}"
        for key, shape in implied.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if missing or unexpected or misshapen:
        raise WeightsError(
            f"{source} contradicts its config, which implies {len(implied)} parameters, while it has {len(state)}:"
            + _report("that the config implies are not in the checkpoint", missing)
            + _report("of the checkpoint have no place in the network of the config", unexpected)
            + _report("have another shape", misshapen)
        )
    weights = {}
    for rule in rules:
        value = state[rule.original]
        tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
        weights[rule.ours] = rule.transform.apply(tensor).to(torch.float32, copy=True).contiguous()
    return weights


def _report(what: str, entries: list[str]) -> str:
    return f"\n  {len(entries)} {what}:{listed(entries)}" if entries else ""
