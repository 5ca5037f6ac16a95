"""Recorder for ermongroup/ddim: `runners/diffusion.py` (grids, betas) and `functions/denoising.py` (both samplers)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing, widened
from conformance.recorders.last_layer import variance_preserving
from conformance.recorders.network_cases import ModelCase, PipelineCase
from conformance.recorders.networks import TorchNetwork
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape

ORIGINAL = Original(
    system="ddim",
    repository="ermongroup/ddim",
    commit="e8df66cf02e457719930748b5c26e37e3126dfdd",
    licence="MIT",
    paper_title="Denoising Diffusion Implicit Models",
    arxiv="2010.02502",
)
STUBS = ("torchvision", "torchvision.utils", "torchvision.transforms", "torchvision.transforms.functional",
         "torchvision.datasets", "torchvision.datasets.utils", "lmdb", "requests")  # fmt: skip
CHANGES = ("torchvision, lmdb, requests stubbed", "Tensor.to('cuda') returns the tensor itself")
LIFTED = ("denoising.compute_alpha: the float32 table is handed out as float64",)
FUNCTIONS = ("runners/diffusion.py:Diffusion.__init__", "runners/diffusion.py:get_beta_schedule",
             "runners/diffusion.py:Diffusion.sample_image")  # fmt: skip


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `runner`, `denoising`, `models`."""
    names = ("runners.diffusion", "functions.denoising", "models.diffusion")
    with importing(source, names, STUBS) as (runner, denoising, models):
        yield SimpleNamespace(runner=runner, denoising=denoising, models=models)


@contextmanager
def on_cpu(code: SimpleNamespace, dtype: torch.dtype) -> Iterator[None]:
    """Undo the hard-wired 'cuda', and for the oracle hand the float32 alphas out as float64."""
    to = torch.Tensor.to

    def to_cpu(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return tensor if arguments[:1] in (("cuda",), ("cpu",)) else to(tensor, *arguments, **options)

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.Tensor, "to", to_cpu))
        if dtype == torch.float64:
            stack.enter_context(widened(code.denoising, "compute_alpha"))
        yield


def diffusion(code: SimpleNamespace, betas: dict[str, Any], **arguments: Any) -> Any:
    """The original's `Diffusion` runner for a beta schedule and command line arguments."""
    config = SimpleNamespace(
        model=SimpleNamespace(var_type="fixedlarge"),
        diffusion=SimpleNamespace(**betas),
    )
    return code.runner.Diffusion(SimpleNamespace(**arguments), config, device="cpu")


def sampler(code: SimpleNamespace, betas: dict[str, Any], **arguments: Any) -> Callable[..., Run]:
    """`run` of a case: the original's sample_image from x_T to x_0."""

    def run(network: Callable[..., torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> Run:
        runner = diffusion(code, betas, **arguments)
        with on_cpu(code, dtype):
            trajectory, x0 = runner.sample_image(torch.randn(shape, dtype=dtype), network, last=False)
            every_step = torch.arange(-1, runner.num_timesteps)
            alphas = code.denoising.compute_alpha(runner.betas, every_step).reshape(-1)
        tables = {"betas": runner.betas, "alphas_cumprod": alphas[1:].float()}
        return Run(trajectory[-1], x0, tables)

    return run


def beta_config(schedule: str, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> dict[str, Any]:
    """The `diffusion` section of a configuration file."""
    return {
        "beta_schedule": schedule,
        "beta_start": start,
        "beta_end": end,
        "num_diffusion_timesteps": steps,
    }


def network_config(
    size: int, ch: int, ch_mult: Sequence[int], blocks: int, attention: Sequence[int], resamp_with_conv: bool = True
) -> dict[str, Any]:
    """A configuration file in the original's form."""
    return {
        "data": {"dataset": "CIFAR10", "image_size": size, "channels": 3, "logit_transform": False, "rescaled": True,
                 "uniform_dequantization": False, "gaussian_dequantization": False},
        "model": {"type": "simple", "in_channels": 3, "out_ch": 3, "ch": ch, "ch_mult": list(ch_mult), "dropout": 0.1,
                  "num_res_blocks": blocks, "attn_resolutions": list(attention), "var_type": "fixedlarge",
                  "ema_rate": 0.9999, "ema": True, "resamp_with_conv": resamp_with_conv},
        "diffusion": beta_config("linear"),
    }  # fmt: skip


CIFAR10 = network_config(32, 128, (1, 2, 2, 2), 2, (16,))
CELEBA = network_config(64, 128, (1, 2, 2, 2, 4), 2, (16,))
LSUN = network_config(256, 128, (1, 1, 2, 2, 4, 4), 2, (16,))
# 64 channels, not 32: with one channel a group the norms would cancel the time embedding and the biases before them.
TINY = network_config(16, 64, (1, 2), 1, (8,))
SMALL = network_config(8, 64, (1, 2), 1, (4,))
# DDIM does not clip: with less noise at T than the official schedule a synthetic network stays in range.
SMALL_MILD = {**SMALL, "diffusion": beta_config("linear", end=0.005)}
NETWORK_LIFTED = ("get_timestep_embedding: its float32 result is handed to the float64 network",)


def namespace(data: Any) -> Any:
    """Nested dictionaries as the attribute access that the original expects."""
    return SimpleNamespace(**{k: namespace(v) for k, v in data.items()}) if isinstance(data, dict) else data


def network(code: SimpleNamespace, config: dict[str, Any]) -> TorchNetwork:
    """The original's `Model`."""
    lift = partial(widened, code.models, "get_timestep_embedding")
    channels = config["model"]["ch"]
    return TorchNetwork(
        lambda: code.models.Model(namespace(config)),
        lift,
        "conv_out",
        lambda t: code.models.get_timestep_embedding(t, channels),
    )


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase | ModelCase | PipelineCase]:
    """Both samplers, the network, and both together from a checkpoint to pixels."""
    yield from sampler_cases(code)
    for name, config, times, tier in (
        ("tiny", TINY, (3.0, 977.0), "default"),
        ("deep", network_config(16, 64, (1, 1, 2), 2, (16, 4)), (0.0, 480.0), "default"),
        ("pooling", network_config(16, 64, (1, 2), 1, (8,), resamp_with_conv=False), (12.5, 999.0), "default"),
        ("cifar10", CIFAR10, (500.0,), "full"),
        ("celeba", CELEBA, (500.0,), "full"),
        ("lsun", LSUN, (500.0,), "full"),
    ):
        yield ModelCase(
            name=f"network-{name}",
            title=f"one forward pass of the network, {name}, t = {', '.join(f'{t:g}' for t in times)}",
            location="arXiv:2006.11239, appendix B",
            format=ORIGINAL.repository,
            config=config,
            network=partial(network, code, config),
            shape=(3, config["data"]["image_size"], config["data"]["image_size"]),
            times=times,
            functions=("models/diffusion.py:Model",),
            changes=CHANGES,
            lifted=NETWORK_LIFTED,
            tier=tier,
        )
    yield _pipeline(code, "ddim-13-eta-0", "states", 13, eta=0.0, config=SMALL_MILD)
    yield _pipeline(code, "ddim-7-eta-0.5", "plain", 7, eta=0.5, config=SMALL_MILD)
    yield _pipeline(code, "ddim-cifar10", "states", 2, eta=1.0, config=CIFAR10, tier="full")
    yield _pipeline(code, "ddpm-noisy-10", "states", 10)


def _pipeline(
    code: SimpleNamespace,
    name: str,
    checkpoint: str,
    steps: int,
    eta: float | None = None,
    config: dict[str, Any] = SMALL,
    tier: str = "default",
) -> PipelineCase:
    arguments: dict[str, Any] = {"skip_type": "uniform", "timesteps": steps}
    arguments |= {"sample_type": "ddpm_noisy"} if eta is None else {"sample_type": "generalized", "eta": eta}
    size = config["data"]["image_size"]
    betas = diffusion(code, config["diffusion"]).betas.double()
    return PipelineCase(
        name=f"pipeline-{name}",
        title=f"from checkpoint to pixels: {name}",
        location="equations 12 and 16",
        cls="DDPMPipeline" if eta is None else "DDIMPipeline",
        format=ORIGINAL.repository,
        config=config,
        checkpoint=checkpoint,
        network=partial(network, code, config),
        run=sampler(code, config["diffusion"], **arguments),
        pixels=lambda x: code.runner.inverse_data_transform(namespace(config), x),
        # torchvision.utils.save_image
        integers=lambda x: (code.runner.inverse_data_transform(namespace(config), x) * 255 + 0.5).clamp(0, 255).byte(),
        examples=variance_preserving((1 - betas).cumprod(0)),
        shape=(3, size, size),
        batch=1 if tier == "full" else 2,
        call={"num_inference_steps": steps} | ({} if eta is None else {"eta": eta}),
        functions=("models/diffusion.py:Model", "functions/denoising.py", *FUNCTIONS),
        changes=CHANGES,
        lifted=(*LIFTED, *NETWORK_LIFTED),
        tier=tier,
    )


def sampler_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Grids that divide T and not, 1 to T steps, eta 0, fractional and 1; every beta schedule; both samplers."""
    every, ends = (0.0, 0.3, 1.0), (0.0, 1.0)
    grids = [(1, "uniform", (0.0,)), (2, "uniform", ends), (3, "uniform", every), (7, "uniform", every),
             (10, "uniform", every), (13, "uniform", every), (10, "quad", every), (50, "quad", every)]  # fmt: skip
    for steps, skip, etas in grids:
        for eta in etas:
            yield _ddim(code, steps, skip, eta)
    yield _ddim(code, 1000, "uniform", 0.5)
    for schedule in ("quad", "const", "sigmoid"):
        yield _ddim(code, 9, "uniform", 0.7, betas=beta_config(schedule))
    yield _ddim(code, 9, "uniform", 0.7, betas=beta_config("jsd", steps=40))
    yield _ddim(code, 40, "uniform", 1.0, betas=beta_config("linear", steps=40, end=0.4))
    for steps, skip in ((1, "uniform"), (2, "uniform"), (3, "uniform"), (13, "uniform"), (50, "uniform"), (50, "quad")):
        yield _ddpm(code, steps, skip)
    yield _ddpm(code, 1000, "uniform")
    yield _ddpm(code, 40, "uniform", betas=beta_config("linear", steps=40, end=0.4))


def _config(betas: dict[str, Any], skip: str) -> dict[str, Any]:
    schedule = betas["beta_schedule"]
    return {
        "num_train_timesteps": betas["num_diffusion_timesteps"],
        "beta_schedule": "scaled_linear" if schedule == "quad" else schedule,
        "beta_start": betas["beta_start"],
        "beta_end": betas["beta_end"],
        "coefficients": "float32_cumprod",
        "timestep_spacing": f"ddim_{skip}",
    }


def _name(kind: str, steps: int, skip: str, betas: dict[str, Any]) -> str:
    other = "" if betas == beta_config("linear") else f"-{betas['beta_schedule']}-{betas['num_diffusion_timesteps']}"
    return f"{kind}{other}-{skip}-{steps}"


def _ddim(
    code: SimpleNamespace,
    steps: int,
    skip: str,
    eta: float,
    betas: dict[str, Any] | None = None,
) -> SchedulerCase:
    betas = betas or beta_config("linear")
    return SchedulerCase(
        name=f"{_name('ddim', steps, skip, betas)}-eta-{eta:g}",
        title=f"DDIM, {skip} grid of {steps}, η = {eta:g}, {betas['beta_schedule']} betas",
        location="equations 12 and 16",
        cls="DDIMScheduler",
        config={**_config(betas, skip), "clip_sample": False, "set_alpha_to_one": True},
        set_timesteps={"num_inference_steps": steps},
        step={"eta": eta},
        run=sampler(code, betas, sample_type="generalized", skip_type=skip, timesteps=steps, eta=eta),
        network=AnalyticNetwork(betas["num_diffusion_timesteps"]),
        functions=("functions/denoising.py:generalized_steps", *FUNCTIONS),
        shape=case_shape(steps),
        seed=steps,
        changes=CHANGES,
        lifted=LIFTED,
        tables=steps == 10 or betas != beta_config("linear"),
    )


def _ddpm(
    code: SimpleNamespace,
    steps: int,
    skip: str,
    betas: dict[str, Any] | None = None,
) -> SchedulerCase:
    betas = betas or beta_config("linear")
    return SchedulerCase(
        name=_name("ddpm-noisy", steps, skip, betas),
        title=f"DDPM as ddpm_steps runs it, {skip} grid of {steps}",
        location="section 4.1, σ̂ of the DDPM",
        cls="DDPMScheduler",
        config={**_config(betas, skip), "clip_sample": True, "variance_type": "fixed_large"},
        set_timesteps={"num_inference_steps": steps},
        run=sampler(code, betas, sample_type="ddpm_noisy", skip_type=skip, timesteps=steps),
        network=AnalyticNetwork(betas["num_diffusion_timesteps"]),
        functions=("functions/denoising.py:ddpm_steps", *FUNCTIONS),
        shape=case_shape(steps),
        seed=steps,
        changes=CHANGES,
        lifted=LIFTED,
        tables=steps == 50,
    )
