"""Explaining a pipeline: η that is not handed on, a network's time, and guidance, on a guided pipeline of a few
lines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from planted import planted
from toy_fixture import toy_manifest

import diffusers_ref.pipelines.unconditional
from conformance.compare import FLOAT64, Verdict
from conformance.explain import Explanation, explain
from conformance.explain.causes import CAUSES
from conformance.fixture import Draw, Fixture, Output, Subject, Tape, Weights
from conformance.implementations.base import Implementation
from conformance.implementations.reference import ReferenceImplementation
from conformance.library import open_library
from conformance.replay import Settings
from conformance.tape import drawn_here, replayed_draws

SHAPE = (2, 3, 4, 4)
TIMES = (900, 600, 300)
SCALE = 3.0


class ToyScheduler:
    """x - 0.3 · output, on a fixed list of timesteps."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        self.timesteps = torch.tensor(TIMES)

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> Any:
        return SimpleNamespace(prev_sample=sample - 0.3 * model_output)


class ToyNetwork(torch.nn.Module):
    """A wave of the sample, moved by the condition and the time."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return torch.sin(x + condition.to(x).reshape(-1, 1, 1, 1) + float(t) / 1000)


class ToyPipeline:
    """Classifier-free guidance with a doubled batch, unconditional half first.

    conditional_first: the halves of the output are taken for each other. from_one: the scale counts from 1.
    """

    def __init__(self, conditional_first: bool = False, from_one: bool = False) -> None:
        self.scheduler, self.unet = ToyScheduler(), ToyNetwork()
        self._conditional_first, self._from_one = conditional_first, from_one
        self._dtype = torch.float32

    def to(self, target: Any) -> ToyPipeline:
        self._dtype = target if isinstance(target, torch.dtype) else self._dtype
        return self

    def __call__(
        self, batch_size: int, num_inference_steps: int, guidance_scale: float, generator: Any, output_type: str
    ) -> Any:
        x = torch.randn((batch_size, *SHAPE[1:]), generator=generator, dtype=self._dtype)
        condition = torch.tensor([0.0] * batch_size + [1.0] * batch_size)
        self.scheduler.set_timesteps(num_inference_steps)
        scale = guidance_scale - 1 if self._from_one else guidance_scale
        for t in self.scheduler.timesteps:
            halves = self.unet(torch.cat([x, x]), t, condition).chunk(2)
            free, bound = reversed(halves) if self._conditional_first else halves
            x = self.scheduler.step(free + scale * (bound - free), t, x).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pil":
            arrays = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            images = [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
        return SimpleNamespace(images=images)


class Toy(Implementation):
    """The pipeline above as an implementation."""

    def __init__(self, **faults: bool) -> None:
        self._faults = faults

    def original_shapes(self, subject: Subject) -> dict[str, tuple[int, ...]]:
        return {}

    def pipeline(self, subject: Subject, checkpoint: Path, original_config: Path) -> ToyPipeline:
        return ToyPipeline(**self._faults)


def recorded() -> Fixture:
    """A fixture of the pipeline without faults."""
    tape = Tape(3, "torch-cpu", [Draw("initial", list(SHAPE), "float32")])
    draws = drawn_here(tape.seed, tape.draws)
    call = {"num_inference_steps": len(TIMES), "guidance_scale": SCALE}
    tensors = {
        "draws": torch.stack(draws),
        "times": torch.tensor(TIMES, dtype=torch.float64),
        "embedding": torch.zeros(len(TIMES), 4),
        "integers": torch.full(SHAPE, -1, dtype=torch.int16),
    }
    for dtype, suffix in ((torch.float32, ""), (torch.float64, FLOAT64)):
        pipeline, steps = ToyPipeline().to(dtype), []
        step = pipeline.scheduler.step

        def kept(*arguments: Any, step: Any = step, steps: list[torch.Tensor] = steps) -> Any:
            result = step(*arguments)
            steps.append(result.prev_sample)
            return result

        pipeline.scheduler.step = kept
        with replayed_draws(draws):
            images = pipeline(SHAPE[0], generator=None, output_type="pt", **call).images
        tensors |= {f"sample{suffix}": torch.stack(steps), f"images{suffix}": images}
    floors = {"sample.floor": torch.full((len(TIMES), 2), 1e-6), "images.floor": torch.full((1, 2), 1e-6)}
    manifest = dataclasses.replace(
        toy_manifest(),
        kind="pipeline",
        subject=Subject("ToyPipeline", {}, original="toy", checkpoint="plain", call=call),
        weights=Weights("philox-uniform/torch", 1, []),
        tape=tape,
        outputs=[Output("sample", "step", 1e-6, 1e-6), Output("images", "final", 1e-6, 1e-6)],
    )
    return Fixture(manifest, Path("toy/one-step.json"), tensors | {k: v.double() for k, v in floors.items()})


def test_the_guided_pipeline_is_its_own_original() -> None:
    found = explain(recorded(), Toy(), Settings())

    assert found.result.verdict is Verdict.BITWISE
    assert found.hints == []


@pytest.mark.parametrize(
    ("fault", "cause", "statement"),
    [
        ("conditional_first", "guidance order", "the conditional and the unconditional half"),
        ("from_one", "guidance scale", "the guidance scale counts from 1, the original's from 0"),
    ],
)
def test_guidance(fault: str, cause: str, statement: str) -> None:
    found = explain(recorded(), Toy(**{fault: True}), Settings())

    assert found.causes == [cause]
    assert statement in found.hints[0].statement
    assert (found.complete, found.rivals) == (True, [])


def explained(old: str, new: str, *causes: str) -> Explanation:
    """The DDIM pipeline with a fault in its loop, explained by some of the causes."""
    module = diffusers_ref.pipelines.unconditional
    faulty = planted(module, old, new).UnconditionalImagePipeline
    chosen = [cause for cause in CAUSES if cause.name in causes]
    with patch.object(module.UnconditionalImagePipeline, "_sample", faulty._sample):
        return explain(
            open_library().get("ddim/pipeline-ddim-7-eta-0.5"), ReferenceImplementation(), Settings(), chosen
        )


def test_eta_that_is_not_handed_on() -> None:
    found = explained(
        '{**step_options, "generator": generator}', '{"generator": generator}', "order of operations", "eta"
    )

    assert found.causes == ["eta"]
    assert found.hints[0].statement == "the steps are not given η = 0.5"
    assert found.complete


def test_a_network_that_is_given_another_time() -> None:
    old = "scheduler.network_timestep(t), class"
    found = explained(old, old.replace(", class", " + 1, class"), "timestep off by one", "eta")

    assert found.causes == ["timestep off by one"]
    assert found.complete
