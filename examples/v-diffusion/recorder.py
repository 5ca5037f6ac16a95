"""Recorder: runs crowsonkb/v-diffusion-pytorch around an analytic network, and writes what it computed as fixtures.

    git clone https://github.com/crowsonkb/v-diffusion-pytorch ../v-diffusion-pytorch
    conformance record recorder.py --source ../v-diffusion-pytorch --output fixtures

Its networks and its other samplers are not recorded.
"""

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
from conformance.recorders.scheduler_case import Run, SchedulerCase

ORIGINAL = Original(
    system="v-diffusion",
    repository="crowsonkb/v-diffusion-pytorch",
    commit="439ed4caf765ec6f8fccb52213a859cac9e76d3b",
    licence="MIT",
    paper_title="Progressive Distillation for Fast Sampling of Diffusion Models",
    arxiv="2202.00512",
)
STUBS = ("requests", "torchvision", "torchvision.transforms")
CHANGES = (
    "requests and torchvision stubbed",
    "torch.cuda.amp.autocast does nothing (as it does without CUDA)",
    "the grid is made as cfg_sample.py:run_all makes it, which cannot be called alone",
)
LIFTED = (
    "t_to_alpha_sigma: its float32 tables are handed out as float64",
    "sample: v.float() is v.double()",
)
SCHEDULES = {"spliced": "get_spliced_ddpm_cosine_schedule", "ddpm": "get_ddpm_schedule", "linear": None}


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `sampling`, `utils`."""
    with importing(source, ("diffusion.sampling", "diffusion.utils"), STUBS) as (sampling, utils):
        yield SimpleNamespace(sampling=sampling, utils=utils)


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Few and many steps, the three schedules, every kind of η, and a start below t = 1 as for an initial image.

    Ten steps are the most whose times and tables have the same last bits with and without AVX2 and AVX-512.
    """
    for steps in (1, 2, 7, 10):
        for eta in (0.0, 0.5, 1.0):
            if steps == 7 or eta == {1: 0.0, 2: 1.0, 10: 0.5}[steps]:
                yield case(code, steps, eta, "spliced")
    yield case(code, 5, 0.0, "linear")
    yield case(code, 5, 1.0, "ddpm")
    yield case(code, 10, 0.5, "spliced", start=0.9)


def case(code: SimpleNamespace, steps: int, eta: float, schedule: str, start: float | None = None) -> SchedulerCase:
    """One run of `sampling.sample`, and what it is called in terms of the port."""

    def grid() -> torch.Tensor:
        t = torch.linspace(1, 0, steps + 1)[:-1]
        name = SCHEDULES[schedule]
        times = t if name is None else getattr(code.utils, name)(t)
        return times if start is None else times[times < start]

    def run(network: Callable[..., torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> Run:
        x = torch.randn(tuple(shape), dtype=dtype)
        predictions: list[torch.Tensor] = []
        alphas, sigmas = code.utils.t_to_alpha_sigma(grid())
        with ExitStack() as changes:
            changes.enter_context(patch.object(torch.cuda.amp, "autocast", ExitStack))
            if dtype == torch.float64:
                tables = (alphas.double(), sigmas.double())
                changes.enter_context(patch.object(code.utils, "t_to_alpha_sigma", lambda t: tables))
                changes.enter_context(patch.object(torch.Tensor, "float", torch.Tensor.double))
            keep: Callable[[dict[str, Any]], None] = lambda state: predictions.append(state["pred"].clone())
            final = code.sampling.sample(network, x, grid(), eta, {}, keep)
        return Run(final, predictions, {"alphas": alphas, "sigmas": sigmas})

    name = f"{schedule}-{steps}-eta-{eta:g}" + ("" if start is None else f"-from-{start:g}")
    return SchedulerCase(
        name=name,
        title=f"{steps} steps of the {schedule} schedule, η = {eta:g}" + (f", t < {start:g}" if start else ""),
        location="section 4 (v); DDIM: arXiv:2010.02502, equations 12 and 16",
        cls="VDiffusionScheduler",
        config={"schedule": schedule},
        set_timesteps={"num_inference_steps": steps} if start is None else {"timesteps": grid().tolist()},
        step={"eta": eta},
        run=run,
        network=AnalyticNetwork(prediction="v_prediction", time_scale=1 / 1000),
        functions=("diffusion/sampling.py:sample", "diffusion/utils.py:t_to_alpha_sigma")
        + (() if SCHEDULES[schedule] is None else (f"diffusion/utils.py:{SCHEDULES[schedule]}",)),
        shape=(2, 2, 3, 2),
        seed=steps,
        changes=CHANGES,
        lifted=LIFTED,
    )
