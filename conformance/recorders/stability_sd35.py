"""Recorder for Stability-AI/sd3.5: the levels of `sd3_infer.py`, guidance and both samplers of `sd3_impls.py`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Probe, Run, SchedulerCase, case_shape, latent_pattern

ORIGINAL = Original(
    system="sd3.5",
    repository="Stability-AI/sd3.5",
    commit="fbf8f483f992d8d6ad4eaaeb23b1dc5f523c3b3a",
    licence="MIT",
    paper_title="Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    arxiv="2403.03206",
)
STUBS = ("dit_embedder", "mmditx", "other_impls", "einops", "fire", "PIL", "PIL.Image")
CHANGES = (
    "the networks, einops, fire and PIL stubbed, and the progress bar left out",
    "BaseModel without its constructor; the answer is the same without the condition, so that guidance has no effect",
)
FLOAT32_LATENTS = ("latent and noise are float32 where the script has float16",)
LIFTED = (
    "the levels and what the sampler begins with are float32, and handed to it as float64",
    "BaseModel.apply_model: .float() leaves float64 as it is; the network's time is rounded to float32",
)
LIFTED_FLOAT16 = ("sigma, which the float16 latents of the beginning round to float16, is rounded likewise",)
CLASSES = {"euler": "FlowMatchEulerDiscreteScheduler", "dpmpp_2m": "FlowMatchDPMPP2MScheduler"}
LOCATIONS = {"euler": "equations 13 and 23", "dpmpp_2m": "equation 23; arXiv:2211.01095, algorithm 2"}


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `impls`, `infer`."""
    with importing(source, ("sd3_impls", "sd3_infer"), STUBS) as (impls, infer), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autocast for CUDA on a machine without
        with patch.object(impls, "tqdm", lambda steps: steps):
            yield SimpleNamespace(impls=impls, infer=infer)


@dataclass(frozen=True)
class Sampling:
    """What do_sampling is asked for; `half`: with float16 latents, as the script runs it."""

    sampler: str
    steps: int
    shift: float
    denoise: float = 1.0
    half: bool = False


def run(code: SimpleNamespace, asked: Sampling, network: Probe, shape: Sequence[int], dtype: torch.dtype) -> Run:
    """`do_sampling` from the noise to the sampler's result, before it is scaled for the decoder."""
    impls = code.impls
    levels = impls.ModelSamplingDiscreteFlow(shift=asked.shift)
    sigmas = code.infer.SD3Inferencer.get_sigmas(None, levels, asked.steps)
    sigmas = sigmas[int(asked.steps * (1 - asked.denoise)) :]
    noise, latent = torch.randn(shape), latent_pattern(shape)
    if asked.half:
        noise, latent = noise.half(), latent.half()
    x = levels.noise_scaling(sigmas[0], noise, latent)
    if dtype == torch.float64:
        x = x.to(dtype)

    model = _model(impls, levels, network, len(noise), dtype)
    guided, x0 = impls.CFGDenoiser(model), []

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, **options: Any) -> torch.Tensor:
        network.at(x)
        x0.append(guided(x, sigma.half() if asked.half else sigma, **options))
        return x0[-1]

    condition = {"c_crossattn": torch.zeros(shape[0], 1), "y": torch.zeros(shape[0], 1)}
    options = {"cond": condition, "uncond": condition, "cond_scale": 4.5}
    lifted = patch.object(torch.Tensor, "float", lambda x: x) if dtype == torch.float64 else nullcontext()
    with lifted:
        final = getattr(impls, f"sample_{asked.sampler}")(denoiser, x, sigmas.to(dtype), extra_args=options)
    # Published samplers of this name report no x0, and need not.
    return Run(final, x0 if asked.sampler == "dpmpp_2m" else None, {"sigmas": sigmas})


def _model(impls: Any, levels: Any, network: Probe, batch: int, dtype: torch.dtype) -> Any:
    """A BaseModel around `network`, which is asked once for [cond, uncond]."""

    def diffusion_model(x: torch.Tensor, timestep: torch.Tensor, **_: Any) -> torch.Tensor:
        output = network(x[:batch], timestep[:batch].to(torch.float32))
        return torch.cat([output, output])

    model = SimpleNamespace(
        model_sampling=levels, diffusion_model=diffusion_model, control_model=None, get_dtype=lambda: dtype
    )
    model.apply_model = partial(impls.BaseModel.apply_model, model)
    return model


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Both samplers; 1 to many steps, several shifts, from noise and from an image, in float32 and float16 latents."""
    for steps, shift in ((4, 3.0), (9, 1.0), (15, 2.37), (28, 3.0)):
        yield _case(code, Sampling("euler", steps, shift))
    for steps, shift in ((1, 3.0), (2, 3.0), (3, 1.0), (8, 2.37), (28, 1.0), (27, 3.0)):
        yield _case(code, Sampling("dpmpp_2m", steps, shift))
    yield _case(code, Sampling("euler", 6, 3.0, denoise=0.6))
    yield _case(code, Sampling("dpmpp_2m", 10, 3.0, denoise=0.8))
    yield _case(code, Sampling("euler", 4, 3.0, half=True))
    yield _case(code, Sampling("euler", 7, 1.0, denoise=0.8, half=True))


def _case(code: SimpleNamespace, asked: Sampling) -> SchedulerCase:
    config: dict[str, Any] = {"flow_grid": "sd3.5", "shift": asked.shift}
    if asked.sampler == "euler":
        config["derivative"] = "denoised"
    if asked.half:
        config["time_dtype"] = "float16"
    request: dict[str, Any] = {"num_inference_steps": asked.steps}
    if asked.denoise != 1.0:
        request["strength"] = asked.denoise
    start = "" if asked.denoise == 1.0 else f"-from-{asked.denoise:g}"
    precision = "-float16" if asked.half else ""
    return SchedulerCase(
        name=f"{asked.sampler.replace('_', '-')}-shift-{asked.shift:g}-{asked.steps}{start}{precision}",
        title=f"{asked.sampler}, {asked.steps} steps, shift {asked.shift:g}, denoise {asked.denoise:g}",
        location=LOCATIONS[asked.sampler],
        cls=CLASSES[asked.sampler],
        config=config,
        set_timesteps=request,
        run=partial(run, code, asked),  # type: ignore[arg-type]
        network=AnalyticNetwork(prediction="flow", schedule="flow", time_scale=1000.0),
        functions=(
            "sd3_infer.py:SD3Inferencer.get_sigmas",
            "sd3_impls.py:ModelSamplingDiscreteFlow",
            "sd3_impls.py:BaseModel.apply_model",
            "sd3_impls.py:CFGDenoiser",
            f"sd3_impls.py:sample_{asked.sampler}",
        ),
        shape=case_shape(asked.steps),
        seed=asked.steps,
        changes=CHANGES if asked.half else (*CHANGES, *FLOAT32_LATENTS),
        lifted=(*LIFTED, *LIFTED_FLOAT16) if asked.half else LIFTED,
    )
