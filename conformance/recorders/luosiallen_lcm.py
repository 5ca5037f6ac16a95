"""Recorder for Latent Consistency Models: the authors' scheduler and loops, community pipelines of HF diffusers.

github.com/luosiallen/latent-consistency-model holds no sampler of its own: its `predict.py` loads the custom pipeline
`latent_consistency_txt2img`, which the authors contributed to HF diffusers, with a scheduler class in the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Run, SchedulerCase, latent_pattern

ORIGINAL = Original(
    system="lcm",
    repository="huggingface/diffusers",
    commit="58eb52c0803ea9af3abec60841c2a093bdf1f951",
    licence="Apache-2.0",
    paper_title="Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference",
    arxiv="2310.04378",
)
FOLDER = "examples/community"
CHANGES = ("the loops of both pipelines run around a network in closed form, without text encoder and decoder",)
LIFTED = (
    "alphas_cumprod: the float32 table is handed out as float64",
    "get_scalings_for_boundary_condition_discrete: the timestep is float64",
    "step: its float32 draws are handed out as float64",
)


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules `txt2img` and `img2img`; they need diffusers and transformers to be installed."""
    names = ("latent_consistency_txt2img", "latent_consistency_img2img")
    with importing(source / FOLDER, names) as (txt2img, img2img):
        yield SimpleNamespace(txt2img=txt2img, img2img=img2img)


@dataclass(frozen=True)
class Sampling:
    """What a pipeline is asked for: n of `origin` steps, after `strength` where it begins with an image.

    scheduler: arguments of the scheduler class.
    """

    steps: int
    origin: int = 50
    strength: float | None = None
    scheduler: dict[str, Any] = field(default_factory=dict)


def run(
    code: SimpleNamespace,
    asked: Sampling,
    network: Callable[..., torch.Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Run:
    """`__call__` of a pipeline, up to the latent that goes to the decoder."""
    if asked.strength is None:
        pipeline, scheduler = code.txt2img.LatentConsistencyModelPipeline, code.txt2img.LCMScheduler(**asked.scheduler)
    else:
        pipeline = code.img2img.LatentConsistencyModelImg2ImgPipeline
        scheduler = code.img2img.LCMSchedulerWithTimestamp(**asked.scheduler)
    tables = {"betas": scheduler.betas, "alphas_cumprod": scheduler.alphas_cumprod}

    def unet(x: torch.Tensor, t: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (network(x, t),)

    unet.config = SimpleNamespace(in_channels=shape[1])  # type: ignore[attr-defined]
    parts = SimpleNamespace(
        unet=unet,
        scheduler=scheduler,
        vae_scale_factor=1,
        image_processor=SimpleNamespace(preprocess=lambda image: image, postprocess=lambda image, **_: image),
        progress_bar=lambda total: nullcontext(SimpleNamespace(update=lambda: None)),
        _execution_device=torch.device("cpu"),
        _encode_prompt=lambda *_, prompt_embeds: prompt_embeds,
    )
    parts.get_w_embedding = MethodType(pipeline.get_w_embedding, parts)
    parts.prepare_latents = lambda *arguments: pipeline.prepare_latents(
        parts, *(torch.float32 if argument is dtype else argument for argument in arguments)
    )
    image = {} if asked.strength is None else {"image": latent_pattern(shape), "strength": asked.strength}

    x0: list[torch.Tensor] = []
    step, scalings = scheduler.step, scheduler.get_scalings_for_boundary_condition_discrete

    def lifted_step(*arguments: Any, **options: Any) -> Any:
        with patch.object(scheduler, "alphas_cumprod", scheduler.alphas_cumprod.to(dtype)), drawing(dtype):
            result = step(*arguments, **options)
        x0.append(result[1])
        return result

    lifted_scalings = patch.object(
        scheduler,
        "get_scalings_for_boundary_condition_discrete",
        lambda t: scalings(t.double() if dtype == torch.float64 else t),
    )
    with lifted_scalings, patch.object(scheduler, "step", lifted_step):
        final, _ = pipeline.__call__(
            parts,
            height=shape[2],
            width=shape[3],
            num_inference_steps=asked.steps,
            lcm_origin_steps=asked.origin,
            prompt_embeds=torch.zeros(shape[0], 1, 1, dtype=dtype),
            output_type="latent",
            return_dict=False,
            **image,
        )
    # Published classes report it under another name: left to cases whose grid is another one there, too.
    return Run(final, x0 if asked.steps > 2 and asked.strength is None else None, tables)


def drawing(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """torch.randn, with its draws in `dtype`."""
    draw = torch.randn
    return patch.object(torch, "randn", lambda *shape, **options: draw(*shape, **options).to(dtype))


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The pipelines' own scheduler."""


def even(first: float, step: float, total: int = 1000, *, scaled: bool = True) -> dict[str, Any]:
    """A chain whose `torch.linspace` is exact, and so the same on every machine: begins at 2^i, in steps of 2^j."""
    power = 2 if scaled else 1
    ends = {"beta_start": first**power, "beta_end": (first + (total - 1) * step) ** power}
    return {**ends, "beta_schedule": "scaled_linear" if scaled else "linear", "num_train_timesteps": total}


EVEN = even(2**-6, 2**-13)


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Step counts where the authors' grid is that of HF diffusers' class and where it is not; every schedule and
    prediction; other grids of distillation; from noise and from an image."""
    yield _case(code, "", Sampling(1, scheduler=SD))
    for steps in (2, 4, 17):
        yield _case(code, "", Sampling(steps, scheduler=EVEN))
    yield _case(code, "-linear-v", Sampling(6, scheduler={
        **even(2**-13, 2**-16, scaled=False), "prediction_type": "v_prediction"}))  # fmt: skip
    yield _case(code, "-cosine-sample", Sampling(9, 60, scheduler={
        "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}))  # fmt: skip
    yield _case(code, "-zero-snr", Sampling(7, 100, scheduler={
        **EVEN, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}))  # fmt: skip
    yield _case(code, "-short", Sampling(5, 12, scheduler=even(2**-6, 2**-12, 400)))
    yield _case(code, "", Sampling(4, strength=0.8, scheduler=EVEN))
    yield _case(code, "", Sampling(9, strength=0.55, scheduler=EVEN))


def _case(code: SimpleNamespace, suffix: str, asked: Sampling) -> SchedulerCase:
    start = "" if asked.strength is None else f"-from-{asked.strength:g}"
    request: dict[str, Any] = {"num_inference_steps": asked.steps}
    if asked.origin != 50:
        request["original_inference_steps"] = asked.origin
    if asked.strength is not None:
        request["strength"] = asked.strength
    total = asked.scheduler.get("num_train_timesteps", 1000)
    published = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}  # the original class's defaults
    module = "latent_consistency_txt2img.py" if asked.strength is None else "latent_consistency_img2img.py"
    classes = ("LatentConsistencyModelPipeline", "LCMScheduler")
    if asked.strength is not None:
        classes = ("LatentConsistencyModelImg2ImgPipeline", "LCMSchedulerWithTimestamp")
    return SchedulerCase(
        name=f"{asked.steps}-of-{asked.origin}{suffix}{start}",
        title=f"{asked.steps} of {asked.origin} steps"
        + ("" if asked.strength is None else f", image-to-image of strength {asked.strength:g}"),
        location="algorithm 3",
        cls="LCMScheduler",
        config={
            **published,
            **asked.scheduler,
            "original_inference_steps": min(50, total),
            "distilled_grid": "strided",
            "final_draw": True,
        },
        set_timesteps=request,
        run=partial(run, code, asked),
        network=AnalyticNetwork(total, prediction=asked.scheduler.get("prediction_type", "epsilon")),
        functions=tuple(f"{FOLDER}/{module}:{name}" for name in (f"{classes[0]}.__call__", classes[1])),
        shape=(2, 4, 2, 2) if asked.steps <= 20 else (1, 4, 1, 2),
        seed=asked.steps,
        changes=CHANGES,
        lifted=LIFTED,
        tables=bool(suffix) or asked.steps == 2,
    )
