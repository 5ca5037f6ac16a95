"""Recorder for facebookresearch/DiT: its sampling loops, with the settings that its scripts use and others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import SchedulerCase
from conformance.recorders.spaced_diffusion import case

ORIGINAL = Original(
    system="dit",
    repository="facebookresearch/DiT",
    commit="ed81ce2229091fd4ecc9a223645f95cf379d582b",
    licence="CC-BY-NC-4.0",
    paper_title="Scalable Diffusion Models with Transformers",
    arxiv="2212.09748",
)
DIFFUSION = "diffusion/gaussian_diffusion.py:GaussianDiffusion"


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `package` (diffusion), `diffusion` (diffusion.gaussian_diffusion)."""
    with importing(source, ("diffusion", "diffusion.gaussian_diffusion")) as (package, diffusion):
        yield SimpleNamespace(package=package, diffusion=diffusion)


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """sample.py's ancestral loop (learned variance, unclipped) on grids that np.linspace matches and does not; DDIM.

    A single step raises IndexError in the original (its variance table is empty then) and cannot be recorded.
    """
    ancestral, ddim = (
        partial(
            case,
            code.diffusion,
            code.package.create_diffusion,
            (f"{DIFFUSION}.{loop}_loop_progressive", f"{DIFFUSION}.{loop}", "diffusion/respace.py"),
            loop,
            steps_argument="diffusion_steps",
        )
        for loop in ("p_sample", "ddim_sample")
    )
    official: dict[str, Any] = {"variance": "learned_range", "clip": False}
    yield ancestral("10", **official)
    yield ancestral("21", **official)
    yield ancestral("100", **official)
    yield ancestral("", total=50, **official)
    yield ancestral("5,6", cosine="squaredcos_cap_v2", **official)
    yield ancestral("12", variance="fixed_small", predict_xstart=True, guidance=1.0, shape=(3, 1, 2, 2))
    yield ddim("10", eta=0.0, **official)
    yield ddim("31", eta=0.5, variance="learned_range", guidance=2.0)
