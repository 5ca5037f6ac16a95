"""Changing one thing in an implementation under test, whatever it is.

A trial says what it changes as an `Alteration`; `altered` gives the implementation with that change, made on the
objects that it builds. Alterations add up: an altered implementation can be altered again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch

from conformance.fixture import Subject
from conformance.implementations.base import Implementation, Scheduler

NETWORKS = ("unet", "transformer", "model")
"""Where pipelines keep the network that is called at every step."""


class Alteration:
    """What a trial changes; every hook leaves its object as it is unless a subclass overrides it.

    Attributes:
        replaces_tables: it puts whole tables in, so it must come before what moves or reads them.
    """

    replaces_tables = False

    def subject(self, subject: Subject) -> Subject:
        """What is to be built, and with which options it is called."""
        return subject

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        """Change a scheduler in place, before `set_timesteps`."""

    def building(self, build: Callable[[], Any]) -> Any:
        """Run the construction of a scheduler, or its `set_timesteps`."""
        return build()

    def time(self, call: int, time: float) -> float:
        """What the network is given as time at its `call`-th evaluation instead of `time`."""
        return time

    def network(self, network: torch.nn.Module) -> None:
        """Change the network of a pipeline in place."""

    def call_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of a pipeline's call."""
        return options


def altered(implementation: Implementation, alteration: Alteration) -> Implementation:
    """`implementation` with the alteration applied to all that it builds; the given object is left alone."""
    changed = copy.copy(implementation)
    changed.__class__ = _altered_class(type(implementation), alteration)
    return changed


def _altered_class(base: Any, alteration: Alteration) -> Any:
    """A class in front of an implementation's own, `base`, whose methods it reaches as `super()`."""

    class Altered(base):  # type: ignore[misc]
        def scheduler(self, subject: Subject) -> Scheduler:
            build = super().scheduler
            scheduler: Scheduler = alteration.building(lambda: build(alteration.subject(subject)))
            _alter_scheduler(scheduler, subject, alteration)
            return scheduler

        def set_timesteps(self, scheduler: Scheduler, subject: Subject) -> None:
            choose = super().set_timesteps
            alteration.building(lambda: choose(scheduler, alteration.subject(subject)))

        def step_options(self, scheduler: Scheduler, subject: Subject) -> dict[str, Any]:
            return dict(super().step_options(scheduler, alteration.subject(subject)))

        def network_times(self, scheduler: Scheduler) -> list[float]:
            return [alteration.time(call, time) for call, time in enumerate(super().network_times(scheduler))]

        def call_options(self, subject: Subject) -> dict[str, Any]:
            return alteration.call_options(super().call_options(alteration.subject(subject)))

        def pipeline(self, subject: Subject, *files: Any, **named: Any) -> Any:
            pipeline = super().pipeline(alteration.subject(subject), *files, **named)
            _alter_pipeline(pipeline, subject, alteration)
            return pipeline

        def pipeline_around(self, subject: Subject, network: torch.nn.Module) -> Any | None:
            pipeline = super().pipeline_around(alteration.subject(subject), network)
            if pipeline is not None:
                _alter_pipeline(pipeline, subject, alteration)
            return pipeline

    return Altered


def _alter_pipeline(pipeline: Any, subject: Subject, alteration: Alteration) -> None:
    _alter_scheduler(pipeline.scheduler, subject, alteration)
    network = network_of(pipeline)
    if network is None:
        return
    alteration.network(network)
    if type(alteration).time is not Alteration.time:
        calls = count()
        network.register_forward_pre_hook(lambda module, inputs: _at_other_times(alteration, calls, inputs))


def _alter_scheduler(scheduler: Any, subject: Subject, alteration: Alteration) -> None:
    # A pipeline may be built around a scheduler that the implementation has made, and so altered, already.
    made_by = vars(scheduler).setdefault("_alterations", [])
    if not any(earlier is alteration for earlier in made_by):
        made_by.append(alteration)
        alteration.scheduler(scheduler, subject)


def _at_other_times(alteration: Alteration, calls: Iterator[int], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The positional inputs (x, t, ...) of a network with t changed; t keeps its type and shape."""
    if len(inputs) < 2:
        return inputs
    call, given = next(calls), torch.as_tensor(inputs[1])
    times = [alteration.time(call, float(t)) for t in given.reshape(-1)]
    changed = torch.tensor(times, device=given.device).reshape(given.shape)
    whole = not given.is_floating_point() and bool((changed == changed.round()).all())
    return (inputs[0], changed.to(given.dtype) if whole or given.is_floating_point() else changed, *inputs[2:])


def network_of(pipeline: Any) -> torch.nn.Module | None:
    """The network that a pipeline calls at every step."""
    found = (getattr(pipeline, name, None) for name in NETWORKS)
    return next((network for network in found if isinstance(network, torch.nn.Module)), None)


def specialise(thing: Any, **members: Any) -> None:
    """Give one object methods or properties of its own, in front of its class's; `wrapped` reaches what they hide."""
    thing.__class__ = type(type(thing).__name__, (type(thing),), members)


def wrap_step(scheduler: Any, around: Callable[..., Any]) -> None:
    """Let `around(step, model_output, timestep, sample, **options)` answer the scheduler's `step`.

    `step` is the scheduler's own. The signature stays, so that nobody notices the difference.
    """
    own = type(scheduler).step

    @wraps(own)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, *arguments: Any, **options: Any) -> Any:
        def bound(output: Any, t: Any, x: Any, **given: Any) -> Any:
            return own(self, output, t, x, *arguments, **given)

        return around(bound, model_output, timestep, sample, **options)

    specialise(scheduler, step=step)


def after_timesteps(scheduler: Any, then: Callable[[], None]) -> None:
    """Call `then()` after every `set_timesteps` of the scheduler."""
    own = type(scheduler).set_timesteps

    @wraps(own)
    def set_timesteps(self: Any, *arguments: Any, **options: Any) -> None:
        own(self, *arguments, **options)
        then()

    specialise(scheduler, set_timesteps=set_timesteps)


def fix_attribute(scheduler: Any, name: str, value: Any) -> None:
    """Let the attribute have this value for good: assignments, also those of the scheduler itself, have no effect."""
    specialise(scheduler, **{name: property(lambda self: value, lambda self, other: None)})


def map_result(result: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """What a step returned, with `change` applied to its tensors; a tuple stays one."""
    if isinstance(result, tuple):
        return tuple(change(value) if isinstance(value, torch.Tensor) else value for value in result)
    fields: Mapping[str, Any] = dict(result) if isinstance(result, Mapping) else vars(result)
    return SimpleNamespace(**{k: change(v) if isinstance(v, torch.Tensor) else v for k, v in fields.items()})
