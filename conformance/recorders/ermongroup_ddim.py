"""Recorder for ermongroup/ddim: `runners/diffusion.py` (grids, betas) and `functions/denoising.py` (both samplers)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
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
    to, compute_alpha = torch.Tensor.to, code.denoising.compute_alpha

    def to_cpu(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return tensor if arguments[:1] in (("cuda",), ("cpu",)) else to(tensor, *arguments, **options)

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.Tensor, "to", to_cpu))
        if dtype == torch.float64:
            lifted = lambda beta, t: compute_alpha(beta, t).double()  # noqa: E731
            stack.enter_context(patch.object(code.denoising, "compute_alpha", lifted))
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


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Grids that divide T and not, 1 to T steps, eta 0, fractional and 1; every beta schedule; both samplers."""
    every, ends = (0.0, 0.3, 1.0), (0.0, 1.0)
    grids = [(1, "uniform", (0.0,)), (2, "uniform", ends), (3, "uniform", every), (7, "uniform", every),
             (10, "uniform", every), (13, "uniform", every), (10, "quad", every), (50, "quad", every)]  # fmt: skip
    for steps, skip, etas in grids:
        for eta in etas:
            yield _ddim(code, steps, skip, eta)
    yield _ddim(code, 1000, "uniform", 0.5)
    for schedule in ("quad", "const", "sigmoid"):
        yield _ddim(code, 9, "uniform", 0.7, betas=_betas(schedule))
    yield _ddim(code, 9, "uniform", 0.7, betas=_betas("jsd", steps=40))
    yield _ddim(code, 40, "uniform", 1.0, betas=_betas("linear", steps=40, end=0.4))
    for steps, skip in ((1, "uniform"), (2, "uniform"), (3, "uniform"), (13, "uniform"), (50, "uniform"), (50, "quad")):
        yield _ddpm(code, steps, skip)
    yield _ddpm(code, 1000, "uniform")
    yield _ddpm(code, 40, "uniform", betas=_betas("linear", steps=40, end=0.4))


def _betas(schedule: str, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> dict[str, Any]:
    return {
        "beta_schedule": schedule,
        "beta_start": start,
        "beta_end": end,
        "num_diffusion_timesteps": steps,
    }


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
    other = "" if betas == _betas("linear") else f"-{betas['beta_schedule']}-{betas['num_diffusion_timesteps']}"
    return f"{kind}{other}-{skip}-{steps}"


def _ddim(
    code: SimpleNamespace,
    steps: int,
    skip: str,
    eta: float,
    betas: dict[str, Any] | None = None,
) -> SchedulerCase:
    betas = betas or _betas("linear")
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
    )


def _ddpm(
    code: SimpleNamespace,
    steps: int,
    skip: str,
    betas: dict[str, Any] | None = None,
) -> SchedulerCase:
    betas = betas or _betas("linear")
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
    )
