"""A first look at a repair of a sampler: only the run that shows the divergence, not the whole replay."""

from __future__ import annotations

import math

import torch

from conformance.compare import FLOAT64, relative_errors
from conformance.explain.state import State
from conformance.replay import as_recorded
from conformance.replay.scheduler import SchedulerReplay

FORCED = ("step", "pred_original_sample")


def error_at_first_sight(state: State, output: str, step: int | None) -> float | None:
    """The relative error of `output` at `step` in the state's implementation; inf where it does not run.

    None where a single run does not show it: in other outputs than those of steps, and in pipelines.
    """
    name = output.removesuffix(FLOAT64)
    if step is None or name not in (*FORCED, "sample") or state.whole.manifest.kind != "scheduler":
        return None
    dtype = torch.float64 if output.endswith(FLOAT64) else state.settings.dtype
    threads = state.whole.manifest.environment.threads
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), as_recorded(threads):
            run = SchedulerReplay(state.fixture, state.implementation, state.settings.device)
            trajectory = run.forced(dtype) if name in FORCED else run.closed(dtype)
    except Exception:  # noqa: BLE001 - a change that breaks the implementation repairs nothing
        return math.inf
    seen = trajectory.pred_original_sample if name == "pred_original_sample" else trajectory.sample
    exact = state.fixture.tensors[name + FLOAT64]
    if seen is None or seen.shape != exact.shape:
        return math.inf
    norm, _ = relative_errors(seen[step : step + 1], exact[step : step + 1])
    return float(norm[0])
