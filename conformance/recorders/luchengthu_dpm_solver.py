"""Recorder for LuChengTHU/dpm-solver: `dpm_solver_pytorch.py`, every method of its `DPM_Solver.sample`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape

ORIGINAL = Original(
    system="dpm-solver",
    repository="LuChengTHU/dpm-solver",
    commit="52bc3fbcd5de56d60917b826b15d2b69460fc2fa",
    licence="MIT",
    paper_title="DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps",
    arxiv="2206.00927",
)
LIFTED = (
    "NoiseScheduleVP: log alpha, sigma and lambda are its float32 values, handed out as float64",
    "NoiseScheduleVP.inverse_lambda: the times within singlestep steps are those of a float32 run",
)
LIFTED_ADAPTIVE = ("model_wrapper: the network is given its times as float32, which the oracle chooses in float64",)


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's module, as `solver`."""
    with importing(source, ("dpm_solver_pytorch",), ()) as (solver,):
        yield SimpleNamespace(solver=solver)


class Case(NamedTuple):
    """Arguments of the original, in its words."""

    method: str
    algorithm: str
    order: int
    skip_type: str
    solver_type: str
    lower_order_final: bool
    denoise_to_zero: bool
    model_type: str
    thresholding: bool
    schedule: str
    steps: int
    more: tuple[tuple[str, float], ...] = ()  # thresholding_max_val, dynamic_thresholding_ratio, t_start, t_end, …


class LiftedSchedule:
    """The original's schedule for its float64 run: tables as they are, arithmetic in float64."""

    def __init__(self, schedule: Any, inner_times: Sequence[torch.Tensor]) -> None:
        self.schedule, self.T, self.total_N = schedule.schedule, schedule.T, schedule.total_N
        self._schedule, self._inner_times = schedule, iter(inner_times)

    def marginal_log_mean_coeff(self, t: torch.Tensor) -> torch.Tensor:
        return self._schedule.marginal_log_mean_coeff(t).double()

    def marginal_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.exp(self.marginal_log_mean_coeff(t))

    def marginal_std(self, t: torch.Tensor) -> torch.Tensor:
        return self._schedule.marginal_std(t).double()

    def marginal_lambda(self, t: torch.Tensor) -> torch.Tensor:
        return self._schedule.marginal_lambda(t).double()

    def inverse_lambda(self, half_log_snr: torch.Tensor) -> torch.Tensor:
        return next(self._inner_times)


def schedule_of(code: SimpleNamespace, kind: str) -> Any:
    """The original's NoiseScheduleVP, as its examples make it for weights of such a schedule."""
    make = code.solver.NoiseScheduleVP
    if kind == "continuous":
        return make("linear", continuous_beta_0=0.1, continuous_beta_1=20.0)
    if kind == "scaled":  # Stable Diffusion
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).numpy() ** 2
        return make("discrete", alphas_cumprod=torch.tensor(np.cumprod(1.0 - betas), dtype=torch.float32))
    if kind == "cosine":  # guided diffusion, in float64
        abar = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        steps = [min(1 - abar((i + 1) / 1000) / abar(i / 1000), 0.999) for i in range(1000)]
        return make("discrete", betas=torch.tensor(steps, dtype=torch.float64))
    return make("discrete", betas=torch.from_numpy(np.linspace(1e-4, 0.02, 1000)).float())


def sample(code: SimpleNamespace, case: Case, schedule: Any, network: Callable[..., Any], x: torch.Tensor) -> Any:
    """The original's run from x_T."""
    more = dict(case.more)
    names = {"thresholding_max_val", "dynamic_thresholding_ratio"}
    solver = code.solver.DPM_Solver(
        code.solver.model_wrapper(network, schedule, model_type=case.model_type),
        schedule,
        algorithm_type=case.algorithm,
        correcting_x0_fn="dynamic_thresholding" if case.thresholding else None,
        **{name: value for name, value in more.items() if name in names},
    )
    with redirect_stdout(StringIO()):
        return solver.sample(
            x,
            steps=case.steps,
            order=case.order,
            skip_type=case.skip_type,
            method=case.method,
            lower_order_final=case.lower_order_final,
            denoise_to_zero=case.denoise_to_zero,
            solver_type=case.solver_type,
            **{name: value for name, value in more.items() if name not in names},
        )


def inner_times(code: SimpleNamespace, case: Case) -> list[torch.Tensor]:
    """What inverse_lambda returns in a float32 run, which no state has an influence on."""
    schedule, found = schedule_of(code, case.schedule), []
    invert = schedule.inverse_lambda

    def noted(half_log_snr: torch.Tensor) -> torch.Tensor:
        found.append(invert(half_log_snr))
        return found[-1]

    schedule.inverse_lambda = noted
    sample(code, case, schedule, lambda x, t: torch.zeros_like(x), torch.zeros(1, 1, 1, 1))
    return found


def run_case(
    code: SimpleNamespace, case: Case, network: Callable[..., Any], shape: Sequence[int], dtype: torch.dtype
) -> Run:
    """`run` of a case."""
    schedule = original_schedule = schedule_of(code, case.schedule)
    x = torch.randn(shape, dtype=dtype)
    seen = network
    if dtype == torch.float64:
        if case.method == "adaptive":
            seen = lambda x, t: network(x, t.float())
        else:
            schedule = LiftedSchedule(schedule, inner_times(code, case))
    final = sample(code, case, schedule, seen, x)
    if case.schedule == "continuous":
        return Run(final)
    return Run(final, None, {"log_alphas": original_schedule.log_alpha_array[0]})


PREDICTIONS = {"noise": "epsilon", "x_start": "sample", "v": "v_prediction", "score": "score"}
CLASSES = {
    "multistep": "DPMSolverMultistepScheduler",
    "singlestep": "DPMSolverSinglestepScheduler",
    "singlestep_fixed": "DPMSolverSinglestepScheduler",
    "adaptive": "DPMSolverAdaptiveScheduler",
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "continuous": {"log_snr": "linear"},
}
METHODS: dict[str, dict[str, Any]] = {
    "multistep": {"lower_order_below": 10},
    "singlestep": {"orders": "fast", "taylor_within": True},
    "singlestep_fixed": {"orders": "fixed", "taylor_within": True},
    "adaptive": {},
}
UPDATES = {
    "multistep": ("multistep_dpm_solver_update", "get_time_steps"),
    "singlestep": ("singlestep_dpm_solver_update", "get_orders_and_timesteps_for_singlestep_solver"),
    "singlestep_fixed": ("singlestep_dpm_solver_update", "get_time_steps"),
    "adaptive": ("dpm_solver_adaptive", "singlestep_dpm_solver_update"),
}
OPTIONS = {"thresholding_max_val": "sample_min_value"}


def config_of(case: Case) -> dict[str, Any]:
    """The case in terms of the API."""
    more = {OPTIONS.get(name, name): value for name, value in case.more if not name.startswith("t_")}
    config = {
        "log_snr": "discrete_clipped",
        **SCHEDULES[case.schedule],
        **METHODS[case.method],
        "solver_order": case.order,
        "prediction_type": PREDICTIONS[case.model_type],
        "algorithm_type": case.algorithm,
        "solver_type": {"dpmsolver": "midpoint", "taylor": "heun"}[case.solver_type],
        "final_sigmas_type": "zero" if case.denoise_to_zero else "sigma_min",
        "thresholding": case.thresholding,
        "sample_max_value": None,
        **more,
    }
    if case.method == "multistep":
        config["lower_order_final"] = case.lower_order_final
    if case.method != "adaptive":
        config["skip_type"] = case.skip_type
    return config


def set_timesteps_of(case: Case) -> dict[str, Any]:
    """How many evaluations there are, that which denoises included, and between which times."""
    ends = {name: value for name, value in case.more if name.startswith("t_")}
    if case.method == "adaptive":
        return ends
    whole = case.order if case.method == "singlestep_fixed" else 1
    return {"num_inference_steps": case.steps // whole * whole + case.denoise_to_zero, **ends}


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Arguments pairwise over the methods with a given number of steps, plain ones, and the adaptive method.

    The adaptive method's first error estimates are mostly rounding, and decide where all later steps end: with data
    prediction of order 3, and with cosine betas, its runs are too ill conditioned to be recorded.
    """
    rows: tuple[tuple[Any, ...], ...] = (*PAIRWISE, *FURTHER, *ADAPTIVE)
    for row in rows:
        yield _case(code, Case(*row))
    for row in PLAIN:
        case = Case(*row)
        named = {"taylor": case.solver_type == "taylor", "thresholding": case.thresholding}
        yield _case(code, case, [word for word, is_so in named.items() if is_so])


def _case(code: SimpleNamespace, case: Case, further_words: Sequence[str] = ()) -> SchedulerCase:
    adaptive, continuous = case.method == "adaptive", case.schedule == "continuous"
    words = [case.method, case.algorithm.replace("++", "pp"), case.order, case.skip_type, case.schedule, case.steps]
    if adaptive:
        del words[3], words[-1]
    update = "algorithm 2" if case.algorithm == "dpmsolver++" else "algorithms 1, 2, 4, 5"
    name = "-".join(map(str, [*words, *further_words])).lower()
    return SchedulerCase(
        name=name,
        title=f"{case.method} {case.algorithm} of order {case.order}, {case.model_type} model, {case.schedule} schedule"
        + ("" if adaptive else f", {case.steps} steps, {case.skip_type}"),
        location="arXiv:2211.01095, " + update if case.algorithm == "dpmsolver++" else update,
        cls=CLASSES[case.method],
        config=config_of(case),
        set_timesteps=set_timesteps_of(case),
        run=partial(run_case, code, case),
        network=AnalyticNetwork(
            prediction=PREDICTIONS[case.model_type],  # type: ignore[arg-type]
            time_scale=0.001 if continuous else 1.0,
        ),
        functions=tuple(
            f"dpm_solver_pytorch.py:{name}"
            for name in ("NoiseScheduleVP", "model_wrapper", *(f"DPM_Solver.{name}" for name in UPDATES[case.method]))
        ),
        shape=(2, 2, 3, 2) if adaptive else case_shape(case.steps),
        seed=case.steps,
        changes=("the adaptive method's message is not printed",) if adaptive else (),
        lifted=LIFTED_ADAPTIVE if adaptive else LIFTED,
        tables=case.order == 1 or adaptive,
    )


PAIRWISE = (
    ("multistep", "dpmsolver", 3, "logSNR", "taylor", True, False, "noise", False, "continuous", 12),
    ("singlestep", "dpmsolver", 2, "time_quadratic", "dpmsolver", False, True, "x_start", False, "cosine", 8),
    ("singlestep_fixed", "dpmsolver++", 3, "logSNR", "taylor", False, False, "v", True, "scaled", 6),
    ("multistep", "dpmsolver++", 2, "time_quadratic", "taylor", True, False, "x_start", True, "linear", 9),
    ("singlestep_fixed", "dpmsolver", 2, "time_uniform", "dpmsolver", False, True, "v", False, "continuous", 10),
    ("multistep", "dpmsolver++", 1, "time_uniform", "dpmsolver", True, True, "noise", False, "scaled", 3),
    ("singlestep", "dpmsolver++", 1, "logSNR", "dpmsolver", False, False, "score", False, "linear", 5),
    ("singlestep", "dpmsolver", 2, "logSNR", "taylor", False, True, "noise", True, "scaled", 2),
    ("multistep", "dpmsolver++", 2, "time_uniform", "taylor", True, False, "score", True, "cosine", 4),
    ("singlestep_fixed", "dpmsolver", 3, "time_quadratic", "dpmsolver", False, True, "score", True, "continuous", 3),
    ("multistep", "dpmsolver++", 1, "time_quadratic", "dpmsolver", True, True, "v", False, "cosine", 2),
    ("singlestep_fixed", "dpmsolver++", 3, "time_uniform", "taylor", False, True, "x_start", True, "scaled", 9),
    ("singlestep", "dpmsolver++", 1, "time_quadratic", "dpmsolver", False, False, "x_start", True, "continuous", 14),
    ("singlestep", "dpmsolver", 3, "time_quadratic", "dpmsolver", False, True, "v", False, "linear", 5),
    ("multistep", "dpmsolver++", 2, "time_quadratic", "taylor", True, False, "noise", True, "scaled", 9),
    ("singlestep", "dpmsolver++", 1, "logSNR", "dpmsolver", False, False, "x_start", False, "scaled", 1),
    ("singlestep", "dpmsolver++", 2, "logSNR", "taylor", False, True, "noise", True, "cosine", 3),
    ("multistep", "dpmsolver", 2, "time_quadratic", "taylor", True, True, "noise", True, "scaled", 9),
    ("singlestep", "dpmsolver++", 2, "time_uniform", "dpmsolver", False, True, "score", True, "scaled", 9),
    ("singlestep_fixed", "dpmsolver", 3, "time_uniform", "dpmsolver", False, True, "score", False, "linear", 22),
    ("multistep", "dpmsolver++", 2, "time_uniform", "dpmsolver", True, True, "score", True, "cosine", 5),
    ("singlestep", "dpmsolver++", 3, "logSNR", "taylor", False, False, "noise", True, "scaled", 10),
    ("singlestep", "dpmsolver++", 3, "time_uniform", "dpmsolver", False, False, "score", True, "continuous", 9),
    ("singlestep_fixed", "dpmsolver++", 2, "logSNR", "taylor", False, False, "x_start", True, "linear", 2),
    ("singlestep_fixed", "dpmsolver", 2, "logSNR", "dpmsolver", False, True, "v", True, "linear", 11),
    ("singlestep_fixed", "dpmsolver++", 2, "time_quadratic", "dpmsolver", False, False, "x_start", False, "linear", 5),
    ("multistep", "dpmsolver", 1, "time_quadratic", "dpmsolver", True, True, "noise", False, "continuous", 6),
    ("multistep", "dpmsolver++", 2, "time_uniform", "taylor", False, True, "score", True, "continuous", 2),
    ("singlestep_fixed", "dpmsolver", 2, "logSNR", "dpmsolver", False, True, "v", False, "scaled", 9),
    ("multistep", "dpmsolver++", 3, "logSNR", "dpmsolver", False, False, "x_start", False, "linear", 3),
    ("singlestep", "dpmsolver", 2, "logSNR", "dpmsolver", False, True, "v", False, "continuous", 15),
)
FURTHER = (
    ("multistep", "dpmsolver++", 2, "time_uniform", "dpmsolver", True, False, "noise", False, "scaled", 9),
    ("multistep", "dpmsolver", 3, "time_uniform", "dpmsolver", False, False, "v", False, "scaled", 7),
    ("singlestep", "dpmsolver++", 2, "time_uniform", "dpmsolver", False, False, "noise", False, "linear", 9),
    ("singlestep", "dpmsolver++", 3, "time_uniform", "dpmsolver", False, False, "noise", False, "linear", 9),
    ("multistep", "dpmsolver++", 3, "time_uniform", "dpmsolver", True, False, "noise", False, "linear", 100),
    ("multistep", "dpmsolver++", 3, "time_uniform", "dpmsolver", True, False, "noise", True, "linear", 7,
     (("thresholding_max_val", 0.6), ("dynamic_thresholding_ratio", 0.9), ("t_start", 0.7), ("t_end", 0.02))),
)  # fmt: skip
PLAIN = (
    ("multistep", "dpmsolver++", 2, "time_uniform", "dpmsolver", True, False, "noise", False, "linear", 7),
    ("multistep", "dpmsolver++", 2, "time_uniform", "dpmsolver", True, False, "noise", False, "linear", 11),
    ("multistep", "dpmsolver++", 2, "time_uniform", "dpmsolver", True, False, "noise", False, "linear", 13),
    ("multistep", "dpmsolver++", 2, "time_uniform", "dpmsolver", True, False, "noise", False, "linear", 9),
    ("multistep", "dpmsolver++", 2, "time_uniform", "dpmsolver", True, False, "noise", False, "linear", 20),
    ("multistep", "dpmsolver++", 2, "time_uniform", "dpmsolver", True, False, "noise", True, "linear", 20),
    ("multistep", "dpmsolver++", 3, "time_uniform", "dpmsolver", True, False, "noise", False, "linear", 9),
    ("multistep", "dpmsolver", 2, "time_uniform", "dpmsolver", True, False, "noise", False, "linear", 20),
    ("singlestep", "dpmsolver++", 3, "time_uniform", "taylor", False, False, "noise", False, "linear", 9),
    ("singlestep_fixed", "dpmsolver++", 3, "time_uniform", "dpmsolver", False, False, "noise", False, "linear", 9),
    ("singlestep_fixed", "dpmsolver++", 3, "time_uniform", "taylor", False, False, "noise", False, "linear", 9),
)
ADAPTIVE = (
    ("adaptive", "dpmsolver++", 2, "", "dpmsolver", False, False, "noise", True, "linear", 1,
     (("t_start", 0.5), ("atol", 0.005), ("rtol", 0.08))),
    ("adaptive", "dpmsolver", 2, "", "taylor", False, True, "v", False, "continuous", 2),
    ("adaptive", "dpmsolver", 3, "", "taylor", False, False, "x_start", False, "scaled", 3),
)  # fmt: skip
