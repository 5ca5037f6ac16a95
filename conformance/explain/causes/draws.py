"""The random numbers: how many are drawn, and in which order they are used."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from conformance.explain.alteration import Alteration, after_timesteps, wrap_step
from conformance.explain.state import DRAWS, State
from conformance.explain.trial import Cause, Repair
from conformance.fixture import Subject
from conformance.tape import draws_by_call, replayed_draws


class _FollowingTheTape(Alteration):
    """After every step the generator is put where the original's would be."""

    def __init__(self, shapes: list[list[tuple[int, ...]]]) -> None:
        self._shapes = shapes
        self.differences: dict[int, tuple[int, int]] = {}

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        calls = _Counter(scheduler)

        def stepped(step: Any, output: torch.Tensor, t: Any, x: torch.Tensor, **options: Any) -> Any:
            call, generator = calls.next(), options.get("generator")
            if not isinstance(generator, torch.Generator) or call >= len(self._shapes):
                return step(output, t, x, **options)
            before = generator.get_state()
            result = step(output, t, x, **options)
            after = generator.get_state()
            generator.set_state(before)
            made = 0
            while made < 4 and not torch.equal(generator.get_state(), after):
                torch.randn(tuple(x.shape), generator=generator)
                made += 1
            generator.set_state(before)
            for shape in self._shapes[call]:
                torch.randn(shape, generator=generator)
            if made != len(self._shapes[call]):
                self.differences[call] = (made, len(self._shapes[call]))
            return result

        wrap_step(scheduler, stepped)

    def note(self) -> str:
        if not self.differences:
            return ""
        steps = sorted(self.differences)
        made, wanted = self.differences[steps[0]]
        return f"{made} instead of {wanted} in {len(steps)} of {len(self._shapes)} steps, first in step {steps[0]}"


class _DrawnForIt(Alteration):
    """The numbers of every step are drawn beforehand, in the original's order, and handed to it."""

    def __init__(self, shapes: list[list[tuple[int, ...]]]) -> None:
        self._shapes = shapes

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        calls = _Counter(scheduler)
        takes_noise = "variance_noise" in inspect.signature(scheduler.step).parameters

        def stepped(step: Any, output: torch.Tensor, t: Any, x: torch.Tensor, **options: Any) -> Any:
            call, generator = calls.next(), options.get("generator")
            if not isinstance(generator, torch.Generator) or call >= len(self._shapes) or not self._shapes[call]:
                return step(output, t, x, **options)
            noises = [torch.randn(shape, generator=generator).to(x) for shape in self._shapes[call]]
            if takes_noise and len(noises) == 1:
                return step(output, t, x, **{**options, "generator": None, "variance_noise": noises[0]})
            with replayed_draws(noises) if noises else nullcontext():
                return step(output, t, x, **options)

        wrap_step(scheduler, stepped)


class _Counter:
    """The number of the step since `set_timesteps`."""

    def __init__(self, scheduler: Any) -> None:
        self._calls = 0
        after_timesteps(scheduler, self._restart)

    def _restart(self) -> None:
        self._calls = 0

    def next(self) -> int:
        self._calls += 1
        return self._calls - 1


def trials(state: State) -> Iterator[Repair]:
    if state.target.output not in (DRAWS, "seeded"):
        return
    tape, recorded = state.fixture.manifest.tape, state.fixture.tensors
    calls = len(recorded["times"])
    values = draws_by_call(tape.draws, list(recorded["draws"]), calls)
    shapes = [[tuple(value.shape) for value in step] for step in values]
    if state.result.draws_match is False:
        following = _FollowingTheTape(shapes)
        statement = "a step draws more or fewer random numbers than the original's"
        change = "the generator put in its place after every step"
        yield Repair(statement, change, following, following.note)
    statement = "the random numbers of a step are used in another order"
    change = "the numbers of every step drawn for it"
    yield Repair(statement, change, _DrawnForIt(shapes))


CAUSE = Cause("RNG order", trials)
