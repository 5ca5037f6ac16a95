"""Recorder for wl-zhao/UniPC: `uni_pc.py`, its multistep sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape

ORIGINAL = Original(
    system="unipc",
    repository="wl-zhao/UniPC",
    commit="cf9de85bf2ed68137e6fba5f165f451677b174c4",
    licence="MIT",
    paper_title="UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
    arxiv="2302.04867",
)
CHANGES = ("messages are not printed",)
COPIED = (
    "vary_coeff: the network is handed a copy of the state, as the first correction goes on with the state itself",
)
LIFTED = (
    "NoiseScheduleVP: log alpha, sigma and lambda are its float32 values, handed out as float64",
    "torch.tensor: ratios and weights made from lists are float64",
)


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's module, as `solver`."""
    with importing(source, ("uni_pc",), ()) as (solver,):
        yield SimpleNamespace(solver=solver)


class Case(NamedTuple):
    """Arguments of the original, in its words."""

    variant: str
    order: int
    algorithm: str
    skip_type: str
    lower_order_final: bool
    thresholding: bool
    denoise_to_zero: bool
    model_type: str
    schedule: str
    steps: int
    more: tuple[tuple[str, float], ...] = ()  # thresholding_max_val, dynamic_thresholding_ratio, t_start, t_end


class LiftedSchedule:
    """The original's schedule for its float64 run: tables as they are, arithmetic in float64."""

    def __init__(self, schedule: Any) -> None:
        self.schedule, self.T, self.total_N = schedule.schedule, schedule.T, schedule.total_N
        self.inverse_lambda = schedule.inverse_lambda
        self._schedule = schedule

    def marginal_log_mean_coeff(self, t: torch.Tensor) -> torch.Tensor:
        return self._schedule.marginal_log_mean_coeff(t).double()

    def marginal_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.exp(self.marginal_log_mean_coeff(t))

    def marginal_std(self, t: torch.Tensor) -> torch.Tensor:
        return self._schedule.marginal_std(t).double()

    def marginal_lambda(self, t: torch.Tensor) -> torch.Tensor:
        return self._schedule.marginal_lambda(t).double()


class GridFromFloat32:
    """The original's `get_time_steps` in its float64 run: with the float32 schedule."""

    def __init__(self, solver: Any, schedule: Any) -> None:
        self.solver, self.schedule = solver, schedule

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with patch.object(self.solver, "noise_schedule", self.schedule):
            return type(self.solver).get_time_steps(self.solver, *arguments, **options)


class LiftedTorch:
    """torch, but for lists of numbers that become float64 tensors."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def tensor(data: Any, **options: Any) -> torch.Tensor:
        made = torch.tensor(data, **options)
        return made.double() if isinstance(data, list) and made.is_floating_point() else made


def schedule_of(code: SimpleNamespace, kind: str) -> Any:
    """The original's NoiseScheduleVP."""
    make = code.solver.NoiseScheduleVP
    if kind in ("continuous", "continuous-cosine"):
        return make("linear" if kind == "continuous" else "cosine")
    if kind == "scaled":  # Stable Diffusion
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).numpy() ** 2
        return make("discrete", alphas_cumprod=torch.tensor(np.cumprod(1.0 - betas), dtype=torch.float32))
    steps, end = (100, 0.2) if kind == "short" else (1000, 0.02)
    return make("discrete", betas=torch.from_numpy(np.linspace(1e-4, end, steps)).float())


def run_case(
    code: SimpleNamespace, case: Case, network: Callable[..., Any], shape: Sequence[int], dtype: torch.dtype
) -> Run:
    """`run` of a case: the original's sampler from x_T."""
    schedule = seen = schedule_of(code, case.schedule)
    x = torch.randn(shape, dtype=dtype)
    more = dict(case.more)
    thresholds = {"thresholding_max_val", "dynamic_thresholding_ratio"}
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(StringIO()))
        if dtype == torch.float64:
            seen = LiftedSchedule(schedule)
            stack.enter_context(patch.object(code.solver, "torch", LiftedTorch()))
        solver = code.solver.UniPC(
            code.solver.model_wrapper(network, seen, model_type=case.model_type),
            seen,
            algorithm_type=case.algorithm,
            correcting_x0_fn="dynamic_thresholding" if case.thresholding else None,
            variant=case.variant,
            **{name: value for name, value in more.items() if name in thresholds},
        )
        if dtype == torch.float64:
            solver.get_time_steps = GridFromFloat32(solver, schedule)
        if case.variant == "vary_coeff":
            evaluate = solver.model_fn
            solver.model_fn = lambda x, t: evaluate(x.clone(), t)
        final = solver.sample(
            x,
            steps=case.steps,
            order=case.order,
            skip_type=case.skip_type,
            lower_order_final=case.lower_order_final,
            denoise_to_zero=case.denoise_to_zero,
            **{name: value for name, value in more.items() if name not in thresholds},
        )
    return Run(final, None, {} if schedule.schedule != "discrete" else {"log_alphas": schedule.log_alpha_array[0]})


PREDICTIONS = {"noise": "epsilon", "x_start": "sample", "v": "v_prediction"}
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"log_snr": "discrete"},
    "short": {"log_snr": "discrete", "num_train_timesteps": 100, "beta_end": 0.2},
    "scaled": {"log_snr": "discrete", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "continuous": {"log_snr": "linear"},
    "continuous-cosine": {"log_snr": "cosine"},
}
OPTIONS = {"thresholding_max_val": "sample_min_value"}


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Variants, orders and what is integrated, pairwise over the other arguments; 1 to 100 steps.

    Networks that predict x_0 or v run in batches of one: for others the original's model_wrapper raises RuntimeError.
    """
    for row in ROWS:
        yield _case(code, Case(*row))  # type: ignore[arg-type]


def _case(code: SimpleNamespace, case: Case) -> SchedulerCase:
    more = {OPTIONS.get(name, name): value for name, value in case.more if not name.startswith("t_")}
    data = case.algorithm == "data_prediction"
    variant = case.variant.replace("_", "-")
    words = [variant, case.order, "data" if data else "noise", case.skip_type.replace("time_", ""), case.schedule]
    shape = case_shape(case.steps)
    return SchedulerCase(
        name="-".join(map(str, [*words, case.steps])).lower(),
        title=f"{variant} of order {case.order}, {case.algorithm.replace('_', ' ')}, {case.model_type} model, "
        f"{case.schedule} schedule, {case.steps} steps, {case.skip_type}",
        location="algorithms 1 and 2" if case.variant != "vary_coeff" else "appendix C",
        cls="UniPCMultistepScheduler",
        config={
            **SCHEDULES[case.schedule],
            "solver_order": case.order,
            "solver_type": case.variant,
            "predict_x0": data,
            "prediction_type": PREDICTIONS[case.model_type],
            "skip_type": case.skip_type,
            "lower_order_final": case.lower_order_final,
            "final_sigmas_type": "zero" if case.denoise_to_zero else "sigma_min",
            "thresholding": case.thresholding,
            "sample_max_value": None,
            **more,
        },
        set_timesteps={
            "num_inference_steps": case.steps + case.denoise_to_zero,
            **{name: value for name, value in case.more if name.startswith("t_")},
        },
        run=partial(run_case, code, case),
        network=AnalyticNetwork(
            prediction=PREDICTIONS[case.model_type],  # type: ignore[arg-type]
            time_scale=0.001 if case.schedule.startswith("continuous") else 1.0,
        ),
        functions=tuple(
            f"uni_pc.py:{name}"
            for name in (
                "NoiseScheduleVP",
                "model_wrapper",
                "UniPC.sample",
                "UniPC.multistep_uni_pc_vary_update"
                if case.variant == "vary_coeff"
                else "UniPC.multistep_uni_pc_bh_update",
            )
        ),
        shape=shape if case.model_type == "noise" else (1, *shape[1:]),
        seed=case.steps,
        changes=CHANGES + (COPIED if case.variant == "vary_coeff" else ()),
        lifted=LIFTED,
        tables=(case.order, case.schedule) in TABLES,
    )


DATA, NOISE = "data_prediction", "noise_prediction"
MAX = (("thresholding_max_val", 1.2), ("dynamic_thresholding_ratio", 0.9))
ROWS: tuple[tuple[Any, ...], ...] = (
    ("bh1", 1, DATA, "time_uniform", True, False, False, "noise", "linear", 1),
    ("bh2", 2, DATA, "time_uniform", True, False, False, "x_start", "linear", 3),
    ("vary_coeff", 1, DATA, "logSNR", False, True, False, "noise", "continuous", 3),
    ("bh2", 1, NOISE, "time_uniform", True, False, True, "noise", "continuous", 3),
    ("bh2", 2, DATA, "logSNR", True, True, False, "noise", "scaled", 5, (("dynamic_thresholding_ratio", 0.9),)),
    ("bh2", 3, NOISE, "logSNR", True, False, False, "v", "scaled", 5),
    ("bh1", 3, DATA, "time_uniform", False, False, True, "noise", "linear", 7),
    ("bh2", 2, DATA, "time_quadratic", True, False, False, "noise", "linear", 8, (("t_start", 0.8), ("t_end", 0.01))),
    ("bh1", 3, NOISE, "time_quadratic", False, False, False, "noise", "continuous", 8),
    ("vary_coeff", 3, DATA, "time_uniform", True, False, False, "noise", "linear", 9),
    ("bh2", 4, DATA, "time_uniform", True, False, False, "noise", "short", 8),
    ("vary_coeff", 3, NOISE, "logSNR", False, False, True, "noise", "linear", 5),
    ("bh2", 3, DATA, "time_uniform", True, False, False, "noise", "linear", 9),
    ("bh2", 2, DATA, "time_uniform", True, True, True, "noise", "continuous-cosine", 12, MAX),
    ("bh1", 2, DATA, "time_quadratic", False, True, False, "v", "linear", 20, (*MAX, ("t_end", 2**-8))),
    ("bh2", 3, DATA, "time_uniform", False, False, False, "noise", "scaled", 100),
)
TABLES = ((1, "linear"), (4, "short"), (2, "scaled"))
"""Orders and schedules of the cases that keep the tables, one of each chain."""
