"""A fixture as small as the format allows, for the tests of everything that reads or writes one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from conformance.fixture import (
    Draw,
    Environment,
    Manifest,
    Output,
    Paper,
    Recorder,
    Reference,
    Subject,
    Tape,
    TensorFile,
    write_fixture,
)

TOY_ID = "toy/one-step"
FEW_CASES = ("ddim/ddim-uniform-2-eta-0", "ddim/ddim-uniform-2-eta-1", "pndm/s-pndm-2")
"""Small fixtures of the package; `fixtures` of conftest.py is a folder with these."""


def toy_manifest(**changes: Any) -> Manifest:
    """The manifest of one recorded step of a sampler that does not exist."""
    manifest = Manifest(
        format=1,
        id=TOY_ID,
        kind="scheduler",
        tier="default",
        title="one step",
        paper=Paper("A Paper", "2010.02502", "equation 12"),
        reference=Reference("someone/code", "e8df66cf", False, "MIT", ["sampler.py:step"], [], [], []),
        recorder=Recorder("toy", "0.1.0"),
        environment=Environment("3.11.7", {"torch": "2.13.0"}, "a processor", 1, {"default_dtype": "torch.float32"}),
        subject=Subject("ToyScheduler", {"num_train_timesteps": 10}, step={"eta": 0.0}),
        weights=None,
        tape=Tape(3, "torch-cpu", [Draw("initial", [2, 3], "float32")]),
        outputs=[Output("timesteps", "table", 0.0, 0.0), Output("step", "step", 1e-7, 2e-7)],
        repeatable=True,
        float64_tolerance=1e-12,
        information={"steps": 1.0},
        tensors=TensorFile("", "", {}),
    )
    return dataclasses.replace(manifest, **changes)


def toy_tensors() -> dict[str, torch.Tensor]:
    return {"inputs": torch.arange(6.0).reshape(2, 3), "times": torch.tensor([999.0], dtype=torch.float64)}


def write_toy(folder: Path, **changes: Any) -> Path:
    """Write the toy fixture below `folder`; returns the manifest's path."""
    return write_fixture(folder, toy_manifest(**changes), toy_tensors())


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest on disk in place."""
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")
