"""Recorder for black-forest-labs/flux: `src/flux/sampling.py`, its schedule and its Euler loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape, latent_pattern

ORIGINAL = Original(
    system="flux",
    repository="black-forest-labs/flux",
    commit="802fb4713906133fcbd0d8dc5351620ca4773036",
    licence="Apache-2.0",
    paper_title="Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    arxiv="2403.03206",
)
STUBS = ("flux.model", "flux.modules", "flux.modules.autoencoder", "flux.modules.conditioner",
         "flux.modules.image_embedders", "flux.util", "einops", "PIL", "PIL.Image")  # fmt: skip
CHANGES = (
    "the networks, einops and PIL stubbed",
    "latents are float32 where the scripts have bfloat16, and not packed into tokens",
)
BFLOAT16_TIME = ("the network's time is bfloat16, as it is with the latents of the scripts",)
LIFTED = ("what denoise is given is float32, and handed to it as float64",)


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's module `sampling`."""
    with importing(source / "src", ("flux.sampling",), STUBS) as (sampling,):
        yield SimpleNamespace(sampling=sampling)


@dataclass(frozen=True)
class Schedule:
    """What get_schedule is asked for.

    tokens: number of image tokens; None for schnell, whose levels are not shifted.
    strength: of image-to-image; None for text-to-image.
    half: with the network's time in bfloat16, as the scripts have it.
    """

    steps: int
    tokens: int | None
    strength: float | None = None
    half: bool = False
    options: dict[str, float] = field(default_factory=dict)

    def levels(self, code: SimpleNamespace) -> list[float]:
        return code.sampling.get_schedule(self.steps, self.tokens or 0, shift=self.tokens is not None, **self.options)


def run(
    code: SimpleNamespace,
    schedule: Schedule,
    network: Callable[..., torch.Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Run:
    """`denoise` from noise, or from a noisy image as demo_st.py begins image-to-image."""
    img = torch.randn(shape)
    levels = schedule.levels(code)
    if schedule.strength is not None:
        levels = levels[int((1 - schedule.strength) * schedule.steps) :]
        img = levels[0] * img + (1.0 - levels[0]) * latent_pattern(shape)
    nothing = torch.zeros(1)

    def model(img: torch.Tensor, timesteps: torch.Tensor, **_: Any) -> torch.Tensor:
        return network(img, timesteps)

    full = torch.full
    in_half = patch.object(torch, "full", lambda shape, value, **_: full(shape, value, dtype=torch.bfloat16))
    with in_half if schedule.half else nullcontext():
        final = code.sampling.denoise(
            model, img=img.to(dtype), img_ids=nothing, txt=nothing, txt_ids=nothing, vec=nothing, timesteps=levels
        )
    return Run(final, None, {"sigmas": torch.tensor(levels)})


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """1 to many steps; shifted by image size, by other ends, and not; from noise and from an image."""
    for steps, tokens in ((1, 256), (2, 4096), (3, 1024), (28, 4096), (25, 16)):
        yield _case(code, Schedule(steps, tokens))
    yield _case(code, Schedule(4, None))
    yield _case(code, Schedule(8, 1500, options={"base_shift": 0.3, "max_shift": 1.6}))
    yield _case(code, Schedule(9, 1024, strength=0.75))
    yield _case(code, Schedule(5, None, strength=0.35))
    yield _case(code, Schedule(6, 1024, half=True))


def _case(code: SimpleNamespace, schedule: Schedule) -> SchedulerCase:
    steps, tokens = schedule.steps, schedule.tokens
    name = "schnell" if tokens is None else f"dev-{tokens}"
    shift = "" if not schedule.options else "-" + "-".join(f"{value:g}" for value in schedule.options.values())
    start = "" if schedule.strength is None else f"-from-{schedule.strength:g}"
    request: dict[str, Any] = {"num_inference_steps": steps}
    if tokens is not None:
        request["image_seq_len"] = tokens
    if schedule.strength is not None:
        request["strength"] = schedule.strength
    return SchedulerCase(
        name=f"{name}{shift}-{steps}{start}{'-bfloat16' if schedule.half else ''}",
        title=f"Euler, {steps} steps, " + ("not shifted" if tokens is None else f"shifted for {tokens} image tokens"),
        location="equation 23",
        cls="FlowMatchEulerDiscreteScheduler",
        config={
            "flow_grid": "flux",
            "network_time": "sigma",
            "use_dynamic_shifting": tokens is not None,
            **({"time_dtype": "bfloat16"} if schedule.half else {}),
            **schedule.options,
        },
        set_timesteps=request,
        run=partial(run, code, schedule),
        network=AnalyticNetwork(prediction="flow", schedule="flow"),
        functions=tuple(f"src/flux/sampling.py:{name}" for name in ("get_schedule", "time_shift", "denoise")),
        shape=case_shape(steps),
        seed=steps,
        changes=(*CHANGES, *BFLOAT16_TIME) if schedule.half else CHANGES,
        lifted=LIFTED,
    )
