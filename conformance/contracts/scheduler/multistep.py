"""Pseudo numerical methods: which evaluations they make, and how outputs combine, against the paper's equations.

They apply to classes with the option `skip_prk_steps`, by which published configurations choose between the method of
arXiv 2202.09778 and PLMS; with the option `solver`, also to the original codes that it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.cover import Config, pairwise
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from conformance.contracts.scheduler.formulas import grids
from conformance.contracts.scheduler.options import defaults
from conformance.contracts.scheduler.probes import EPS, OPERATIONS
from conformance.contracts.scheduler.pseudo_numerical import (
    ADAMS_BASHFORTH,
    Evaluation,
    Process,
    evaluations,
    process_of,
)
from conformance.contracts.scheduler.support import REFUSALS, noise, require_runs

CASES: dict[str, tuple[Any, ...]] = {
    "steps": (1, 2, 3, 4, 7, 12),
    "skip_prk_steps": (False, True),
    "timestep_spacing": ("leading", "linspace", "trailing", "ddim_uniform"),
    "prediction_type": ("epsilon", "v_prediction"),
    "set_alpha_to_one": (True, False),
    "steps_offset": (0, 1),
    "beta_schedule": ("linear", "scaled_linear"),
    "solver": (None, "plms", "s_pndm", "f_pndm"),
    "coefficients": (None, "float64", "float32_cumprod", "compvis"),
}
"""Number of steps, and options where the class has them; each two of these values occur together in a run."""

FIXED: Config = {"num_train_timesteps": 100, "beta_start": 1e-5, "beta_end": 0.1}
"""√(1 − ᾱ) of 0.003 at the clean end, of which single precision tables and double precision ones are far apart."""

SHIFTED = ("f_pndm", "s_pndm")
"""Solvers that read abar one entry later than the time says."""

EXPLICIT = (([90, 61, 40, 22, 10, 3], 6), ([77], 1), ([50, 21, 4, 0], 4))
"""Lists whose midpoints are not those of even strides."""

SHAPE = (2, 1, 1, 3)
ROUNDINGS = 16
"""Of the terms of one evaluation: a product, four sums and a quotient for the outputs, a few of each for the sample."""


@dataclass(frozen=True)
class _Case:
    """A configuration that the class offers, and what it should do.

    Attributes:
        request: arguments of `set_timesteps`, which was called with them.
    """

    scheduler: Any
    request: dict[str, Any]
    process: Process
    course: list[Evaluation]
    prediction: str


def evaluations_are_those_of_the_method(subject: SchedulerUnderTest, given: Given) -> None:
    """`timesteps` lists the evaluations of the method in their order: the Runge–Kutta steps (four), the improved Euler
    steps (two) and the multistep steps (one) on the grid of the spacing."""
    for case in _cases(subject, given):
        found, wanted = [float(t) for t in case.scheduler.timesteps], [e.time for e in case.course]
        if case.process.shifted and not case.scheduler.timesteps.is_floating_point():
            raise Violation("whole numbers, although the authors' code gives its network float32 timesteps")
        if found != wanted:
            raise Violation(f"the evaluations are at {_shown(found)} instead of {_shown(wanted)}")


def outputs_combine_as_the_equations_say(subject: SchedulerUnderTest, given: Given) -> None:
    """Whatever the samples and outputs are, each evaluation makes of them what the equations (9, 11 to 13) make of them
    with the scheduler's own table: to rounding in float64 where the option `coefficients` says how exact coefficients
    are, else to float32. PLMS goes through an x_0, and reports it where `step` has a place for it."""
    for case in _cases(subject, given):
        _require_course(case, torch.float64, stated="coefficients" in defaults(subject.cls))
        if case.process.precision == "single":  # the same coefficients in every arithmetic
            case.scheduler.set_timesteps(**case.request)
            _require_course(case, torch.float32, stated=True)


def sampling_begins_anywhere(subject: SchedulerUnderTest, given: Given) -> None:
    """Where `set_begin_index` begins at a timestep of the multistep method, the order grows from one again, whatever
    was evaluated before."""
    if not hasattr(subject.cls, "set_begin_index"):
        raise NotApplicable(f"{subject.name} has no set_begin_index")
    for case in _cases(subject, given):
        singles = [k for k, e in enumerate(case.course) if next(iter(e.weights)) == k == e.base and len(e.weights) > 1]
        if not singles:
            continue
        begin = singles[len(singles) // 2]
        given.note("begin", begin)
        for k in range(2):
            case.scheduler.step(noise(k, SHAPE), case.scheduler.timesteps[k], noise(k + 2, SHAPE))
        case.scheduler.set_begin_index(begin)
        rest = replace(case, course=_continued(case.course, begin))
        _require_course(rest, torch.float64, stated="coefficients" in defaults(subject.cls), begin=begin)


# --- the cases -------------------------------------------------------------------------------------------------------


def _cases(subject: SchedulerUnderTest, given: Given) -> Iterator[_Case]:
    """Every case that the class offers, noted as the report's `options` and `steps`."""
    require_runs(subject)
    offered = {**defaults(subject.cls), **subject.base}
    if "skip_prk_steps" not in offered:
        raise NotApplicable(f"{subject.name} is no pseudo numerical method: it has no option skip_prk_steps")
    options = {name: values for name, values in CASES.items() if name in offered or name == "steps"}
    fixed = {name: value for name, value in FIXED.items() if name in offered}
    for row in pairwise(options, _begins_at_the_end):
        steps = row.pop("steps")
        given.note("steps", steps)
        given.note("options", row)
        yield from _case(subject, {**fixed, **row}, steps, None)
    if subject.takes("set_timesteps", "timesteps"):
        for skip in (False, True):
            for timesteps, steps in EXPLICIT:
                config = {"skip_prk_steps": skip}
                given.note("options", config)
                given.note("timesteps", timesteps)
                yield from _case(subject, {**fixed, **config}, steps, timesteps)


def _case(subject: SchedulerUnderTest, config: Config, steps: int, timesteps: list[int] | None) -> Iterator[_Case]:
    """One case, or none where the class refuses it; the only refusal that must be is of a start at the last entry of
    a table that is read one entry later."""
    solver = config.get("solver")
    shifted = solver in SHIFTED
    try:
        scheduler = subject.make(**config)
        size = int(scheduler.config.get("num_train_timesteps"))
        grid = timesteps or _rule(config, size, steps)
        request = {"timesteps": timesteps} if timesteps else {"num_inference_steps": steps}
        scheduler.set_timesteps(**request)
    except REFUSALS:
        return
    if shifted and grid[0] == size - 1:
        raise Violation(f"solver={solver!r} reads the table one entry later, but is accepted at its end")
    method = {"plms": "compvis", None: "plms" if config["skip_prk_steps"] else "prk"}.get(solver, solver)
    even = timesteps is None and config.get("timestep_spacing") != "ddim_uniform"
    course = evaluations(grid, str(method), size // len(grid) // 2 if even else None)
    process = process_of(scheduler, shifted=shifted, through_x0=method in ("plms", "compvis"))
    yield _Case(scheduler, request, process, course, config.get("prediction_type", "epsilon"))


def _begins_at_the_end(config: Config) -> bool:
    """Whether an original that reads its table one entry later begins at the last entry, for any number of steps."""
    return config.get("solver") in SHIFTED and config.get("timestep_spacing") in ("linspace", "trailing")


def _rule(config: Config, size: int, steps: int) -> list[int]:
    """The timesteps from noisy to clean: the published spacings, or every (T // n)-th as the originals have it."""
    spacing, offset, solver = config["timestep_spacing"], config["steps_offset"], config.get("solver")
    offset = 1 if solver == "plms" else offset
    if spacing == "ddim_uniform" or (solver is not None and spacing == "leading"):
        return [t + offset for t in range(0, size, size // steps)][::-1]
    if spacing == "linspace" and steps == 1:
        return [0]
    return [int(t) for t in np.round(grids(spacing, size, steps, offset)[0])]


def _continued(course: list[Evaluation], begin: int) -> list[Evaluation]:
    """The course from an evaluation on, without what came before it."""
    rest = []
    for e in course[begin:]:
        known = [k for k in e.weights if k >= begin]
        weights = dict(zip(known, ADAMS_BASHFORTH[len(known) - 1], strict=True))
        rest.append(Evaluation(e.time, e.base, e.start, e.end, weights))
    return rest


# --- the comparison --------------------------------------------------------------------------------------------------


def _require_course(case: _Case, dtype: torch.dtype, *, stated: bool, begin: int = 0) -> None:
    """Feeds every evaluation with numbers of its own, and compares what it makes of them.

    stated: whether the scheduler says how exact its coefficients are.
    """
    bound = ROUNDINGS * torch.finfo(dtype).eps / 2 if stated else OPERATIONS * EPS
    inputs: dict[int, torch.Tensor] = {}
    noises: dict[int, torch.Tensor] = {}
    for k, evaluation in enumerate(case.course, start=begin):
        x, output = (noise(seed + 2 * k, SHAPE, torch.float32).double() for seed in (100, 101))
        inputs[k] = x
        noises[k] = case.process.noise(output, x, evaluation.time, case.prediction)
        weighted = [(weight, noises[j]) for j, weight in evaluation.weights.items()]
        wanted, x0, size = case.process.move(inputs[evaluation.base], weighted, evaluation.start, evaluation.end)
        result = case.scheduler.step(output.to(dtype), case.scheduler.timesteps[k], x.to(dtype))
        found, largest = result.prev_sample.double(), float(wanted.abs().max())
        require_close(found, wanted, "the sample", bound=bound * size / largest, step=k)
        if x0 is not None and hasattr(result, "pred_original_sample"):
            if result.pred_original_sample is None:
                raise Violation("the x_0 that PLMS goes through is not reported", step=k)
            # The sample has the terms of x_0 times √ᾱ.
            size, largest = size / case.process.level(evaluation.end) ** 0.5, float(x0.abs().max())
            reported = result.pred_original_sample.double()
            require_close(reported, x0, "the reported x_0", bound=bound * size / largest, step=k)


def _shown(times: list[float]) -> str:
    return ", ".join(f"{t:g}" for t in times[:14]) + (", …" if len(times) > 14 else "")


CONTRACTS = (
    Contract(evaluations_are_those_of_the_method),
    Contract(outputs_combine_as_the_equations_say),
    Contract(sampling_begins_anywhere),
)
