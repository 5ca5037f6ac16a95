"""The samplers of crowsonkb/k-diffusion that integrate exponentially: DPM-Solver and DPM-Solver++ of `sampling.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.recorders.crowsonkb_denoisers import CHANGES, LIFTED, SHAPE, Wrapped
from conformance.recorders.scheduler_case import Run, SchedulerCase
from conformance.tape import TORCH_CPU, MadeDraw

SAMPLERS = {
    "dpmpp_2s_ancestral": "DPMPP2SAncestralScheduler",
    "dpmpp_sde": "DPMSolverSDEScheduler",
    "dpmpp_2m": "DPMPP2MScheduler",
    "dpmpp_2m_sde": "DPMPP2MSDEScheduler",
    "dpmpp_3m_sde": "DPMPP3MSDEScheduler",
}
LOCATIONS = {
    "dpmpp_2s_ancestral": "arXiv:2211.01095, algorithm 1, with ancestral noise",
    "dpmpp_sde": "arXiv:2211.01095, algorithm 1, with noise in both stages",
    "dpmpp_2m": "arXiv:2211.01095, algorithm 2",
    "dpmpp_2m_sde": "arXiv:2211.01095, section 5",
    "dpmpp_3m_sde": "arXiv:2211.01095, section 5, with a third-order extrapolation",
}
BROWNIAN = "brownian-tree"
"""The stream of cases whose draws are increments of the original's own Brownian trees."""

SD = ("linear", 0.00085, 0.012, 1000)
SHORT = ("sqrt_linear", 1e-3, 0.2, 100)
V = "v_prediction"
Options = dict[str, Any]
Ends = tuple[float, float] | None
CHOSEN: tuple[tuple[str, Wrapped, Options], ...] = (
    ("dpmpp_2s_ancestral", Wrapped(9, "karras", betas=SD), {"eta": 1.0}),
    ("dpmpp_2s_ancestral", Wrapped(1), {"eta": 1.0}),
    ("dpmpp_2s_ancestral", Wrapped(2, "exponential", V), {"eta": 0.5, "s_noise": 1.003}),
    ("dpmpp_2s_ancestral", Wrapped(6, "discrete", V, quantize=True), {"eta": 0.0}),
    ("dpmpp_2s_ancestral", Wrapped(11, "polyexponential", options={"rho": 0.8}), {"eta": 0.7, "s_noise": 0.9}),
    (
        "dpmpp_2s_ancestral",
        Wrapped(3, "vp", options={"beta_d": 6.0, "beta_min": 0.1, "eps_s": 0.05}),
        {"eta": 1.0, "s_noise": 1.01},
    ),
    ("dpmpp_sde", Wrapped(10), {"eta": 1.0, "r": 0.5}),
    ("dpmpp_sde", Wrapped(1, "exponential", V), {"eta": 1.0, "r": 0.5}),
    ("dpmpp_sde", Wrapped(2, "vp"), {"eta": 0.5, "s_noise": 1.003, "r": 0.3}),
    ("dpmpp_sde", Wrapped(6, "karras", V, betas=SD), {"eta": 0.0, "r": 0.7}),
    ("dpmpp_sde", Wrapped(11, "polyexponential", V, quantize=True), {"eta": 0.8, "r": 1.0}),
    ("dpmpp_sde", Wrapped(3, "karras", options={"rho": 5.0}), {"eta": 1.2, "s_noise": 0.9, "r": 0.5}),
    ("dpmpp_2m", Wrapped(9, "karras"), {}),
    ("dpmpp_2m", Wrapped(1, prediction=V), {}),
    ("dpmpp_2m", Wrapped(2, "vp"), {}),
    ("dpmpp_2m", Wrapped(11, "discrete", V, betas=SD), {}),
    ("dpmpp_2m", Wrapped(10, "discrete", betas=SD), {}),
    ("dpmpp_2m", Wrapped(6, "polyexponential", quantize=True, options={"rho": 1.3}), {}),
    ("dpmpp_2m", Wrapped(10, "exponential", options={"sigma_min": 0.05, "sigma_max": 20.0}), {}),
    ("dpmpp_2m_sde", Wrapped(9, "karras", betas=SD), {"eta": 1.0, "solver_type": "midpoint"}),
    ("dpmpp_2m_sde", Wrapped(9, "exponential", V), {"eta": 1.0, "solver_type": "heun"}),
    ("dpmpp_2m_sde", Wrapped(2), {"eta": 0.5, "s_noise": 1.003, "solver_type": "heun"}),
    ("dpmpp_2m_sde", Wrapped(3, "vp", V, quantize=True), {"eta": 0.5, "s_noise": 0.9, "solver_type": "midpoint"}),
    ("dpmpp_2m_sde", Wrapped(6, "polyexponential"), {"eta": 0.0, "solver_type": "heun"}),
    ("dpmpp_2m_sde", Wrapped(19, "discrete", V, betas=SHORT), {"eta": 0.0, "solver_type": "midpoint"}),
    ("dpmpp_3m_sde", Wrapped(28, betas=SD), {"eta": 1.0}),
    ("dpmpp_3m_sde", Wrapped(11, "karras", V), {"eta": 0.5, "s_noise": 1.003}),
    ("dpmpp_3m_sde", Wrapped(3), {"eta": 1.0, "s_noise": 0.9}),
    ("dpmpp_3m_sde", Wrapped(6, "vp", V, quantize=True), {"eta": 0.0}),
    ("dpmpp_3m_sde", Wrapped(17, "polyexponential", options={"rho": 0.7}, betas=SHORT), {"eta": 0.8}),
)
"""Sampler, what it runs around, its own options. With one level, the samplers `2m_sde` and `3m_sde` fail."""

PATHS: tuple[tuple[str, Wrapped, Options, int | tuple[int, ...]], ...] = (
    ("dpmpp_sde", Wrapped(6, "karras", betas=SD), {"eta": 1.0}, 20),
    ("dpmpp_2m_sde", Wrapped(5, "exponential"), {"eta": 1.0}, (3, 2**40 + 1)),
    ("dpmpp_3m_sde", Wrapped(7, "karras", V), {"eta": 1.0}, 7),
)
"""The same with Brownian trees, of one seed or of one for each sample."""

FAST: tuple[tuple[int, Wrapped, Options, Ends], ...] = (
    (10, Wrapped(0), {"eta": 0.0}, None),
    (1, Wrapped(0, prediction=V), {"eta": 0.0}, (0.1, 10.0)),
    (3, Wrapped(0, quantize=True), {"eta": 0.0}, None),
    (11, Wrapped(0, prediction=V, betas=SD), {"eta": 0.7, "s_noise": 1.003}, None),
    (6, Wrapped(0, betas=SHORT), {"eta": 1.0}, (0.05, 20.0)),
)
"""Evaluations, what `sample_dpm_fast` runs around, its options, and the ends of the grid if not the table's."""


ADAPTIVE: tuple[tuple[Wrapped, Options, Ends], ...] = (
    (Wrapped(0), {"order": 3, "rtol": 0.1, "eta": 0.0}, (0.05, 20.0)),
    (Wrapped(0, prediction=V, betas=SD), {"order": 2, "rtol": 0.2, "eta": 0.0, "pcoeff": 0.2, "dcoeff": 0.1}, None),
    (Wrapped(0), {"order": 3, "rtol": 0.2, "atol": 0.02, "eta": 0.5, "accept_safety": 0.95}, (0.1, 10.0)),
)
"""What `sample_dpm_adaptive` runs around, its options, and the ends if not the table's."""


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Pairwise over sampler, grid, prediction, quantization, η, noise, solver type, r and number of steps."""
    for sampler, wrapped, options in CHOSEN:
        yield _case(code, sampler, wrapped, options)
    for sampler, wrapped, options, seed in PATHS:
        yield _case(code, sampler, wrapped, options, seed)
    for count, wrapped, options, ends in FAST:
        yield _fast_case(code, count, wrapped, options, ends)
    for wrapped, options, ends in ADAPTIVE:
        yield _adaptive_case(code, wrapped, options, ends)


def _case(
    code: SimpleNamespace,
    sampler: str,
    wrapped: Wrapped,
    options: Options,
    seed: int | tuple[int, ...] | None = None,
) -> SchedulerCase:
    grid = "get_sigmas" if wrapped.schedule == "discrete" else f"get_sigmas_{wrapped.schedule}"
    path = "" if seed is None else "-path" if isinstance(seed, int) else "-paths"
    functions = [
        f"k_diffusion/sampling.py:sample_{sampler}",
        *([] if wrapped.schedule == "discrete" else [f"k_diffusion/sampling.py:{grid}"]),
        *([] if seed is None else ["k_diffusion/sampling.py:BrownianTreeNoiseSampler"]),
        f"k_diffusion/external.py:CompVis{'V' if wrapped.prediction == V else ''}Denoiser",
    ]
    said = ", ".join(f"{name}={value}" for name, value in options.items())
    return SchedulerCase(
        name=f"{sampler.replace('_', '-')}-{wrapped.name}{_named(options)}{path}",
        title=f"sample_{sampler} on {grid}({wrapped.steps}){', ' if said else ''}{said}"
        + ("" if seed is None else f", Brownian trees seeded with {seed}"),
        location=LOCATIONS[sampler],
        cls=SAMPLERS[sampler],
        config=wrapped.config() | options,
        set_timesteps={"num_inference_steps": wrapped.steps},
        run=wrapped.sampler(code, partial(_sample, code, sampler, options, seed)),
        network=wrapped.network(),
        functions=functions,
        shape=SHAPE,
        seed=wrapped.steps,
        changes=CHANGES,
        lifted=LIFTED,
        stream=TORCH_CPU if seed is None else BROWNIAN,
    )


def _sample(
    code: SimpleNamespace,
    sampler: str,
    options: Options,
    seed: int | tuple[int, ...] | None,
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """The original's sampler; its noise is drawn by randn_like, or is increments of its own trees."""
    if sampler == "dpmpp_2m":
        return code.sampling.sample_dpmpp_2m(model, x, sigmas, disable=True)
    noise = code.sampling.default_noise_sampler(x) if seed is None else _paths(code, x, sigmas, seed)
    return getattr(code.sampling, f"sample_{sampler}")(model, x, sigmas, disable=True, noise_sampler=noise, **options)


def _paths(code: SimpleNamespace, x: torch.Tensor, sigmas: torch.Tensor, seed: int | tuple[int, ...]) -> Any:
    """The original's Brownian trees, whose increments go on the tape."""
    trees: list[Any] = []

    def increment(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        if not trees:  # Here, as torchsde draws when it makes a tree.
            ends = sigmas[sigmas > 0].min(), sigmas.max()
            seeds = seed if isinstance(seed, int) else list(seed)
            trees.append(code.sampling.BrownianTreeNoiseSampler(x, *ends, seed=seeds))
        return trees[0](sigma, sigma_next)

    def noise_sampler(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        draw: Any = MadeDraw(partial(increment, sigma, sigma_next))
        return torch.randn(x.shape, dtype=x.dtype, generator=draw)

    return noise_sampler


def _named(options: Options) -> str:
    return "".join(
        f"-{name.replace('_', '')}{value:g}" if isinstance(value, (int, float)) else f"-{value}"
        for name, value in options.items()
    )


# --- DPM-Solver, whose grid is its own --------------------------------------------------------------------------------

SOLVER_LIFTED = (
    "DPMSolver.t of sigma_min and sigma_max, and the times between them: float32, handed out as float64",
    LIFTED[1],
)
CONTROLLED = 1e-9
"""The float64 tolerance of runs whose steps follow from small differences of samples."""


def _fast_case(code: SimpleNamespace, count: int, wrapped: Wrapped, options: Options, ends: Ends) -> SchedulerCase:
    def sample(model: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return code.sampling.sample_dpm_fast(model, x, low, high, count, disable=True, **options)

    return _solver_case(
        "fast",
        wrapped,
        options,
        ends,
        kind=f"-{count}",
        run=_between_ends(code, wrapped, ends, sample),
        said=f"with {count} evaluations",
        location="arXiv:2206.00927, section 3.4",
        cls="DPMFastScheduler",
        set_timesteps={"num_inference_steps": count},
        changes=CHANGES,
        lifted=SOLVER_LIFTED,
        seed=count,
    )


def _adaptive_case(code: SimpleNamespace, wrapped: Wrapped, options: Options, ends: Ends) -> SchedulerCase:
    def sample(model: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        noise = lambda sigma, sigma_next: torch.randn(x.shape).to(x.dtype)
        return code.sampling.sample_dpm_adaptive(model, x, low, high, disable=True, noise_sampler=noise, **options)

    run = _between_ends(code, wrapped, ends, sample, own_times=True)
    return _solver_case(
        "adaptive",
        wrapped,
        options,
        ends,
        kind="",
        run=lambda network, shape, dtype: run(network, shape, torch.float64),
        said="in float64",
        location="arXiv:2206.00927, appendix C",
        cls="DPMAdaptiveScheduler",
        set_timesteps={"dtype": "float64"},
        changes=(*CHANGES, "run in float64, as in float32 the first error estimates are rounding noise"),
        lifted=SOLVER_LIFTED[:1],
        seed=10,
        float64_tolerance=CONTROLLED,
    )


def _solver_case(
    sampler: str, wrapped: Wrapped, options: Options, ends: Ends, kind: str, said: str, **fields: Any
) -> SchedulerCase:
    given = {} if ends is None else {"sigma_min": ends[0], "sigma_max": ends[1]}
    config = {name: value for name, value in wrapped.config().items() if not name.startswith("sigma_")}
    network = wrapped.name.removesuffix("-0").removeprefix("discrete")
    chosen = ", ".join(f"{name}={value:g}" for name, value in (given | options).items())
    return SchedulerCase(
        name=f"dpm-{sampler}{network}{kind}{_named(given)}{_named(options)}",
        title=f"sample_dpm_{sampler} {said}, {chosen}",
        config=config | given | options,
        network=wrapped.network(),
        functions=(
            f"k_diffusion/sampling.py:sample_dpm_{sampler}",
            f"k_diffusion/sampling.py:DPMSolver.dpm_solver_{sampler}",
            *(["k_diffusion/sampling.py:PIDStepSizeController"] if sampler == "adaptive" else []),
            f"k_diffusion/external.py:CompVis{'V' if wrapped.prediction == V else ''}Denoiser",
        ),
        shape=SHAPE,
        **fields,
    )


def _between_ends(
    code: SimpleNamespace,
    wrapped: Wrapped,
    ends: Ends,
    sample: Callable[[Any, torch.Tensor, float, float], torch.Tensor],
    own_times: bool = False,
) -> Callable[..., Run]:
    """`run` of a case: `sample(model, x, sigma_min, sigma_max)` from x = randn · sigma_max; a grid is a table.

    own_times: a float64 run gives the network its own times, not those of the float32 run.
    """
    times: list[torch.Tensor] = []

    def run(network: Any, shape: Sequence[int], dtype: torch.dtype) -> Run:
        denoiser, model, found = wrapped.watched(code, network, torch.float32 if own_times else dtype, times)
        low, high = ends or (denoiser.sigma_min.item(), denoiser.sigma_max.item())
        initial = torch.randn(shape) * high
        with _solver_times(code, dtype) as grids:
            final = sample(model, initial.to(dtype, copy=True), low, high)
        levels = [torch.stack([code.sampling.DPMSolver.sigma(None, time) for time in grid]) for grid in grids]
        return Run(final, found, {"sigmas": levels[0]} if levels else {}, initial)

    return run


@contextmanager
def _solver_times(code: SimpleNamespace, dtype: torch.dtype) -> Iterator[list[torch.Tensor]]:
    """Keeps what torch.linspace gives to DPMSolver; in a float64 run its float32 times are handed out as float64."""
    made: list[torch.Tensor] = []
    time_of = code.sampling.DPMSolver.t

    def linspace(*arguments: Any, **options: Any) -> torch.Tensor:
        made.append(torch.linspace(*arguments, **options))
        return made[-1].to(dtype)

    seen = SimpleNamespace(
        **{name: getattr(torch, name) for name in ("tensor", "minimum", "maximum", "linalg", "randn_like")}
    )
    seen.linspace = linspace
    widened = patch.object(code.sampling.DPMSolver, "t", lambda solver, sigma: time_of(solver, sigma).double())
    with patch.object(code.sampling, "torch", seen), widened if dtype == torch.float64 else nullcontext():
        yield made
