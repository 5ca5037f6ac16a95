"""Recorder for openai/consistency_models: `cm/karras_diffusion.py`, its samplers "onestep" and "multistep"."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Probe, Run, SchedulerCase, case_shape

ORIGINAL = Original(
    system="consistency-models",
    repository="openai/consistency_models",
    commit="e32b69ee436d518377db86fb2127a3972d0d8716",
    licence="MIT",
    paper_title="Consistency Models",
    arxiv="2303.01469",
)
STUBS = ("piq", "torchvision", "torchvision.transforms", "blobfile", "mpi4py")
CHANGES = ("piq, torchvision, blobfile and mpi4py stubbed",)
LIFTED = (
    "x_T is float32, and handed to the sampler as float64, and with it the levels that multiply ones like x_T",
    "KarrasDenoiser.denoise: the network's time is that of levels rounded to float32, in float32",
)


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's module `karras_diffusion`."""
    with importing(source, ("cm.karras_diffusion",), STUBS) as (karras_diffusion,):
        yield SimpleNamespace(karras_diffusion=karras_diffusion)


@dataclass(frozen=True)
class Sampling:
    """What karras_sample is asked for: `steps` levels of training, of which those in `ts` are visited (None: one)."""

    steps: int
    ts: tuple[int, ...] | None = None
    clip_denoised: bool = True
    levels: dict[str, float] = field(default_factory=dict)

    @property
    def loop(self) -> str:
        return "sample_onestep" if self.ts is None else "stochastic_iterative_sampler"


def run(code: SimpleNamespace, asked: Sampling, network: Probe, shape: Sequence[int], dtype: torch.dtype) -> Run:
    """`karras_sample` around a KarrasDenoiser of a distilled model."""
    levels = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, **asked.levels}
    sigma_data = levels.pop("sigma_data", 0.5)
    diffusion = code.karras_diffusion.KarrasDenoiser(sigma_data, distillation=True, loss_norm="l2", **levels)
    denoise = diffusion.denoise

    def watched(model: Callable[..., torch.Tensor], x: torch.Tensor, sigmas: torch.Tensor) -> Any:
        network.at(x)
        time = 1000 * 0.25 * torch.log(sigmas.float() + 1e-44)
        return denoise(lambda scaled, t: model(scaled, time if dtype == torch.float64 else t), x, sigmas)

    diffusion.denoise = watched
    name, loop = asked.loop, getattr(code.karras_diffusion, asked.loop)
    initial: list[torch.Tensor] = []
    x0: list[torch.Tensor] = []

    def lifted(denoiser: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        def observed(*arguments: Any) -> torch.Tensor:
            x0.append(denoiser(*arguments))
            return x0[-1]

        initial.append(x.clone())
        return loop(observed, x.to(dtype), *arguments, **options)

    with patch.object(code.karras_diffusion, name, lifted):
        final = code.karras_diffusion.karras_sample(
            diffusion,
            network,
            shape,
            asked.steps,
            clip_denoised=asked.clip_denoised,
            model_kwargs={},
            device="cpu",
            sampler="onestep" if asked.ts is None else "multistep",
            ts=asked.ts,
            **levels,
        )
    return Run(final, x0, initial=initial[0])


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """One step and several; the lists of the original's scripts and others; clipped and not."""
    yield _case(code, "", Sampling(40))
    yield _case(code, "", Sampling(151, clip_denoised=False))
    yield _case(code, "", Sampling(40, (0, 22, 39)))
    yield _case(code, "", Sampling(151, (0, 62, 150), clip_denoised=False))
    yield _case(code, "", Sampling(40, (2, 5, 5, 30, 36), clip_denoised=False))
    yield _case(code, "", Sampling(2, (0, 1)))
    yield _case(code, "", Sampling(18, tuple(range(18)), levels={"rho": 5.0, "sigma_max": 30.0}))
    yield _case(
        code, "-data-1", Sampling(60, (0, 9, 21, 40, 59), levels={"sigma_data": 1.0, "sigma_min": 0.01}),
    )  # fmt: skip


def _case(code: SimpleNamespace, suffix: str, asked: Sampling) -> SchedulerCase:
    sampler = "onestep" if asked.ts is None else "multistep"
    visited = "" if asked.ts is None else "-ts-" + "-".join(map(str, asked.ts if len(asked.ts) < 10 else ("all",)))
    config: dict[str, Any] = {
        "num_train_timesteps": asked.steps,
        "clip_denoised": asked.clip_denoised,
        "clip_result": True,
        "sampler": sampler,
        **asked.levels,
    }
    request: dict[str, Any] = {"num_inference_steps": 1} if asked.ts is None else {"ts": list(asked.ts)}
    if asked.ts is not None and len(asked.ts) > 2 and asked.ts[-1] == asked.steps - 1:  # The same in published terms.
        request = {"timesteps": list(asked.ts[-2::-1])}
    clipped = "" if asked.clip_denoised else "-unclipped"
    return SchedulerCase(
        name=f"{sampler}-{asked.steps}{visited}{suffix}{clipped}",
        title=f"{sampler}, {asked.steps} levels of training" + ("" if asked.ts is None else f", visited: {asked.ts}"),
        location="algorithm 1",
        cls="CMStochasticIterativeScheduler",
        config=config,
        set_timesteps=request,
        run=partial(run, code, asked),  # type: ignore[arg-type]
        network=AnalyticNetwork(
            prediction="edm", schedule="edm", time_scale=1000.0, sigma_data=asked.levels.get("sigma_data", 0.5)
        ),
        functions=tuple(
            f"cm/karras_diffusion.py:{name}" for name in ("karras_sample", asked.loop, "KarrasDenoiser.denoise")
        ),
        shape=case_shape(len(asked.ts or ())),
        seed=asked.steps,
        changes=CHANGES,
        lifted=LIFTED,
    )
