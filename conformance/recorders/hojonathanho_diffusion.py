"""Recorder for hojonathanho/diffusion: the TensorFlow code itself, in graph mode through `tensorflow.compat.v1`.

`p_sample` is built once per case as a graph with placeholders for x, t, the network's output and the noise, and
called step by step from T - 1 to 0, which is what `p_sample_loop` does in a `while_loop`; `check_loop` verifies that
both give the same bits. Draws come from torch's generator and are fed in through the original's own `noise_fn`.
Layout is NHWC inside.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from conformance.errors import ConformanceError
from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.last_layer import variance_preserving
from conformance.recorders.network_cases import ModelCase, PipelineCase
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape
from conformance.recorders.tensorflow_network import LIFTED as NETWORK_LIFTED
from conformance.recorders.tensorflow_network import TensorFlowNetwork, contrib, one_thread, to_nchw, to_nhwc

ORIGINAL = Original(
    system="ddpm",
    repository="hojonathanho/diffusion",
    commit="1e0dceb3b3495bbe19116a5e1b3596cd0706c543",
    licence="none stated",
    paper_title="Denoising Diffusion Probabilistic Models",
    arxiv="2006.11239",
)
CHANGES = (
    "tensorflow.contrib replaced (group_norm by its published definition)",
    "noise_fn returns draws of torch's CPU generator",
    "p_sample is called step by step (same bits as p_sample_loop)",
)
LIFTED = (
    "_extract: coefficients rounded to float32 as always, then handed out as float64",
    "tf.float32 in p_sample's mask and tf.ones: float64",
)


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `cifar` (diffusion_utils_2), `lsun` (diffusion_utils), `unet`, and TensorFlow itself.

    Raises:
        ConformanceError: TensorFlow is not installed.
    """
    try:
        import tensorflow.compat.v1 as tf
    except ImportError:
        raise ConformanceError("recording ddpm runs TensorFlow: pip install 'diffusers-ref[record]'") from None
    tf.disable_eager_execution()
    names = [f"diffusion_tf.{name}" for name in ("diffusion_utils_2", "diffusion_utils", "models.unet")]
    with patch.dict(sys.modules, {"tensorflow.contrib": contrib(tf)}), importing(source, names) as (cifar, lsun, unet):
        code = SimpleNamespace(cifar=cifar, lsun=lsun, unet=unet, tf=tf, wide=Wide)
        check_loop(code)
        yield code


class Wide:
    """`tf` as the oracle sees it: float32 means float64."""

    def __init__(self, tf: Any) -> None:
        self._tf = tf
        self.float32 = tf.float64
        self.ones = partial(tf.ones, dtype=tf.float64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tf, name)


@contextmanager
def lifted(code: SimpleNamespace, dtype: torch.dtype) -> Iterator[None]:
    """For the oracle: float64 arithmetic on the float32-rounded coefficients."""
    tf = code.tf

    def extract(table: Any, t: Any, shape: Any) -> Any:
        rounded = tf.cast(tf.constant(table, tf.float32) if isinstance(table, np.ndarray) else table, tf.float64)
        return tf.reshape(tf.gather(rounded, t), [shape[0]] + [1] * (len(shape) - 1))

    with ExitStack() as stack:
        if dtype == torch.float64:
            for module, cls in ((code.cifar, "GaussianDiffusion2"), (code.lsun, "GaussianDiffusion")):
                stack.enter_context(patch.object(module, "tf", Wide(tf)))
                stack.enter_context(patch.object(getattr(module, cls), "_extract", staticmethod(extract)))
        yield


def sampler(code: SimpleNamespace, build: Callable[[], Any], clip_denoised: bool) -> Callable[..., Run]:
    """`run` of a case: the original's p_sample from T - 1 to 0; `build` makes the original's diffusion object."""
    tf = code.tf

    @lru_cache
    def graph(shape: tuple[int, ...], channels: int, dtype: torch.dtype) -> SimpleNamespace:
        batch, height, width = shape[0], shape[2], shape[3]
        kind = tf.float64 if dtype == torch.float64 else tf.float32
        with tf.Graph().as_default() as g, lifted(code, dtype):
            diffusion = build()
            x = tf.placeholder(kind, [batch, height, width, shape[1]])
            t = tf.placeholder(tf.int32, [batch])
            output = tf.placeholder(kind, [batch, height, width, channels])
            noise = tf.placeholder(kind, x.shape)
            options: dict[str, Any] = {"clip_denoised": clip_denoised}
            if isinstance(diffusion, code.cifar.GaussianDiffusion2):
                options["return_pred_xstart"] = True
            out = diffusion.p_sample(lambda *_: output, x=x, t=t, noise_fn=lambda **_: noise, **options)
        places = SimpleNamespace(x=x, t=t, output=output, noise=noise)
        return SimpleNamespace(
            session=tf.Session(graph=g, config=one_thread(tf)), out=out, places=places, diffusion=diffusion
        )

    def run(network: Callable[..., torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> Run:
        diffusion = build()
        sample = torch.randn(tuple(shape), dtype=dtype)
        x0s = []
        for i in reversed(range(diffusion.num_timesteps)):
            output = network(sample, torch.full((shape[0],), float(i)))
            noise = torch.randn(tuple(shape), dtype=dtype)
            g = graph(tuple(shape), output.shape[1], dtype)
            feed = {g.places.x: to_nhwc(sample), g.places.t: np.full(shape[0], i, np.int32),
                    g.places.output: to_nhwc(output), g.places.noise: to_nhwc(noise)}  # fmt: skip
            out = g.session.run(g.out, feed)
            sample, *x0 = (to_nchw(value) for value in (out if isinstance(out, (list, tuple)) else [out]))
            x0s += x0
        tables = {}
        if isinstance(diffusion, code.cifar.GaussianDiffusion2):
            tables = {name: torch.from_numpy(getattr(diffusion, name)) for name in ("betas", "alphas_cumprod")}
        return Run(sample, x0s or None, tables)

    return run


def check_loop(code: SimpleNamespace) -> None:
    """p_sample_loop, the original's while_loop, gives the same bits as p_sample called step by step.

    The loop may run its noise op ahead of the steps, so every step gets the same noise here.

    Raises:
        ConformanceError: it does not.
    """
    tf, shape = code.tf, (2, 3, 4, 2)
    generator = torch.Generator().manual_seed(0)
    initial, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    network = AnalyticNetwork(7)
    build = partial(_cifar, code, _betas("linear", 7, 0.5), "eps", "fixedlarge")
    with patch.object(torch, "randn", side_effect=[initial] + 7 * [noise]):
        expected = sampler(code, build, True)(network, shape, torch.float32).final
    constants = iter([initial, noise])  # noise_fn is called once for x_T and once for the loop's body

    def denoise_fn(x: Any, t: Any) -> Any:
        call = lambda x, t: to_nhwc(network(to_nchw(x), torch.from_numpy(t)))
        value = tf.numpy_function(call, [x, t], x.dtype)
        value.set_shape(x.shape)
        return value

    with tf.Graph().as_default(), tf.Session() as session:
        noise_fn = lambda **_: tf.constant(to_nhwc(next(constants)))
        loop = build().p_sample_loop(denoise_fn, shape=[2, 4, 2, 3], noise_fn=noise_fn)
        found = to_nchw(session.run(loop))
    if not torch.equal(found, expected):
        raise ConformanceError("p_sample_loop and p_sample called step by step differ")


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase | ModelCase | PipelineCase]:
    """Both samplers, the network, and both together from variables to pixels."""
    yield from sampler_cases(code)
    for name, config, times, tier in (
        ("tiny", TINY, (3.0, 977.0), "default"),
        ("learned", {**TINY, "model_var_type": "learned"}, (0.0, 500.0), "default"),
        ("cifar10", CIFAR10, (500.0,), "full"),
        ("lsun", LSUN, (500.0,), "full"),
    ):
        yield ModelCase(
            name=f"network-{name}",
            title=f"one forward pass of the network, {name}, t = {', '.join(f'{t:g}' for t in times)}",
            location="appendix B",
            format=ORIGINAL.repository,
            config=config,
            network=partial(TensorFlowNetwork, code, config),
            shape=(3, config["image_size"], config["image_size"]),
            times=times,
            functions=("diffusion_tf/models/unet.py:model",),
            changes=CHANGES,
            lifted=NETWORK_LIFTED,
            tier=tier,
        )
    yield _pipeline(code, "fixedlarge")
    yield _pipeline(code, "learned")


TINY: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "ch": 64,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
}
CIFAR10 = {**TINY, "image_size": 32, "ch": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16]}
LSUN = {**CIFAR10, "image_size": 256, "ch_mult": [1, 1, 2, 2, 4, 4]}


def _pipeline(code: SimpleNamespace, variance: str) -> PipelineCase:
    betas = _betas("linear", 10, 0.5)
    config = {**TINY, "image_size": 8, "attn_resolutions": [4], **betas, "model_var_type": variance}
    return PipelineCase(
        name=f"pipeline-{variance}-10",
        title=f"from variables to pixels: T = 10, {variance}",
        location="algorithm 2",
        cls="DDPMPipeline",
        format=ORIGINAL.repository,
        config=config,
        checkpoint="npz",
        network=partial(TensorFlowNetwork, code, config),
        run=sampler(code, partial(_cifar, code, betas, "eps", variance), True),
        pixels=lambda x: ((x + 1) / 2).clamp(0, 1),
        integers=lambda x: ((x + 1) * 127.5).clamp(0, 255).byte(),  # tpu_utils/tpu_utils.py:unnormalize_data
        examples=variance_preserving(torch.from_numpy((1 - code.cifar.get_beta_schedule(**betas)).cumprod())),
        shape=(3, 8, 8),
        batch=2,
        call={"num_inference_steps": 10},
        functions=(
            "diffusion_tf/models/unet.py:model",
            "diffusion_tf/diffusion_utils_2.py:GaussianDiffusion2.p_sample",
        ),
        changes=CHANGES,
        lifted=(*LIFTED, *NETWORK_LIFTED),
    )


def sampler_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """2 to 1000 steps (the original has no respacing: T is the number of steps), every variance and prediction type."""
    for variance in ("fixedsmall", "fixedlarge", "learned"):
        for steps in (2, 3, 7, 40):
            yield _case(code, _betas("linear", steps, 0.5), variance=variance)
    for prediction in ("xstart", "xprev"):
        yield _case(code, _betas("linear", 13, 0.5), prediction=prediction)
        yield _case(code, _betas("linear", 13, 0.5), prediction=prediction, variance="learned", clip_denoised=False)
    yield _case(code, _betas("linear", 13, 0.5), clip_denoised=False)
    for schedule in ("quad", "const", "warmup10", "warmup50"):
        yield _case(code, _betas(schedule, 21, 0.3), variance="fixedsmall")
    yield _case(code, _betas("linear", 1000), variance="fixedsmall")
    yield _case(code, _betas("linear", 13, 0.5), variance="fixedsmall", lsun=True)
    yield _case(code, _betas("linear", 1, 0.5), variance="fixedsmall", lsun=True)


def _betas(schedule: str, steps: int, end: float = 0.02, start: float = 1e-4) -> dict[str, Any]:
    return {"beta_schedule": schedule, "beta_start": start, "beta_end": end, "num_diffusion_timesteps": steps}


def _cifar(code: SimpleNamespace, betas: dict[str, Any], prediction: str, variance: str) -> Any:
    table = code.cifar.get_beta_schedule(**betas)
    return code.cifar.GaussianDiffusion2(
        betas=table, model_mean_type=prediction, model_var_type=variance, loss_type="mse"
    )


def _lsun(code: SimpleNamespace, betas: dict[str, Any]) -> Any:
    return code.lsun.GaussianDiffusion(betas=code.lsun.get_beta_schedule(**betas), loss_type="noisepred")


PREDICTIONS = {"eps": "epsilon", "xstart": "sample", "xprev": "previous_sample"}
VARIANCES = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large", "learned": "learned"}


def _case(
    code: SimpleNamespace,
    betas: dict[str, Any],
    prediction: str = "eps",
    variance: str = "fixedlarge",
    clip_denoised: bool = True,
    lsun: bool = False,
) -> SchedulerCase:
    steps, schedule = betas["num_diffusion_timesteps"], betas["beta_schedule"]
    cls = "diffusion_utils.py:GaussianDiffusion" if lsun else "diffusion_utils_2.py:GaussianDiffusion2"
    words = [
        "lsun" if lsun else "cifar",
        schedule,
        variance,
        prediction,
        "" if clip_denoised else "unclipped",
        str(steps),
    ]
    return SchedulerCase(
        name="-".join(word for word in words if word),
        title=f"ancestral sampling, T = {steps}, {schedule} betas, {variance}, predicting {prediction}",
        location="algorithm 2, equations 7, 11 and 15",
        cls="DDPMScheduler",
        config={
            "num_train_timesteps": steps,
            "beta_schedule": "scaled_linear" if schedule == "quad" else schedule,
            "beta_start": betas["beta_start"],
            "beta_end": betas["beta_end"],
            "variance_type": VARIANCES[variance],
            "prediction_type": PREDICTIONS[prediction],
            "clip_sample": clip_denoised,
            "coefficients": "float64",
        },
        set_timesteps={"num_inference_steps": steps},
        run=sampler(
            code,
            partial(_lsun, code, betas) if lsun else partial(_cifar, code, betas, prediction, variance),
            clip_denoised,
        ),
        network=AnalyticNetwork(
            steps,
            PREDICTIONS[prediction],  # type: ignore[arg-type]
            "learned" if variance == "learned" else None,
        ),
        functions=(f"diffusion_tf/{cls}.p_sample", f"diffusion_tf/{cls}.p_mean_variance"),
        shape=case_shape(steps),
        seed=steps,
        changes=CHANGES,
        lifted=LIFTED,
    )
