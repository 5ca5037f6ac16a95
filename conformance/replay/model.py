"""Replaying a network: one forward pass with synthetic weights, its output, and a sketch of every aligned module.

The embedding of the times comes first, and the network behind it is given the original's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from conformance.compare import FLOAT64, TAP, Comparison, compare_float64, compare_steps
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation
from conformance.replay import Settings
from conformance.replay.checkpoints import original_state
from conformance.replay.embedding import compare_embedding, recorded_embedding, say_own_embedding
from conformance.sketch import sketch
from conformance.weights import synthetic_input


def compare(
    fixture: Fixture, implementation: Implementation, settings: Settings
) -> tuple[list[Comparison], bool | None]:
    """The embedding of the times, then taps in the order of execution and the output, in the chosen dtype; for
    float32, taps and output in float64 too.
    """
    recorded = fixture.tensors
    subject = fixture.manifest.subject
    model = implementation.model(subject, original_state(fixture, implementation.original_shapes(subject)))
    model = model.to(settings.device)
    modules = implementation.tap_modules(subject)
    embedding = implementation.embedding_module(model)
    comparisons: list[Comparison] = []
    for dtype in [settings.dtype] + [torch.float64] * (settings.dtype == torch.float32):
        with recorded_embedding(embedding, recorded["embedding"][None]) as own:
            output, taps = observe(model.to(dtype), fixture, settings.device, dtype, modules)
        if dtype == settings.dtype:
            # Where only sketches are stored, the output is not known to be bitwise.
            bitwise = dtype != torch.float64 and "sample" in recorded
            comparisons += compare_embedding(own, fixture, settings, bitwise=bitwise)
        comparisons += _compare(fixture, output, taps, settings, dtype)
    return comparisons if own else say_own_embedding(comparisons), None


def observe(
    model: torch.nn.Module, fixture: Fixture, device: str, dtype: torch.dtype, modules: dict[str, str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The network's output on the fixture's input, and sketches by the original's module names."""
    taps: dict[str, torch.Tensor] = {}

    def keep(original: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            taps[original] = sketch(output)

        return hook

    hooks = [model.get_submodule(ours).register_forward_hook(keep(original)) for original, ours in modules.items()]
    try:
        sample = network_input(fixture).to(device, dtype)
        call = {
            name: torch.tensor(value, device=device) for name, value in (fixture.manifest.subject.call or {}).items()
        }
        result = model(sample, fixture.tensors["times"].to(device), **call)
        return getattr(result, "sample", result), taps
    finally:
        for handle in hooks:
            handle.remove()


def network_input(fixture: Fixture) -> torch.Tensor:
    """The recorded input, or the synthetic one that the tape names."""
    if "inputs" in fixture.tensors:
        return fixture.tensors["inputs"]
    tape = fixture.manifest.tape
    return torch.from_numpy(synthetic_input(tape.draws[0].shape, tape.seed))


def _compare(
    fixture: Fixture, output: torch.Tensor, taps: dict[str, torch.Tensor], settings: Settings, dtype: torch.dtype
) -> list[Comparison]:
    recorded, tolerance = fixture.tensors, fixture.manifest.float64_tolerance

    def one(
        name: str, seen: torch.Tensor, y32: torch.Tensor | None, y64: torch.Tensor, floor: torch.Tensor
    ) -> Comparison:
        if dtype == torch.float64:
            found = compare_float64(name + FLOAT64, seen[None], y64[None], tolerance)
        else:
            found = compare_steps(
                name, seen[None], None if y32 is None else y32[None], y64[None], floor, settings.policy
            )
        return dataclasses.replace(found, step=None)  # a network has modules, not steps

    names = [output.name for output in fixture.manifest.outputs if output.level == "tap"]
    found = [
        one(name, taps[name.removeprefix(TAP)], None, recorded["taps.f64"][row], recorded["taps.floor"][row][None])
        for row, name in enumerate(names)
        if name.removeprefix(TAP) in taps
    ]
    if "sample" in recorded:
        found.append(one("sample", output, recorded["sample"], recorded["sample.f64"], recorded["sample.floor"]))
    return found
