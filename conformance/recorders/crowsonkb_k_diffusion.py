"""Recorder for crowsonkb/k-diffusion: the samplers of `sampling.py` around the denoisers of `external.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from conformance.recorders.checkout import Original, importing
from conformance.recorders.crowsonkb_denoisers import CHANGES, LIFTED, SHAPE, Wrapped
from conformance.recorders.crowsonkb_k_diffusion_dpm import cases as dpm_cases
from conformance.recorders.scheduler_case import SchedulerCase

ORIGINAL = Original(
    system="k-diffusion",
    repository="crowsonkb/k-diffusion",
    commit="4601bf085320592473f681a62808ed873d17fad5",
    licence="MIT",
    paper_title="Elucidating the Design Space of Diffusion-Based Generative Models",
    arxiv="2206.00364",
)
STUBS = (
    *(f"k_diffusion.{name}" for name in ("augmentation", "config", "evaluation", "gns", "layers", "models")),
    "torchdiffeq", "torchvision", "torchvision.transforms",
)  # fmt: skip
SAMPLERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpm_2": "KDPM2DiscreteScheduler",
    "dpm_2_ancestral": "KDPM2AncestralDiscreteScheduler",
}
LOCATIONS = {
    "euler": "algorithm 2, with Euler steps",
    "heun": "algorithm 2",
    "lms": "equation 3; linear multistep method",
    "dpm_2": "algorithm 2, with the steps of arXiv:2206.00927, algorithm 1",
}


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `sampling`, `external`."""
    with importing(source, ("k_diffusion.sampling", "k_diffusion.external"), STUBS) as (sampling, external):
        yield SimpleNamespace(sampling=sampling, external=external)


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Pairwise over sampler, grid, prediction, quantization, churn or η, order and number of steps."""
    for sampler, wrapped, options in CHOSEN:
        yield _case(code, sampler, wrapped, options)
    yield from dpm_cases(code)


SD = ("linear", 0.00085, 0.012, 1000)
SHORT = ("sqrt_linear", 1e-3, 0.2, 100)
V = "v_prediction"
CHOSEN: tuple[tuple[str, Wrapped, dict[str, float]], ...] = (
    ("euler", Wrapped(8), {}),
    ("euler", Wrapped(1, prediction=V), {}),
    ("euler", Wrapped(2, "karras", quantize=True), {"s_churn": 1.0}),
    ("euler", Wrapped(9, "exponential", V), {"s_churn": 4.0, "s_tmin": 0.3, "s_tmax": 30.0, "s_noise": 1.007}),
    ("euler", Wrapped(10, "vp", quantize=True, betas=SD), {}),  # three levels at time 999
    ("euler", Wrapped(6, "polyexponential", options={"rho": 0.7}), {"s_churn": 2.0, "s_noise": 0.9}),
    ("euler", Wrapped(5, "discrete", V, quantize=True, betas=SHORT), {"s_churn": 0.5, "s_tmax": 5.0}),
    ("euler", Wrapped(65, "karras", betas=SD), {"s_churn": 20.0, "s_tmin": 0.05}),
    ("heun", Wrapped(7), {"s_churn": 3.0, "s_tmin": 0.1}),
    ("heun", Wrapped(1), {}),
    ("heun", Wrapped(2, "exponential", V, quantize=True), {}),
    ("heun", Wrapped(6, "karras", V, betas=SD), {}),
    ("heun", Wrapped(5, "vp", V, options={"beta_d": 15.0, "beta_min": 0.2, "eps_s": 0.01}), {"s_churn": 1.5}),
    ("heun", Wrapped(4, "polyexponential", quantize=True, options={"rho": 1.5}), {"s_churn": 8.0, "s_noise": 1.01}),
    ("heun", Wrapped(3, "exponential", options={"sigma_min": 0.05, "sigma_max": 20.0}, betas=SHORT), {"s_churn": 0.3}),
    ("heun", Wrapped(34, "karras", options={"rho": 5.0}), {"s_churn": 10.0, "s_tmax": 50.0}),
    ("lms", Wrapped(8), {"order": 4}),
    ("lms", Wrapped(7, "karras", V), {"order": 3}),
    ("lms", Wrapped(6, "exponential", quantize=True), {"order": 2}),
    ("lms", Wrapped(5, "polyexponential", V, quantize=True, options={"rho": 0.8}), {"order": 4}),
    ("lms", Wrapped(10, "vp"), {"order": 3}),
    ("lms", Wrapped(1, "karras"), {"order": 1}),
    ("lms", Wrapped(3, "discrete", V, betas=SD), {"order": 4}),
    ("lms", Wrapped(65, "karras", options={"sigma_min": 0.1, "sigma_max": 10.0}), {"order": 4}),
    ("dpm_2", Wrapped(7, "karras"), {"s_churn": 3.0, "s_tmax": 40.0, "s_noise": 1.003}),
    ("dpm_2", Wrapped(1, "exponential"), {"s_churn": 1.0}),
    ("dpm_2", Wrapped(2, prediction=V), {}),
    ("dpm_2", Wrapped(6, "discrete", quantize=True, betas=SD), {}),
    ("dpm_2", Wrapped(5, "vp", V, quantize=True), {"s_churn": 2.0, "s_tmin": 0.2}),
    ("dpm_2", Wrapped(4, "polyexponential", V, options={"rho": 1.2}, betas=SHORT), {"s_churn": 0.4}),
    ("dpm_2", Wrapped(38, "exponential", V, betas=SD), {}),
    ("euler_ancestral", Wrapped(8), {"eta": 1.0}),
    ("euler_ancestral", Wrapped(1, "vp"), {"eta": 1.0}),
    ("euler_ancestral", Wrapped(2, "karras", V, quantize=True), {"eta": 0.5}),
    ("euler_ancestral", Wrapped(9, "exponential", quantize=True), {"eta": 0.0}),
    ("euler_ancestral", Wrapped(6, "polyexponential", V, options={"rho": 0.9}), {"eta": 1.0, "s_noise": 1.005}),
    ("euler_ancestral", Wrapped(9, "karras", options={"rho": 3.0}, betas=SD), {"eta": 1.3, "s_noise": 0.8}),
    ("euler_ancestral", Wrapped(100, "discrete", V, betas=SHORT), {"eta": 1.0}),
    ("dpm_2_ancestral", Wrapped(7), {"eta": 1.0}),
    ("dpm_2_ancestral", Wrapped(1, "karras", V), {"eta": 1.0}),
    ("dpm_2_ancestral", Wrapped(2, "exponential", quantize=True), {"eta": 0.5}),
    ("dpm_2_ancestral", Wrapped(6, "karras", V, quantize=True, betas=SD), {"eta": 1.0, "s_noise": 1.01}),
    ("dpm_2_ancestral", Wrapped(5, "vp"), {"eta": 0.0}),
    ("dpm_2_ancestral", Wrapped(4, "polyexponential", options={"rho": 1.1}), {"eta": 1.6, "s_noise": 0.9}),
    ("dpm_2_ancestral", Wrapped(33, "karras", V), {"eta": 0.8}),
)
"""Sampler, what it runs around, its own options. The numbers of steps are such that torch makes the same levels with
vector instructions and without: at others its float32 linspace, exp and pow differ in the last bit."""


def _case(code: SimpleNamespace, sampler: str, wrapped: Wrapped, options: dict[str, float]) -> SchedulerCase:
    function = getattr(code.sampling, f"sample_{sampler}")
    chosen = "".join(f"-{name.replace('_', '')}{value:g}" for name, value in options.items())
    grid = "get_sigmas" if wrapped.schedule == "discrete" else f"get_sigmas_{wrapped.schedule}"
    said = ", ".join(f"{name}={value:g}" for name, value in options.items())
    step = {"order": options["order"]} if sampler == "lms" else {}
    return SchedulerCase(
        name=f"{sampler.replace('_', '-')}-{wrapped.name}{chosen}",
        title=f"sample_{sampler} on {grid}({wrapped.steps}){', ' if said else ''}{said}",
        location=LOCATIONS.get(sampler, "section 5; ancestral sampling in its coordinates"),
        cls=SAMPLERS[sampler],
        config=wrapped.config() | ({} if step else options),
        set_timesteps={"num_inference_steps": wrapped.steps},
        run=wrapped.sampler(code, partial(function, disable=True, **options)),
        network=wrapped.network(),
        functions=(
            f"k_diffusion/sampling.py:sample_{sampler}",
            *([] if wrapped.schedule == "discrete" else [f"k_diffusion/sampling.py:{grid}"]),
            f"k_diffusion/external.py:CompVis{'V' if wrapped.prediction == V else ''}Denoiser",
        ),
        step=step,
        shape=SHAPE if wrapped.steps <= 20 else (1, 1, 1, 3),
        seed=wrapped.steps,
        changes=CHANGES,
        lifted=LIFTED,
    )
