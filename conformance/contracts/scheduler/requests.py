"""What no sampler can do: numbers out of range, and times that it does not know, are refused and said to be so."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SHAPE, SchedulerUnderTest, generators
from conformance.contracts.scheduler.options import UNUSABLE, defaults, parameters
from conformance.contracts.scheduler.support import STEPS, full_run, noise, require_runs

CLEAR = (ValueError, TypeError, NotImplementedError)


def unusable_numbers_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """A number of which no process can be made, as no training timesteps or a shift of 0, is refused with ValueError or
    TypeError that names the option: when the scheduler is made, by set_timesteps, or by the first step at the latest.
    """
    _require_runs_or_adapts(subject)
    offered = defaults(subject.cls)
    tried = {name: values for name, values in UNUSABLE.items() if name in offered}
    if not tried:
        raise NotApplicable(f"{subject.name} has none of the options {', '.join(UNUSABLE)}")
    problems = []
    for name, values in tried.items():
        for value in values:
            given.note("options", {name: value})
            problem = _acceptance(subject, {name: value}, name)
            problems += [f"{name}={value!r} {problem}"] if problem else []
    low, high = offered.get("sigma_min"), offered.get("sigma_max")
    if isinstance(low, float) and isinstance(high, float):
        for most in (low, high):
            problem = _acceptance(subject, {"sigma_min": high, "sigma_max": most}, "sigma_min")
            problems += [f"sigma_min={high:g} with sigma_max={most:g} {problem}"] if problem else []
    low, high = offered.get("beta_min"), offered.get("beta_max")
    if isinstance(low, float) and isinstance(high, float):
        problem = _acceptance(subject, {"beta_min": high, "beta_max": low}, "beta_min")
        problems += [f"beta_min={high:g} with beta_max={low:g} {problem}"] if problem else []
    if problems:
        raise Violation("; ".join(problems))


def _require_runs_or_adapts(subject: SchedulerUnderTest) -> None:
    if "rtol" not in defaults(subject.cls):  # else it chooses its times as it goes
        require_runs(subject)


def _acceptance(subject: SchedulerUnderTest, config: dict[str, Any], name: str) -> str:
    try:
        scheduler = subject.make(**config)
        scheduler.set_timesteps(2)
        if hasattr(scheduler.timesteps, "__len__"):
            full_run(subject, scheduler, 0, noise(0))
    except CLEAR as refusal:
        return "" if re.search(rf"{name}\b", str(refusal)) else f"raises {type(refusal).__name__}: {refusal}"
    except Exception as error:  # noqa: BLE001 - which other error it is belongs into the report
        return f"raises {type(error).__name__}: {error}"
    return "is accepted"


def noise_is_refused_at_unknown_times(subject: SchedulerUnderTest, given: Given) -> None:
    """add_noise (or scale_noise) refuses times far outside of training, more times than samples, fewer but one, and
    times in two dimensions, with an error that is meant for a caller."""
    require_runs(subject)
    scheduler = subject.prepared(STEPS)
    first, count = float(scheduler.timesteps[0]), SHAPE[0]
    subject.add_noise(scheduler, noise(1), noise(2), scheduler.timesteps[0])  # raises NotApplicable if there is none
    times = {
        "a time far above training": torch.full((count,), 1e6 + first),
        "a time far below training": torch.full((count,), -1e6 - first),
        f"{count + 1} times for {count} samples": scheduler.timesteps[:1].repeat(count + 1),
        f"{count} times for {count + 1} samples": scheduler.timesteps[:1].repeat(count),
        "times in two dimensions": scheduler.timesteps[:1].repeat(count, 1),
    }
    problems = []
    for what, wanted in times.items():
        shape = (count + 1, *SHAPE[1:]) if what.endswith(f"{count + 1} samples") else SHAPE
        x0, drawn = noise(1, shape), noise(2, shape)
        wanted = wanted.to(scheduler.timesteps.dtype)
        try:
            if hasattr(scheduler, "add_noise"):
                scheduler.add_noise(x0, drawn, wanted)
            else:
                scheduler.scale_noise(x0, wanted, drawn)
        except CLEAR:
            continue
        except Exception as error:  # noqa: BLE001 - which other error it is belongs into the report
            problems.append(f"{what}: {type(error).__name__}: {error}")
        else:
            problems.append(f"{what}: accepted")
    if problems:
        raise Violation("; ".join(problems))


def inputs_are_scaled_for_the_expected_entry(subject: SchedulerUnderTest, given: Given) -> None:
    """Where scale_model_input can do without the timestep, it scales for the entry that the next step is expected at;
    in the dtype of the sample."""
    require_runs(subject)
    timestep = parameters(subject.cls, "scale_model_input").get("timestep")
    if timestep is None or timestep.default is timestep.empty:
        raise NotApplicable("scale_model_input takes no timestep, or needs one")
    scheduler = subject.prepared(STEPS)
    run = full_run(subject, subject.prepared(STEPS), 0)
    for index, t in enumerate(scheduler.timesteps[:3]):
        for dtype in (torch.float32, torch.float16, torch.float64):
            x, wanted = run.inputs[index].to(dtype), []
            for asked in ((), (t,)):
                fork = copy.deepcopy(scheduler)
                wanted.append(fork.scale_model_input(subject.churned(fork, x, t, generator=generators(0)), *asked))
            plain, named = wanted
            require_same(plain, named, f"the input in {dtype} without the timestep", step=index)
            if plain.dtype != dtype:
                raise Violation(f"the input for a sample in {dtype} is in {plain.dtype}", step=index)
        x = subject.churned(scheduler, run.inputs[index], t, generator=generators(0))
        scheduler.step(run.outputs[index], t, x)


CONTRACTS = (
    Contract(unusable_numbers_are_refused),
    Contract(noise_is_refused_at_unknown_times),
    Contract(inputs_are_scaled_for_the_expected_entry),
)
