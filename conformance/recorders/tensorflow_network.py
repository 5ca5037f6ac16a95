"""The DDPM authors' network, run by TensorFlow in graph mode; tensors are NCHW torch tensors outside, NHWC inside.

`tensorflow.contrib` no longer exists. Its `add_arg_scope` is stubbed, and `layers.group_norm` is replaced by its
published definition (32 groups, eps 1e-6, gain = rsqrt(var + eps)·γ, offset = β − mean·gain, as one fused multiply
and add).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from conformance.sketch import sketch

BLOCKS = ("resnet_block", "attn_block", "downsample", "upsample")
LIFTED = (
    "nn.DEFAULT_DTYPE is float64",
    "nn.get_timestep_embedding: its float32 result is handed to the float64 network",
)


def to_nhwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).contiguous().numpy()


def to_nchw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2).contiguous()


def one_thread(tf: Any) -> Any:
    """A session configuration in which sums are taken in one order."""
    return tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)


def contrib(tf: Any) -> ModuleType:
    """A stand-in for `tensorflow.contrib`."""

    def group_norm(x: Any, scope: str) -> Any:
        batch, height, width, channels = x.shape.as_list()
        with tf.variable_scope(scope):
            beta = tf.get_variable("beta", [channels], x.dtype, tf.zeros_initializer())
            gamma = tf.get_variable("gamma", [channels], x.dtype, tf.ones_initializer())
        grouped = tf.reshape(x, [batch, height, width, 32, channels // 32])
        mean, variance = tf.nn.moments(grouped, [1, 2, 4], keepdims=True)
        gain = tf.math.rsqrt(variance + 1e-6)
        offset = -mean * gain
        gamma, beta = (tf.reshape(value, [1, 1, 1, 32, channels // 32]) for value in (gamma, beta))
        return tf.reshape(grouped * (gain * gamma) + (offset * gamma + beta), x.shape)

    module = ModuleType("tensorflow.contrib")
    module.layers = SimpleNamespace(group_norm=group_norm)  # type: ignore[attr-defined]
    return module


class TensorFlowNetwork:
    """`diffusion_tf/models/unet.py:model` with variables fed as placeholders' values are: assigned before each run."""

    rule = "philox-uniform/tensorflow"
    last_layer = "model/conv_out/W", "model/conv_out/b"

    def __init__(self, code: SimpleNamespace, config: dict[str, Any]) -> None:
        self._code, self._config = code, config
        self._state: dict[str, np.ndarray] = {}
        self._graphs: dict[tuple[int, torch.dtype], SimpleNamespace] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(v.shape.as_list()) for name, v in self._graph(1, torch.float32).variables.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        changed = {name: array for name, array in state.items() if self._state.get(name) is not array}
        self._state = dict(state)
        for graph in self._graphs.values():
            _assign(graph, changed)

    def _graph(self, batch: int, dtype: torch.dtype) -> SimpleNamespace:
        if (batch, dtype) not in self._graphs:
            self._graphs[batch, dtype] = self._build(batch, dtype)
            _assign(self._graphs[batch, dtype], self._state)
        return self._graphs[batch, dtype]

    def __call__(self, x: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        return to_nchw(self._run(x, t, "output", embedding))

    def observe(
        self, x: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        # Two runs: asking for the blocks' outputs keeps TensorFlow from fusing operations as it does otherwise.
        names, values = self._graph(len(x), x.dtype).taps, self._run(x, t, "taps", embedding)
        taps = {name: sketch(to_nchw(value)) for name, value in zip(names, values, strict=True)}
        return self(x, t, embedding), taps

    def embedding(self, t: torch.Tensor) -> torch.Tensor:
        tf, nn = self._code.tf, self._code.unet.nn
        kind = tf.float64 if t.dtype == torch.float64 else tf.float32
        with patch.object(nn, "DEFAULT_DTYPE", kind), tf.Graph().as_default(), tf.Session() as session:
            return torch.from_numpy(session.run(nn.get_timestep_embedding(tf.constant(t.numpy()), self._config["ch"])))

    def last_input(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return to_nchw(self._run(x, t, "last_input"))

    def _run(self, x: torch.Tensor, t: torch.Tensor, wanted: str, embedding: torch.Tensor | None = None) -> Any:
        graph = self._graph(len(x), x.dtype)
        fetches = list(graph.taps.values()) if wanted == "taps" else getattr(graph, wanted)
        values = {graph.x: to_nhwc(x), graph.t: t.numpy().astype(np.int32)}
        if embedding is not None:
            values[graph.embedding] = embedding.numpy()
        return graph.session.run(fetches, values)

    def _build(self, batch: int, dtype: torch.dtype) -> SimpleNamespace:
        tf, unet, config = self._code.tf, self._code.unet, self._config
        kind = tf.float64 if dtype == torch.float64 else tf.float32
        size, channels = config["image_size"], config["in_channels"]
        with (
            tf.Graph().as_default() as graph,
            lifted_network(self._code, dtype),
            recorded_blocks(unet) as taps,
        ):
            x = tf.placeholder(kind, [batch, size, size, channels])
            t = tf.placeholder(tf.int32, [batch])
            output = unet.model(
                x, t=t, y=None, name="model", num_classes=1, ch=config["ch"], ch_mult=tuple(config["ch_mult"]),
                out_ch=channels * (2 if config.get("model_var_type") == "learned" else 1),
                num_res_blocks=config["num_res_blocks"], attn_resolutions=tuple(config["attn_resolutions"]),
                dropout=0.0, resamp_with_conv=config.get("resamp_with_conv", True),
            )  # fmt: skip
            variables = {variable.op.name: variable for variable in tf.global_variables()}
            values = {name: tf.placeholder(v.dtype.base_dtype, v.shape) for name, v in variables.items()}
            assignments = {name: variable.assign(values[name]).op for name, variable in variables.items()}
            session = tf.Session(graph=graph, config=one_thread(tf))
        last_input, embedding = taps.pop("conv_out:input"), taps.pop("embedding")
        return SimpleNamespace(x=x, t=t, output=output, taps=taps, last_input=last_input, embedding=embedding,
                               variables=variables, values=values, assignments=assignments,
                               session=session)  # fmt: skip


def _assign(graph: SimpleNamespace, state: Mapping[str, np.ndarray]) -> None:
    for name, array in state.items():
        graph.session.run(graph.assignments[name], {graph.values[name]: array})


@contextmanager
def recorded_blocks(unet: Any) -> Iterator[dict[str, Any]]:
    """The output of every block by its variable scope, such as `model/down_0/block_1`; the last layer's input; the
    sinusoidal embedding.
    """
    tf, taps = unet.tf, {}
    conv2d, get_timestep_embedding = unet.nn.conv2d, unet.nn.get_timestep_embedding

    def wrapped(function: Any) -> Any:
        def block(*arguments: Any, name: str, **options: Any) -> Any:
            scope = tf.get_variable_scope().name
            taps[f"{scope}/{name}"] = output = function(*arguments, name=name, **options)
            return output

        return block

    def last(x: Any, *, name: str, **options: Any) -> Any:
        if name == "conv_out":
            taps["conv_out:input"] = x
        return conv2d(x, name=name, **options)

    def embedding(timesteps: Any, dimension: int) -> Any:
        taps["embedding"] = values = get_timestep_embedding(timesteps, dimension)
        return values

    patches = [patch.object(unet, name, wrapped(getattr(unet, name))) for name in BLOCKS]
    patches += [patch.object(unet.nn, "conv2d", last), patch.object(unet.nn, "get_timestep_embedding", embedding)]
    for each in patches:
        each.start()
    try:
        yield taps
    finally:
        for each in patches:
            each.stop()


@contextmanager
def lifted_network(code: SimpleNamespace, dtype: torch.dtype) -> Iterator[None]:
    """For the oracle: variables and arithmetic in float64; the embedding's float32 result is widened."""
    if dtype != torch.float64:
        yield
        return
    tf, nn = code.tf, code.unet.nn
    embedding = nn.get_timestep_embedding

    def wide(timesteps: Any, dimension: int) -> Any:
        with patch.object(nn, "DEFAULT_DTYPE", tf.float32):
            return tf.cast(embedding(timesteps, dimension), tf.float64)

    with (
        patch.object(nn, "DEFAULT_DTYPE", tf.float64),
        patch.object(nn, "get_timestep_embedding", wide),
        patch.object(code.unet, "tf", code.wide(tf)),
    ):
        yield
