"""Replaying a pipeline: the original's checkpoint and configuration files go in, pixels come out.

The checkpoint is written from synthetic weights in the original's own form and loaded as a user would load it. Every
step's sample is read off the scheduler, so that a pipeline that has no callbacks can be followed too. At each call the
network is given the original's embedding of the time; its own is compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.compare import FLOAT64, Comparison, Verdict, compare_exactly, compare_float64, compare_steps
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation
from conformance.replay import Settings
from conformance.replay.checkpoints import original_state, write_checkpoint, write_config
from conformance.replay.embedding import compare_embedding, recorded_embedding, say_own_embedding
from conformance.tape import StreamCheck, drawn_here, replayed_draws


def compare(
    fixture: Fixture, implementation: Implementation, settings: Settings
) -> tuple[list[Comparison], bool | None]:
    """The embedding of each call's time, then steps, images and integers with draws from the tape, in the chosen dtype
    and in float64; in between a seeded run.
    """
    recorded, tape = fixture.tensors, fixture.manifest.tape
    pipeline = load(fixture, implementation).to(settings.device)
    draws = list(recorded["draws"])
    comparisons: list[Comparison] = []
    draws_match = None
    if settings.dtype != torch.float64:
        pipeline.to(settings.dtype)
        seen = _run(pipeline, fixture, implementation, draws=draws)
        comparisons += compare_embedding(seen.embeddings, fixture, settings, bitwise=True)
        for name, found in (("sample", seen.steps), ("images", seen.images)):
            found, y32, y64 = (_rows(tensor, name) for tensor in (found, recorded[name], recorded[name + FLOAT64]))
            comparisons.append(compare_steps(name, found, y32, y64, recorded[f"{name}.floor"], settings.policy))
    if settings.dtype == torch.float32:
        check = StreamCheck(tape.seed, tape.draws)
        seeded = _run(pipeline, fixture, implementation, generator=check.generator)
        draws_match = check.expect(len(tape.draws))
        own = drawn_here(tape.seed, tape.draws)
        expected = seen if _equal(own, draws) else _run(pipeline, fixture, implementation, draws=own)
        comparisons.append(compare_exactly("seeded", seeded.steps[-1], expected.steps[-1]))
        comparisons.append(_integers(seeded.images, recorded["integers"]))
    if settings.dtype in (torch.float32, torch.float64):
        tolerance = fixture.manifest.float64_tolerance
        try:
            seen = _run(pipeline.to(torch.float64), fixture, implementation, draws=draws)
        except Exception as error:  # noqa: BLE001 - a pipeline that cannot run in float64 has still been seen in float32
            failed = Comparison("sample" + FLOAT64, Verdict.ERROR, detail=f"{type(error).__name__}: {error}")
            return [*comparisons, failed], draws_match
        if settings.dtype == torch.float64:
            comparisons += compare_embedding(seen.embeddings, fixture, settings, bitwise=False)
        for name, found in (("sample", seen.steps), ("images", seen.images)):
            y64 = recorded[name + FLOAT64]
            comparisons.append(compare_float64(name + FLOAT64, _rows(found, name), _rows(y64, name), tolerance))
    return comparisons if seen.embeddings else say_own_embedding(comparisons), draws_match


@dataclass(frozen=True)
class Seen:
    """What a run showed.

    Attributes:
        steps: (n, B, C, H, W) every step's sample.
        images: (B, C, H, W) in [0, 1], or uint8.
        embeddings: the network's own embedding of the time, call by call; empty if no module computes it.
    """

    steps: torch.Tensor
    images: torch.Tensor
    embeddings: list[torch.Tensor]


def _equal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _rows(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Comparisons go row by row: the steps of a trajectory, or the images as one row."""
    return tensor if name == "sample" else tensor[None]


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
) -> Seen:
    """One run: with draws from the tape and images as "pt", or with a generator and images as integers."""
    steps: list[torch.Tensor] = []
    step = pipeline.scheduler.step
    embedding, table = implementation.embedding_module(getattr(pipeline, "unet", None)), fixture.tensors["embedding"]

    def followed(*arguments: Any, **options: Any) -> Any:
        result = step(*arguments, **options)
        steps.append(result.prev_sample if hasattr(result, "prev_sample") else result[0])
        return result

    batch = fixture.tensors["draws"].shape[1]
    call = {**implementation.call_options(fixture.manifest.subject), "batch_size": batch}
    pipeline.scheduler.step = followed
    try:
        with recorded_embedding(embedding, table[:, None]) as own:
            if draws is not None:
                # The generator is never asked: draws are handed out from the tape.
                with replayed_draws(draws):
                    images = _as_tensor(pipeline(**call, output_type="pt", generator=torch.Generator("cpu")).images)
            else:
                pictures = pipeline(**call, output_type="pil", generator=generator).images
                images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    finally:
        del pipeline.scheduler.step
    return Seen(torch.stack(steps).to("cpu"), images.to("cpu"), own)


def _as_tensor(images: Any) -> torch.Tensor:
    """(B, C, H, W); some pipelines answer "pt" with an array (B, H, W, C)."""
    return images if isinstance(images, torch.Tensor) else torch.from_numpy(images).permute(0, 3, 1, 2)


def _integers(observed: torch.Tensor, recorded: torch.Tensor) -> Comparison:
    """Pixels as integers, exactly, except (-1) where the original's own rounding error decides."""
    stable = recorded >= 0
    return compare_exactly("integers", observed.to(torch.int16)[stable], recorded[stable])
