"""Original checkpoint files, written from synthetic weights, to be loaded as a user loads the official ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.errors import FixtureError
from conformance.fixture import Fixture
from conformance.weights import synthetic_state

State = Mapping[str, np.ndarray]


def original_state(fixture: Fixture, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The fixture's weights in the original's layout: synthetic, with the stored overrides in place.

    Raises:
        FixtureError: an override names a parameter that the layout does not have, or has another shape.
    """
    weights = fixture.manifest.weights
    assert weights is not None
    state = synthetic_state(shapes, weights.seed, weights.rule)
    for name in weights.overrides:
        stored = fixture.tensors[f"weights.{name}"].numpy()
        if name not in state or state[name].shape != stored.shape:
            raise FixtureError(f"{fixture.id}: override {name!r} {stored.shape} does not fit the original's layout")
        state[name] = stored
    return state


def write_checkpoint(form: str, state: State, seed: int, folder: Path) -> Path:
    """Write the state as a checkpoint file of the given form; entries that must not be used get other weights."""
    return FORMS[form](state, seed, folder)


def write_config(config: Mapping[str, Any], folder: Path) -> Path:
    """Write the original's configuration; JSON is YAML, so one file serves both kinds of reader."""
    path = folder / "config.yml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def _plain(state: State, seed: int, folder: Path) -> Path:
    path = folder / "checkpoint.ckpt"
    torch.save(_tensors(state), path)
    return path


def _states(state: State, seed: int, folder: Path) -> Path:
    """[model with `module.` names, optimiser, epoch, step, EMA]: the raw weights differ from the EMA, which counts."""
    path = folder / "checkpoint.pth"
    raw = {f"module.{name}": tensor for name, tensor in _tensors(_others(state, seed)).items()}
    torch.save([raw, {"state": {}, "param_groups": []}, 3, 1000, _tensors(state)], path)
    return path


def _npz(state: State, seed: int, folder: Path) -> Path:
    """TensorFlow variables by name, with their moving averages, which count."""
    path = folder / "checkpoint.npz"
    averages = {f"{name}/ExponentialMovingAverage": array for name, array in state.items()}
    np.savez(path, **_others(state, seed), **averages)  # type: ignore[arg-type]
    return path


def _shadow(state: State, seed: int, folder: Path) -> Path:
    """{optimizer, model, ema, step}: the moving average, which counts, is a list of the trained parameters in order.

    The model's own values differ, except those of what is not trained: Fourier frequencies, and a table `sigmas`.
    """
    path = folder / "checkpoint.pth"
    averages = _tensors(state)
    fixed = {name: tensor for name, tensor in averages.items() if re.fullmatch(r"all_modules\.\d+\.W", name)}
    model = {"sigmas": torch.linspace(2, 1, 10, dtype=torch.float64), **_tensors(_others(state, seed)), **fixed}
    ema = {
        "decay": 0.999,
        "num_updates": 1000,
        "shadow_params": [tensor for name, tensor in averages.items() if name not in fixed],
    }
    checkpoint = {
        "optimizer": {"state": {}, "param_groups": []},
        "model": {f"module.{name}": tensor for name, tensor in model.items()},
        "ema": ema,
        "step": 1000,
    }
    torch.save(checkpoint, path)
    return path


FORMS: dict[str, Callable[[State, int, Path], Path]] = {
    "plain": _plain,
    "states": _states,
    "npz": _npz,
    "shadow": _shadow,
}


def _tensors(state: State) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}


def _others(state: State, seed: int) -> dict[str, np.ndarray]:
    return {name: array + np.float32(0.5) for name, array in state.items()}
