"""Samplers that choose their times as they go: `for t in scheduler.timesteps` ends when the sampler has arrived."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close, require_finite, require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SchedulerUnderTest, generators
from conformance.contracts.scheduler.options import defaults
from conformance.contracts.scheduler.support import noise

LOOSE = {"rtol": 0.05, "atol": 0.05}
"""Tolerances with which a run is short."""

MOST = 1000
"""Evaluations after which a run counts as one without an end."""

SHAPE = (2, 1, 2, 2)


def adaptive_runs_repeat(subject: SchedulerUnderTest, given: Given) -> None:
    """A run of a sampler that chooses its times as it goes ends, with finite numbers, and is the same each time: on
    another object, after a run that was broken off, with the times as numbers, and with tuples; the sample keeps its
    dtype, and what `step` is given stays as it is. It tells how many evaluations there have been, and how many trials
    were accepted and rejected: after a rejected one, the sample is again the one before it."""
    first = _adaptive(subject)
    for dtype in (torch.float32, torch.float64, torch.float16):
        given.note("dtype", dtype)
        wanted = _run(subject, first, dtype)
        require_finite(wanted[-1], "the result")
        again = _adaptive(subject)
        _run(subject, again, dtype, stop=3)
        again.set_timesteps(7)  # a common loop asks for a number of steps, which the tolerances decide
        found = _run(subject, again, dtype, tuples=True)
        if len(found) != len(wanted):
            raise Violation(f"a second run has {len(found)} evaluations instead of {len(wanted)}")
        for k, (one, other) in enumerate(zip(found, wanted, strict=True)):
            require_same(one, other, "the sample of a second run", step=k)
        if again.step_index != len(wanted):
            raise Violation(f"after {len(wanted)} evaluations step_index is {again.step_index}")
        first.set_timesteps()
        if dtype == torch.float64 and subject.takes("set_timesteps", "dtype"):
            for name in ("float64", torch.float64):
                first.set_timesteps(dtype=name)
                require_same(_run(subject, first, dtype)[-1], wanted[-1], f"the result of a run with dtype={name}")
            first.set_timesteps(dtype="float32")
    if hasattr(first, "rejected"):
        _require_counts(subject)


def adaptive_runs_go_in_order(subject: SchedulerUnderTest, given: Given) -> None:
    """Such a sampler refuses, with ValueError, a step before set_timesteps, at another time than the next, at several
    times, after the end, with a model output of another shape, and to begin in the middle, and goes on as if it had
    not been asked; and model outputs of NaN, when they would choose its next step."""
    x = noise(0, SHAPE)
    scheduler = subject.make()
    _require_refused(scheduler, "a step before set_timesteps", x, 1.0, x)
    scheduler = _adaptive(subject)
    t = next(iter(scheduler.timesteps))
    wanted = _run(subject, copy.deepcopy(scheduler), torch.float32)
    if scheduler.step_index is not None:
        raise Violation(f"before the first step step_index is {scheduler.step_index}")
    x = subject.start(scheduler, 0, SHAPE)
    _require_refused(scheduler, "a step at another time", x, t / 2, x)
    _require_refused(scheduler, "a step at two times", x, t.expand(2), x)
    _require_refused(scheduler, "a model output of one sample", x[:1], t, x)
    if subject.takes("set_timesteps", "dtype"):
        _require_one_precision(scheduler)
    if hasattr(scheduler, "add_noise"):
        _require_forward_process(scheduler, t)
    try:
        scheduler.set_begin_index(1)
    except ValueError:
        scheduler.set_begin_index(0)
    else:
        raise Violation("set_begin_index(1) is accepted")
    found = _run(subject, scheduler, torch.float32)
    require_same(found[-1], wanted[-1], "the result of a run that began with refusals")
    _require_refused(scheduler, "a step after the end", x, t, x)
    scheduler = _adaptive(subject)
    try:
        for t, _ in zip(scheduler.timesteps, range(MOST), strict=False):
            x = scheduler.step(torch.full_like(x, torch.nan), t, x).prev_sample
    except ValueError:
        return
    raise Violation("model outputs of NaN are accepted")


def _adaptive(subject: SchedulerUnderTest) -> Any:
    """A scheduler ready for a run. Raises NotApplicable if it has a list of times."""
    subject.require_common_step()
    scheduler = subject.make(**{name: value for name, value in LOOSE.items() if name in defaults(subject.cls)})
    try:
        scheduler.set_timesteps(10)
    except TypeError:
        raise NotApplicable(f"{subject.name} has a list of times") from None
    if hasattr(scheduler.timesteps, "__len__"):
        raise NotApplicable(f"{subject.name} has a list of times")
    return scheduler


def _run(
    subject: SchedulerUnderTest, scheduler: Any, dtype: torch.dtype, stop: int = MOST, tuples: bool = False
) -> list[torch.Tensor]:
    """The sample after each evaluation of a network without a meaning; tuples: and the times as numbers."""
    x = subject.start(scheduler, 0, SHAPE, dtype)
    samples: list[torch.Tensor] = []
    draws = _draws(subject)
    wave = torch.arange(x[0].numel(), dtype=dtype).reshape(x[0].shape)
    for t in scheduler.timesteps:
        if len(samples) == stop:
            if stop == MOST:
                raise Violation(f"the run has no end: {MOST} evaluations")
            break
        output = 0.3 * torch.sin(x / (1 + x.abs()) + wave + float(scheduler.network_timestep(t)))
        given = x.clone(), output.clone()
        scaled = scheduler.scale_model_input(x, t)
        if scaled.dtype != dtype:
            raise Violation(f"the input for a sample of {dtype} is {scaled.dtype}", step=len(samples))
        require_same(scheduler.scale_model_input(x), scaled, "the input that is asked for without a time")
        if tuples:
            sample = scheduler.step(output, float(t), x, return_dict=False, **draws)[0]
        else:
            sample = scheduler.step(output, t, x, **draws).prev_sample
        for now, before, what in zip((x, output), given, ("sample", "model output"), strict=True):
            require_same(now, before, f"the {what} that step was given", step=len(samples))
        if sample.dtype != dtype:
            raise Violation(f"a sample of {dtype} becomes one of {sample.dtype}", step=len(samples))
        samples.append(sample)
        x = sample
    return samples


def _require_counts(subject: SchedulerUnderTest) -> None:
    """Every trial has as many evaluations as the one before it, and is counted at its last."""
    eager = {"rtol": 0.01, "atol": 1e-3, "h_init": 2.0}  # the first trials fail
    scheduler = subject.make(**{name: value for name, value in eager.items() if name in defaults(subject.cls)})
    scheduler.set_timesteps()
    x = subject.start(scheduler, 0, SHAPE)
    before, ends, rejected = [x], list[int](), 0
    for t, index in zip(scheduler.timesteps, range(60), strict=False):
        x = scheduler.step(0.3 * torch.sin(x), t, x, **_draws(subject)).prev_sample
        trials = scheduler.accepted + scheduler.rejected
        if trials != len(ends):
            ends.append(index)
            returned = any(torch.equal(x, earlier) for earlier in before)
            if trials != len(ends) or (returned and scheduler.next_time is not None and scheduler.rejected == rejected):
                raise Violation(
                    f"trial {len(ends)}, which {'returns to' if returned else 'leaves'} its start, is counted as "
                    f"{scheduler.accepted} accepted and {scheduler.rejected} rejected",
                    step=index,
                )
            rejected = scheduler.rejected
        before.append(x)
    lengths = {later - earlier for earlier, later in pairwise(ends)}
    if len(lengths) != 1:
        raise Violation(f"trials are counted after evaluations {ends}")


def _require_one_precision(scheduler: Any) -> None:
    scheduler = copy.deepcopy(scheduler)
    x = noise(0, SHAPE)
    for dtype in ("float16", torch.int64):
        try:
            scheduler.set_timesteps(dtype=dtype)
        except ValueError:
            continue
        raise Violation(f"set_timesteps(dtype={dtype}) is accepted")
    scheduler.set_timesteps()
    x = scheduler.step(x, scheduler.next_time, x).prev_sample
    _require_refused(scheduler, "another precision within a run", x.double(), scheduler.next_time, x.double())


def _require_forward_process(scheduler: Any, first: torch.Tensor) -> None:
    """x_T is what the forward process makes of pure noise at the first time; less is added at earlier times."""
    x, zero = noise(0, SHAPE), torch.zeros(SHAPE)
    largest = scheduler.add_noise(zero, x, first)
    require_close(largest, x * scheduler.init_noise_sigma, "the noise that is added at the first time", bound=1e-3)
    levels = [float(scheduler.add_noise(zero, x, t).norm()) for t in (3, 30)]
    if not 0 < levels[0] < levels[1] < float(largest.norm()):
        raise Violation(f"add_noise at 3 and 30 adds {levels[0]:g} and {levels[1]:g}")
    if torch.equal(scheduler.scale_model_input(x, first), x):
        return  # which it is at every time
    try:
        scheduler.scale_model_input(x, first / 2)
    except ValueError:
        return
    raise Violation("scale_model_input at another time than the next is accepted")


def _draws(subject: SchedulerUnderTest) -> dict[str, Any]:
    return {"generator": generators(1)} if subject.takes("step", "generator") else {}


def _require_refused(scheduler: Any, what: str, output: torch.Tensor, t: Any, x: torch.Tensor) -> None:
    try:
        scheduler.step(output, t, x)
    except ValueError:
        return
    raise Violation(f"{what} is accepted")


CONTRACTS = (Contract(adaptive_runs_repeat), Contract(adaptive_runs_go_in_order))
