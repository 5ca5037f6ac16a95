"""Recorder for CompVis/latent-diffusion: the PLMS and DDIM samplers, without the networks around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape

ORIGINAL = Original(
    system="latent-diffusion",
    repository="CompVis/latent-diffusion",
    commit="a506df5756472e2ebaf9078affdde2c4f1502cd4",
    licence="MIT",
    paper_title="High-Resolution Image Synthesis with Latent Diffusion Models",
    arxiv="2112.10752",
)
STUBS = ("einops", "omegaconf", "cv2")
CHANGES = (
    "einops stubbed",
    "register_buffer keeps tensors where they are (CUDA is hard-wired)",
    "a stand-in for the model holds its float32 buffers (ddpm.py:register_schedule)",
)
LIFTED = ("torch.full takes the sampler's scalars in float64; sqrt_one_minus_alphas stays rounded to float32",)


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `plms`, `ddim`, `util`."""
    names = ("ldm.models.diffusion.plms", "ldm.models.diffusion.ddim", "ldm.modules.diffusionmodules.util")
    with importing(source, names, STUBS) as (plms, ddim, util):
        yield SimpleNamespace(plms=plms, ddim=ddim, util=util)


def sampler(code: SimpleNamespace, kind: str, steps: int, betas: dict[str, Any], eta: float) -> Callable[..., Run]:
    """`run` of a case: the original's `sample` from x_T."""
    cls = {"plms": code.plms.PLMSSampler, "ddim": code.ddim.DDIMSampler}[kind]

    def run(network: Callable[..., torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> Run:
        table = code.util.make_beta_schedule(**betas)
        alphas = np.cumprod(1.0 - table, axis=0)
        buffer = lambda values: torch.tensor(values, dtype=torch.float32)
        model = SimpleNamespace(
            num_timesteps=len(table),
            device=torch.device("cpu"),
            betas=buffer(table),
            alphas_cumprod=buffer(alphas),
            alphas_cumprod_prev=buffer(np.append(1.0, alphas[:-1])),
            apply_model=lambda x, t, _: network(x, t),
        )
        noise = torch.randn(tuple(shape), dtype=dtype)
        default = torch.get_default_dtype()
        keep = lambda self, name, value: setattr(self, name, value)
        with patch.object(cls, "register_buffer", keep), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            torch.set_default_dtype(dtype)
            try:
                final, inter = cls(model).sample(
                    steps, shape[0], tuple(shape[1:]), x_T=noise, eta=eta, verbose=False, log_every_t=1
                )
            finally:
                torch.set_default_dtype(default)
        x0 = [value.clone() for value in inter["pred_x0"][1:]] if kind == "ddim" else None
        return Run(final, x0, {"betas": model.betas, "alphas_cumprod": model.alphas_cumprod})

    return run


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """The published Stable Diffusion schedule and others, strides that divide T and not.

    1000 steps (and 3: stride 333) raise IndexError in the original, whose grid is shifted by one, and cannot be
    recorded.
    """
    published = _betas("linear", 0.00085, 0.012)
    for steps in (1, 2, 4, 7, 13, 20, 50):
        yield _case(code, "plms", steps, published)
    yield _case(code, "plms", 11, _betas("sqrt_linear", 1e-4, 0.02))
    for steps in (1, 2, 7, 13, 50):
        for eta in (0.0, 0.4, 1.0):
            if eta == 0.4 or steps in (7, 13):
                yield _case(code, "ddim", steps, published, eta)
    yield _case(code, "ddim", 11, _betas("sqrt_linear", 1e-4, 0.02), 0.6)


def _betas(schedule: str, start: float, end: float) -> dict[str, Any]:
    return {"schedule": schedule, "n_timestep": 1000, "linear_start": start, "linear_end": end}


def _case(code: SimpleNamespace, kind: str, steps: int, betas: dict[str, Any], eta: float = 0.0) -> SchedulerCase:
    # CompVis calls linspace(sqrt)² "linear" and linspace "sqrt_linear".
    schedule = {"linear": "scaled_linear", "sqrt_linear": "linear"}[betas["schedule"]]
    config: dict[str, Any] = {
        "num_train_timesteps": betas["n_timestep"],
        "beta_schedule": schedule,
        "beta_start": betas["linear_start"],
        "beta_end": betas["linear_end"],
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "ddim_uniform",
        "coefficients": "compvis",
    }
    config |= {"solver": "plms"} if kind == "plms" else {"clip_sample": False}
    return SchedulerCase(
        name=f"{kind}-{schedule.replace('_', '-')}-{steps}" + (f"-eta-{eta:g}" if kind == "ddim" else ""),
        title=f"{kind.upper()} as CompVis runs it, {steps} steps, {schedule} betas"
        + (f", η = {eta:g}" if kind == "ddim" else ""),
        location="PLMS: arXiv:2202.09778, equation 12"
        if kind == "plms"
        else "DDIM: arXiv:2010.02502, equations 12 and 16",
        cls="PNDMScheduler" if kind == "plms" else "DDIMScheduler",
        config=config,
        set_timesteps={"num_inference_steps": steps},
        step={} if kind == "plms" else {"eta": eta},
        run=sampler(code, kind, steps, betas, eta),
        network=AnalyticNetwork(),
        functions=(
            f"ldm/models/diffusion/{kind}.py:{kind.upper()}Sampler",
            "ldm/modules/diffusionmodules/util.py:make_ddim_timesteps",
            "ldm/modules/diffusionmodules/util.py:make_ddim_sampling_parameters",
        ),
        shape=case_shape(steps),
        seed=steps,
        changes=CHANGES,
        lifted=LIFTED,
        tables=steps in (7, 11),
    )
