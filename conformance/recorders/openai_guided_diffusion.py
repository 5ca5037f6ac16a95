"""Recorder for openai/guided-diffusion: both loops under a classifier's gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import SchedulerCase
from conformance.recorders.spaced_diffusion import case

ORIGINAL = Original(
    system="guided-diffusion",
    repository="openai/guided-diffusion",
    commit="22e0df8183507e13a7813f8d38d51b072ca1e67c",
    licence="MIT",
    paper_title="Diffusion Models Beat GANs on Image Synthesis",
    arxiv="2105.05233",
)
STUBS = ("mpi4py", "blobfile")
CHANGES = ("mpi4py, blobfile stubbed",)
DIFFUSION = "guided_diffusion/gaussian_diffusion.py:GaussianDiffusion"


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `script_util`, `diffusion`."""
    names = [f"guided_diffusion.{name}" for name in ("script_util", "gaussian_diffusion")]
    with importing(source, names, STUBS) as (script_util, diffusion):
        yield SimpleNamespace(script_util=script_util, diffusion=diffusion)


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Every variance, guided and not, on grids by count, by sections and by `ddimN`; x_0 limited or not.

    A single step raises IndexError in the original (its variance table needs a second entry) and cannot be recorded.
    """
    ancestral, ddim = (
        partial(
            case,
            code.diffusion,
            code.script_util.create_gaussian_diffusion,
            (*(f"{DIFFUSION}.{name}" for name in names), "guided_diffusion/respace.py"),
            names[0],
            changes=CHANGES,
        )
        for names in (("p_sample", "p_sample_loop_progressive", "condition_mean"),
                      ("ddim_sample", "ddim_sample_loop_progressive", "condition_score"))
    )  # fmt: skip
    yield ancestral("10", variance="learned_range", guidance=1.0)
    yield ancestral("21", variance="learned_range", guidance=4.0, clip=False)
    yield ancestral("ddim5", guidance=2.0, shape=(3, 2, 2, 2))
    yield ancestral("3,4,5", variance="fixed_small", guidance=1.0, predict_xstart=True)
    yield ancestral("", total=30, variance="learned_range", guidance=1.0, rescale=True)
    yield ancestral("ddim25", total=4000, cosine="cosine", variance="learned_range", guidance=1.0, rescale=True)
    yield ancestral("31", variance="fixed_small", clip=False)
    yield ddim("10", eta=0.0, variance="learned_range", guidance=1.0)
    yield ddim("23", eta=0.7, guidance=3.0)
    yield ddim("4,3", eta=1.0, guidance=1.0, predict_xstart=True, rescale=True, total=400)
    yield ddim("2", eta=0.5, guidance=2.0, clip=False, shape=(1, 3, 2, 2))
    yield ddim("ddim20", eta=0.0, cosine="cosine", clip=False)
