"""Replaying a pipeline: the original's checkpoint and configuration files go in, pixels come out.

The checkpoint is written from synthetic weights in the original's own form and loaded as a user would load it. Every step's
sample is read off the scheduler, so that a pipeline that has no callbacks can be followed too.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.compare import FLOAT64, Comparison, compare_exactly, compare_float64, compare_steps
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation
from conformance.replay import Settings
from conformance.replay.checkpoints import original_state, write_checkpoint, write_config
from conformance.tape import StreamCheck, replayed_draws


def compare(
    fixture: Fixture, implementation: Implementation, settings: Settings
) -> tuple[list[Comparison], bool | None]:
    """Steps, images and integers with draws from the tape, in the chosen dtype and in float64; then a seeded run."""
    recorded, tape = fixture.tensors, fixture.manifest.tape
    pipeline = load(fixture, implementation).to(settings.device)
    draws = list(recorded["draws"])
    comparisons: list[Comparison] = []
    draws_match = None
    for dtype in [settings.dtype] + [torch.float64] * (settings.dtype == torch.float32):
        pipeline.to(dtype)
        steps, images = _run(pipeline, fixture, implementation, draws=draws)
        if dtype == torch.float64:
            tolerance = fixture.manifest.float64_tolerance
            comparisons.append(compare_float64("sample" + FLOAT64, steps, recorded["sample.f64"], tolerance))
            comparisons.append(
                _stepless(compare_float64("images" + FLOAT64, images[None], recorded["images.f64"][None], tolerance))
            )
            continue
        comparisons.append(
            compare_steps("sample", steps, recorded["sample"], recorded["sample.f64"], recorded["sample.floor"], settings.policy)
        )
        comparisons.append(
            _stepless(compare_steps("images", images[None], recorded["images"][None], recorded["images.f64"][None],
                                    recorded["images.floor"], settings.policy))
        )  # fmt: skip
        if dtype == torch.float32:
            check = StreamCheck(tape.seed, tape.draws)
            seeded, integers = _run(pipeline, fixture, implementation, generator=check.generator)
            draws_match = check.expect(len(tape.draws))
            comparisons.append(compare_exactly("seeded", seeded[-1], steps[-1]))
            comparisons.append(_integers(integers, recorded["integers"]))
    return comparisons, draws_match


def load(fixture: Fixture, implementation: Implementation) -> Any:
    """The fixture's pipeline, through a checkpoint file in the original's form."""
    subject, weights = fixture.manifest.subject, fixture.manifest.weights
    assert weights is not None and subject.checkpoint is not None
    state = original_state(fixture, implementation.original_shapes(subject))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_checkpoint(subject.checkpoint, state, weights.seed, folder)
        return implementation.pipeline(subject, checkpoint, write_config(subject.config, folder))


def _run(
    pipeline: Any,
    fixture: Fixture,
    implementation: Implementation,
    draws: Sequence[torch.Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every step's sample and the images: with draws from the tape as "pt", with a generator as integers (B, C, H, W)."""
    steps: list[torch.Tensor] = []
    step = pipeline.scheduler.step

    def followed(*arguments: Any, **options: Any) -> Any:
        result = step(*arguments, **options)
        steps.append(result.prev_sample if hasattr(result, "prev_sample") else result[0])
        return result

    batch = fixture.tensors["draws"].shape[1]
    call = {**implementation.call_options(fixture.manifest.subject), "batch_size": batch}
    pipeline.scheduler.step = followed
    try:
        if draws is not None:
            # The generator is never asked: draws are handed out from the tape.
            with replayed_draws(draws):
                images = pipeline(**call, output_type="pt", generator=torch.Generator("cpu")).images
        else:
            pictures = pipeline(**call, output_type="pil", generator=generator).images
            images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    finally:
        del pipeline.scheduler.step
    return torch.stack(steps).to("cpu"), images.to("cpu")


def _integers(observed: torch.Tensor, recorded: torch.Tensor) -> Comparison:
    """Pixels as integers, exactly, except (-1) where the original's own rounding error decides."""
    stable = recorded >= 0
    return compare_exactly("integers", observed.to(torch.int16)[stable], recorded[stable])


def _stepless(comparison: Comparison) -> Comparison:
    return dataclasses.replace(comparison, step=None)
