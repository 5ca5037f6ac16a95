"""Recorder for crowsonkb/v-diffusion-pytorch: `diffusion/sampling.py`, its improved PLMS, and `utils.py`'s grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape, latent_pattern

ORIGINAL = Original(
    system="v-diffusion",
    repository="crowsonkb/v-diffusion-pytorch",
    commit="439ed4caf765ec6f8fccb52213a859cac9e76d3b",
    licence="MIT",
    paper_title="Pseudo Numerical Methods for Diffusion Models on Manifolds",
    arxiv="2202.09778",
)
STUBS = ("requests", "torchvision", "torchvision.transforms", "tqdm", "tqdm.auto")
CHANGES = ("requests, torchvision, tqdm and the package's networks stubbed", "torch.cuda.amp.autocast without effect")
LIFTED = ("make_autocast_model_fn: the network's output is not cast to float32",)
GRIDS = {
    "spliced_ddpm_cosine": "get_spliced_ddpm_cosine_schedule",
    "ddpm": "get_ddpm_schedule",
    "log": "get_log_schedule",
}


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `sampling` and `utils`."""
    stubs = (*STUBS, "diffusion.models")
    with importing(source, ("diffusion.sampling", "diffusion.utils"), stubs) as (sampling, utils):
        yield SimpleNamespace(sampling=sampling, utils=utils)


def steps_of(code: SimpleNamespace, schedule: str, count: int) -> torch.Tensor:
    """(n,) the times, as the original's command line makes them."""
    steps: torch.Tensor = getattr(code.utils, GRIDS[schedule])(torch.linspace(1, 0, count + 1)[:-1])
    return steps


def run_case(
    code: SimpleNamespace,
    steps: torch.Tensor,
    whole: bool,
    network: Callable[..., torch.Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Run:
    """`run` of a case: `iplms_sample` from x_T; if not `whole`, from an image with as much noise as the first step has.

    At x_T a prediction of x_0 is mostly rounding, magnified 150 times, and is left out.
    """
    x = torch.randn(shape)
    if not whole:
        alpha, sigma = code.utils.t_to_alpha_sigma(steps[0])
        x = latent_pattern(shape) * alpha + x * sigma
    x = x.to(dtype)
    denoised: list[torch.Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(patch.object(code.sampling, "trange", lambda count, **_: range(count)))
        as_it_is = lambda model, enabled=True: model
        in_float32 = lambda model, enabled=True: lambda *arguments, **options: model(*arguments, **options).float()
        plain = as_it_is if dtype == torch.float64 else in_float32
        stack.enter_context(patch.object(code.sampling, "make_autocast_model_fn", plain))
        final = code.sampling.iplms_sample(network, x, steps, {}, callback=lambda info: denoised.append(info["pred"]))
    return Run(final, None if whole else denoised)


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """The three grids from their beginning, and from times below `start`, as the command line has it with an image."""
    for schedule, count, start in ROWS:
        steps = steps_of(code, schedule, count)
        whole = start == 1.0
        if not whole:
            steps = steps[steps < start]
        yield SchedulerCase(
            name=f"iplms-{schedule.replace('_', '-')}-{count}{'' if whole else f'-{start:g}'}",
            title=f"improved PLMS, {count} steps, times by {GRIDS[schedule]}" + ("" if whole else f", below {start:g}"),
            location="equations 11 and 12, with the lower orders of arXiv:2204.13902, appendix H.2",
            cls="IPNDMScheduler",
            config={"angle_schedule": schedule},
            set_timesteps={"num_inference_steps": count} if whole else {"timesteps": steps.tolist()},
            run=partial(run_case, code, steps, whole),
            network=AnalyticNetwork(prediction="v_prediction", schedule="angle"),
            functions=(
                "diffusion/sampling.py:iplms_sample",
                "diffusion/sampling.py:iplms_step",
                "diffusion/sampling.py:transfer",
                f"diffusion/utils.py:{GRIDS[schedule]}",
            ),
            shape=case_shape(count),
            seed=count,
            changes=CHANGES,
            lifted=LIFTED,
        )


ROWS: tuple[tuple[str, int, float], ...] = (
    ("ddpm", 7, 1.0),
    ("spliced_ddpm_cosine", 10, 1.0),
    ("spliced_ddpm_cosine", 33, 1.0),
    ("log", 5, 0.9),
    ("spliced_ddpm_cosine", 9, 0.9),
)
