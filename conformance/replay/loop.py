"""Replaying a sampler through a pipeline's own loop: what the pipeline does around its scheduler.

The analytic network stands in the place of the pipeline's network and sees what the original's network saw: the input
and the time of every evaluation. The draws come from the tape, in the pipeline's order, x_T among them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from conformance.compare import FLOAT64, Comparison, compare_exactly, compare_float64, compare_steps
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation
from conformance.network import AnalyticNetwork
from conformance.replay import Settings
from conformance.tape import StreamCheck, drawn_here, replayed_draws


class StandIn(torch.nn.Module):
    """The analytic network where a pipeline expects its own: (B, C, H, W) and a time give an object with `sample`.

    Attributes:
        times: the time of every evaluation.
    """

    def __init__(self, network: AnalyticNetwork, shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = shape[1:]
        size = height if height == width else (height, width)
        self.config = SimpleNamespace(in_channels=channels, out_channels=channels, sample_size=size)
        self.place = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # what `to` moves
        self.times: list[float] = []
        self._network = network

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    @property
    def device(self) -> torch.device:
        return self.place.device

    def forward(self, sample: torch.Tensor, timestep: Any, *_: Any, return_dict: bool = True, **__: Any) -> Any:
        self.times.append(float(torch.as_tensor(timestep).reshape(-1)[0]))
        output = self._network(sample, timestep)
        return SimpleNamespace(sample=output) if return_dict else (output,)


def compare(
    fixture: Fixture, implementation: Implementation, settings: Settings
) -> tuple[list[Comparison], bool | None]:
    """Times and trajectory of the loop, in the chosen dtype and in float64, then a seeded run.

    Nothing where the implementation has no pipeline around the subject's scheduler.
    """
    recorded, tape = fixture.tensors, fixture.manifest.tape
    if (fixture.manifest.subject.network or {}).get("classifier_scale"):
        return [], None  # A pipeline has its own classifier.
    y32 = torch.cat([recorded["inputs"][1:], recorded["final"][None]])
    comparisons: list[Comparison] = []
    for dtype in dict.fromkeys([settings.dtype, *[torch.float64] * (settings.dtype == torch.float32)]):
        seen = run(fixture, implementation, settings.device, dtype, draws=list(recorded["draws"]))
        if seen is None:
            return [], None
        network, sample = seen
        times = compare_exactly("loop.timesteps", torch.tensor(network.times, dtype=torch.float64), recorded["times"])
        if not times.verdict.green:
            return [*comparisons, dataclasses.replace(times, level="times")], None
        y64 = recorded["sample" + FLOAT64]
        if dtype == torch.float64:
            tolerance = fixture.manifest.float64_tolerance
            comparisons.append(compare_float64("sample.loop" + FLOAT64, sample, y64, tolerance))
        else:
            found = compare_steps("sample.loop", sample, y32, y64, recorded["sample.floor"], settings.policy)
            comparisons += [dataclasses.replace(times, level="times"), found]
    if settings.dtype != torch.float32:
        return comparisons, None
    check = StreamCheck(tape.seed, tape.draws)
    seeded = run(fixture, implementation, settings.device, torch.float32, generator=check.generator)
    matches = check.expect(len(tape.draws))
    own = run(fixture, implementation, settings.device, torch.float32, draws=drawn_here(tape.seed, tape.draws))
    assert seeded is not None and own is not None
    comparisons.append(compare_exactly("seeded.loop", seeded[1][-1], own[1][-1]))
    return comparisons, matches


def run(
    fixture: Fixture,
    implementation: Implementation,
    device: str,
    dtype: torch.dtype,
    draws: Sequence[torch.Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[StandIn, torch.Tensor] | None:
    """The stand-in after a run, and the trajectory x_1 … x_N (N, B, C, H, W): the states that `step` was given after
    the first, and the result.

    The result is what the pipeline returns for `output_type="latent"`, or what its last `step` returned where it
    answers with something else than the sampler's tensor. None without a pipeline.
    """
    subject = fixture.manifest.subject
    shape = fixture.manifest.tape.draws[0].shape
    network = StandIn(AnalyticNetwork.from_dict(subject.network or {}), shape).to(device, dtype)
    pipeline = implementation.pipeline_around(subject, network)
    if pipeline is None:
        return None
    call = {**implementation.loop_options(pipeline, subject), "batch_size": shape[0], "output_type": "latent"}
    scheduler, step = pipeline.scheduler, pipeline.scheduler.step
    signature = inspect.signature(step)
    states: list[torch.Tensor] = []
    last: list[torch.Tensor] = []

    def followed(*arguments: Any, **options: Any) -> Any:
        states.append(signature.bind(*arguments, **options).arguments["sample"].detach().to("cpu", copy=True))
        result = step(*arguments, **options)
        last[:] = [result.prev_sample if hasattr(result, "prev_sample") else result[0]]
        return result

    scheduler.step = followed
    try:
        if draws is None:
            result = pipeline(**call, generator=generator)
        else:  # The generator is never asked: draws are handed out from the tape, and spare ones to who asks for more,
            # which the seeded run's generator shows.
            spare = [torch.zeros(shape)] * (len(draws) + len(fixture.tensors["times"]))
            with replayed_draws([*draws, *spare]):
                result = pipeline(**call, generator=torch.Generator("cpu"))
    finally:
        del scheduler.step
    images = getattr(result, "images", None)
    final = images if isinstance(images, torch.Tensor) and images.shape == last[0].shape else last[0]
    return network, torch.stack([*states[1:], final.to("cpu")])
