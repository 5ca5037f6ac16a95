"""Bad inputs: refused at the edge with an error that a caller understands, and without a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SHAPE, SchedulerUnderTest, generators
from conformance.contracts.scheduler.support import STEPS, full_run, noise, require_runs, single_options

CLEAR = (ValueError, TypeError, NotImplementedError)
"""Errors that are meant for a caller; an IndexError or an AttributeError from within is an accident."""


def unusable_step_counts_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """set_timesteps refuses 0, negative and fractional numbers of steps, and what is no number, with ValueError or
    TypeError, the same one each time; and more steps than training timesteps unless it interpolates between them."""
    require_runs(subject)
    size = int(subject.make().config.get("num_train_timesteps", 1000))

    def asking(n: Any) -> Callable[[Any], Any]:
        return lambda scheduler: scheduler.set_timesteps(n)

    bad: dict[str, Any] = {"0": 0, "-1": -1, "1.5": 1.5, "'many'": "many"}
    _require_refused(subject, {f"set_timesteps({name})": asking(n) for name, n in bad.items()})
    scheduler = subject.make()
    try:
        scheduler.set_timesteps(size + 1)
    except CLEAR:
        return
    times = torch.as_tensor(scheduler.timesteps).double()
    if len(times) > size and not torch.as_tensor(scheduler.timesteps).is_floating_point():
        raise Violation(f"{size + 1} steps of {size} training timesteps are accepted")


def unusable_outputs_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """step refuses a model output that is None, no tensor, or of another batch, channel or image size than the sample
    (also one that could be broadcast), with ValueError or TypeError, or the RuntimeError by which torch says that sizes
    do not match; the same one each time."""
    require_runs(subject)
    x = noise(0)
    batch, channels, *sizes = SHAPE
    outputs: dict[str, Any] = {
        "None": None,
        "a number": 0.5,
        "another batch": noise(1, (batch + 1, channels, *sizes)),
        "a batch of one": noise(1, (1, channels, *sizes)),
        "another image": noise(1, (batch, channels, sizes[0] + 1, sizes[1])),
        "one channel": noise(1, (batch, 1, *sizes)),
    }
    _require_refused(
        subject,
        {f"a model output that is {name}": _stepping(value, x) for name, value in outputs.items()},
        allowed=(*CLEAR, RuntimeError),
    )


def unusable_timesteps_are_refused_by_step(subject: SchedulerUnderTest, given: Given) -> None:
    """step refuses a timestep far outside of training, NaN and None, with ValueError or TypeError, the same one each
    time."""
    require_runs(subject)
    x = noise(0)
    size = int(subject.make().config.get("num_train_timesteps", 1000))
    times: dict[str, Any] = {
        "far above": torch.tensor(100 * size + 7),
        "far below": torch.tensor(-100 * size - 7),
        "NaN": torch.tensor(float("nan")),
        "None": None,
    }
    _require_refused(subject, {f"a timestep that is {name}": _stepping(x, x, t) for name, t in times.items()})


def unusable_generators_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """Where step takes a generator, it refuses what is none, with ValueError or TypeError, if it draws."""
    require_runs(subject)
    if not subject.takes("step", "generator"):
        raise NotApplicable(f"step of {subject.name} takes no generator")
    options = {"eta": 1.0} if subject.takes("step", "eta") else {}
    source = generators(0)
    state = source.get_state()
    scheduler = subject.prepared(STEPS)
    x = subject.start(scheduler, 0)
    subject.run(scheduler, x, None, generator=source, stop=1, step_options=options)
    if torch.equal(state, source.get_state()):
        raise NotApplicable(f"the first step of {subject.name} draws nothing")
    bad = {"a number": 42, "text": "cpu"}
    _require_refused(
        subject,
        {f"a generator that is {name}": _stepping(x, x, generator=value, **options) for name, value in bad.items()},
        allowed=(*CLEAR, AttributeError),
    )


def unusable_noise_settings_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """Where step takes eta, it refuses one that is negative or NaN; where it takes variance_noise, also noise of
    another shape, what is no tensor, and noise together with a generator; with ValueError or TypeError, the same one
    each time; so it is with each option."""
    require_runs(subject)
    x = noise(0)
    calls: dict[str, Callable[[Any], Any]] = {}
    if subject.takes("step", "eta"):
        calls |= {f"eta={eta}": _stepping(x, x, eta=eta) for eta in (-0.5, float("nan"))}
    if subject.takes("step", "variance_noise"):
        calls["variance_noise of a batch of one"] = _stepping(x, x, variance_noise=noise(1, (1, *SHAPE[1:])))
        calls["variance_noise that is a number"] = _stepping(x, x, variance_noise=0.5)
        both = {"variance_noise": noise(1), "generator": generators(0)} if subject.takes("step", "generator") else None
        if both is not None:
            calls["variance_noise together with a generator"] = _stepping(x, x, **both)
    if not calls:
        raise NotApplicable(f"step of {subject.name} takes neither eta nor variance_noise")
    for config in single_options(subject):
        given.note("options", config)
        _require_refused(subject, calls, config=config)


_FIRST = object()


def _stepping(output: Any, x: torch.Tensor, t: Any = _FIRST, **options: Any) -> Callable[[Any], Any]:
    """A first step with these arguments, on a prepared scheduler."""

    def call(scheduler: Any) -> Any:
        scheduler.set_timesteps(STEPS)
        first = scheduler.timesteps[0]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, first)
        return scheduler.step(output, first if t is _FIRST else t, x, **options)

    return call


def _require_refused(
    subject: SchedulerUnderTest,
    calls: Mapping[str, Callable[[Any], Any]],
    allowed: tuple[type[Exception], ...] = CLEAR,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Each call raises one of `allowed`, with the same words twice on one object, which then runs as a fresh one."""
    problems = []
    x = noise(5)
    wanted = full_run(subject, subject.prepared(STEPS, **config), 0, x).final
    for name, call in calls.items():
        scheduler = subject.make(**config)
        errors = []
        for attempt in (1, 2):
            try:
                call(scheduler)
            except Exception as error:  # noqa: BLE001 - which error it is is the point
                errors.append(error)
            else:
                problems.append(f"{name} is accepted" if attempt == 1 else f"{name} is accepted the second time")
                break
        if len(errors) < 2:
            continue
        first, second = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}" for error in errors
        )
        if not isinstance(errors[0], allowed):
            problems.append(f"{name}: {first}")
        elif first != second:
            problems.append(f"{name}: first {first}, then {second}")
        else:
            scheduler.set_timesteps(STEPS)
            require_same(full_run(subject, scheduler, 0, x).final, wanted, f"a run after {name}")
    if problems:
        raise Violation("; ".join(problems))


CONTRACTS = (
    Contract(unusable_step_counts_are_refused),
    Contract(unusable_outputs_are_refused),
    Contract(unusable_timesteps_are_refused_by_step),
    Contract(unusable_generators_are_refused),
    Contract(unusable_noise_settings_are_refused),
)
