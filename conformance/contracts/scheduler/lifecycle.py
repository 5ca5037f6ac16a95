"""Contracts of a scheduler's life: what it did before leaves no trace, copies are independent, tables are constants."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_finite, require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SchedulerUnderTest, generators
from conformance.contracts.scheduler.support import (
    REFUSALS,
    STEPS,
    full_run,
    noise,
    require_runs,
    sample_of,
    single_options,
    some_config,
    some_step_options,
    tables,
)


def runs_as_it_is(subject: SchedulerUnderTest, given: Given) -> None:
    """A short run of the scheduler as it is given ends with finite numbers."""
    subject.require_common_step()
    scheduler = subject.prepared(STEPS)
    given.note("steps", STEPS)
    trajectory = full_run(subject, scheduler, 0)
    for index, sample in enumerate(trajectory.samples):
        require_finite(sample, "the sample", step=index)


def second_run_equals_first(subject: SchedulerUnderTest, given: Given) -> None:
    """A second run with the same scheduler gives what the first gave, also after runs with other numbers of steps; so
    it is with each option.

    Multistep histories, noise samplers and options that `set_timesteps` changes for good break it.
    """
    require_runs(subject)
    for config in single_options(subject):
        given.note("config", config)
        first = full_run(subject, subject.prepared(STEPS, **config), 0)
        scheduler = subject.prepared(STEPS + 2, **config)
        for other in (STEPS + 2, STEPS - 2, STEPS):
            given.note("steps_before", other)
            try:
                scheduler.set_timesteps(other)
            except REFUSALS:
                continue
            full_run(subject, scheduler, 1)
            scheduler.set_timesteps(STEPS)
            second = full_run(subject, scheduler, 0)
            for index, (found, wanted) in enumerate(zip(second.samples, first.samples, strict=True)):
                require_same(found, wanted, "the second run", step=index)
        if given.out_of_time:
            break


def interruptions_leave_no_trace(subject: SchedulerUnderTest, given: Given) -> None:
    """Using `add_noise`, copying the scheduler and running the copy or the original elsewhere, before every step of a
    run, does not change the run.
    """
    config, options, seed = some_config(subject, given), some_step_options(subject, given), given.seed()
    action = given.draw("action", st.sampled_from(("add_noise", "run a copy", "continue with a copy")))
    wanted = full_run(subject, subject.prepared(STEPS, **config), seed, step_options=options)
    scheduler, generator = subject.prepared(STEPS, **config), generators(seed)
    x = subject.start(scheduler, seed)
    torch.default_generator.manual_seed(seed)
    for index in range(len(scheduler.timesteps)):
        with torch.random.fork_rng(devices=[]):
            if action == "add_noise":
                _use_forward_process(subject, scheduler, (index + 2) % len(scheduler.timesteps))
            else:
                twin = copy.deepcopy(scheduler)
                twin, scheduler = (twin, scheduler) if action == "run a copy" else (scheduler, twin)
                twin.set_timesteps(STEPS + 1)
                full_run(subject, twin, seed + 1, step_options=options)
        part = subject.run(scheduler, x, None, generator=generator, begin=index, stop=index + 1, step_options=options)
        x = part.final
        require_same(x, wanted.samples[index], f"the run with `{action}` before every step", step=index)


def _use_forward_process(subject: SchedulerUnderTest, scheduler: Any, entry: int) -> bool:
    """Whether the scheduler has one."""
    try:
        subject.add_noise(scheduler, noise(3), noise(4), scheduler.timesteps[entry])
    except NotApplicable:
        return False
    return True


def early_step_is_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """A step before `set_timesteps` raises a ValueError that says so, or is a step of the training grid."""
    require_runs(subject)
    scheduler, prepared = subject.make(), subject.prepared(STEPS)
    x = subject.start(prepared, 0)
    output = subject.some_output(prepared, x, prepared.timesteps[0])
    try:
        timesteps = getattr(scheduler, "timesteps", None)
        timestep = prepared.timesteps[0] if timesteps is None or not len(timesteps) else timesteps[0]
        result = scheduler.step(output, timestep, x)
    except (ValueError, RuntimeError) as error:
        if not str(error).strip():
            raise Violation(f"{type(error).__name__} without a message") from None
        return
    except Exception as error:  # noqa: BLE001 - whatever the subject raises is what is reported
        raise Violation(
            f"wanted a ValueError that says to call set_timesteps, found {type(error).__name__}: {error}"
        ) from None
    require_finite(sample_of(result), "the sample after a step before set_timesteps", step=0)


def tables_are_constant(subject: SchedulerUnderTest, given: Given) -> None:
    """Neither steps nor `add_noise`, in any precision, change the tables of the scheduler or their precision, which is
    float32 at least.
    """
    config = some_config(subject, given)
    dtype = given.draw("dtype", st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64)))
    scheduler = subject.prepared(STEPS, **config)
    before = tables(scheduler)
    for name, table in before.items():
        if table.dtype in (torch.float16, torch.bfloat16):
            raise Violation(f"the table `{name}` is {table.dtype}")
    x = subject.start(scheduler, given.seed(), dtype=dtype)
    try:
        full_run(subject, scheduler, 0, x)
        for timestep in scheduler.timesteps[:2]:
            subject.add_noise(scheduler, x, noise(1, tuple(x.shape), dtype), timestep)
    except NotApplicable:
        pass  # no forward process: the steps were taken
    after = tables(scheduler)
    for name, table in before.items():
        if name not in after:
            raise Violation(f"the table `{name}` is gone after a run in {dtype}")
        require_same(after[name], table, f"the table `{name}` after a run in {dtype}")


def life_cycle(subject: SchedulerUnderTest, given: Given) -> None:
    """After any sequence of set_timesteps, step, add_noise, saving and loading, copying and reuse, every step is that
    of a fresh scheduler with the same configuration.
    """
    require_runs(subject)
    machine = type("Life", (_Life,), {"subject": subject, "report": given, "references": {}})
    if given.profile.seed is not None:
        machine = seeded(given.profile.seed)(machine)
    run_state_machine_as_test(machine, settings=given.profile.search(10, stateful_step_count=8))


class _Life(RuleBasedStateMachine):
    """One life. Every step is compared at once: it gets the inputs and draws of the fresh scheduler's step."""

    subject: SchedulerUnderTest
    report: Given
    references: dict[tuple[str, int], list[tuple[torch.Tensor, torch.Tensor]]]

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.steps = self.done = 0  # no timesteps yet

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.report.stop_if_out_of_time()
        given = Given(data, self.report.profile, self.report.began)
        self.config = some_config(self.subject, given)
        given.note("calls", self.calls)
        self.report.drawn = given.drawn
        self.scheduler = self.subject.make(**self.config)

    @rule(steps=st.sampled_from((STEPS, STEPS - 1, STEPS + 2)))
    def choose(self, steps: int) -> None:
        self.calls.append(f"set_timesteps({steps})")
        self.scheduler.set_timesteps(steps)
        self.steps, self.done = steps, 0

    @precondition(lambda self: self.steps and self.done < len(self._reference()))
    @rule(count=st.sampled_from((1, 2, 99)))
    def advance(self, count: int) -> None:
        """One step, two, or all but the last."""
        left = len(self._reference()) - self.done
        for _ in range(max(1, min(count, left - 1))):
            self.calls.append("step")
            self._compare_step()

    @precondition(lambda self: self.steps)
    @rule()
    def run_through(self) -> None:
        """Start anew and run to the end."""
        self.calls.append(f"set_timesteps({self.steps}), full run")
        self.scheduler.set_timesteps(self.steps)
        self.done = 0
        for _ in self._reference():
            self._compare_step()

    @precondition(lambda self: self.steps)
    @rule(entry=st.integers(0, 2))
    def use_forward_process(self, entry: int) -> None:
        if _use_forward_process(self.subject, self.scheduler, entry):
            self.calls.append(f"add_noise(timesteps[{entry}])")

    @rule()
    def reload(self) -> None:
        """Through a folder where the class has `save_pretrained`; then it has no timesteps yet."""
        cls = type(self.scheduler)
        if not (hasattr(cls, "save_pretrained") and hasattr(cls, "from_pretrained")):
            return
        self.calls.append("save, load")
        with tempfile.TemporaryDirectory() as folder:
            self.scheduler.save_pretrained(folder)
            self.scheduler = cls.from_pretrained(folder)
        self.steps = self.done = 0

    @rule()
    def leave_to_copy(self) -> None:
        """Continue with a copy; what the original does meanwhile does not reach it."""
        self.calls.append("deepcopy, use the original otherwise")
        original, self.scheduler = self.scheduler, copy.deepcopy(self.scheduler)
        original.set_timesteps(STEPS + 1)
        full_run(self.subject, original, 7)

    def _compare_step(self) -> None:
        x, wanted = self._reference()[self.done]
        found = self._step(self.scheduler, x, self.done)
        require_same(found, wanted, f"after {', '.join(self.calls)}: step {self.done}", step=self.done)
        self.done += 1

    def _step(self, scheduler: Any, x: torch.Tensor, index: int) -> torch.Tensor:
        return full_run(self.subject, scheduler, index, x, begin=index, stop=index + 1).final

    def _reference(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For every step of a fresh scheduler: the sample before and after."""
        key = (repr(self.config), self.steps)
        if key not in self.references:
            scheduler = self.subject.prepared(self.steps, **self.config)
            x, pairs = self.subject.start(scheduler, 0), []
            for index in range(len(scheduler.timesteps)):
                before, x = x, self._step(scheduler, x, index)
                pairs.append((before, x))
            self.references[key] = pairs
        return self.references[key]


CONTRACTS = (
    Contract(runs_as_it_is),
    Contract(second_run_equals_first),
    Contract(interruptions_leave_no_trace, examples=8),
    Contract(early_step_is_refused),
    Contract(tables_are_constant, examples=8),
    Contract(life_cycle),
)
