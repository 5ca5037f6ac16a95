"""Contracts of image-to-image: sampling that begins at a later entry of the list continues from there.

They take the trajectory x_i = a_i·x_0 + b_i·noise with one fixed x_0 and noise, and a network that answers by time
alone, rightly for this trajectory. Along it every solver, of any order and with any history, lands on the next level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SchedulerUnderTest, generators
from conformance.contracts.scheduler.randomness import is_stochastic
from conformance.contracts.scheduler.support import REFUSALS, noise, require_runs, sample_of, why_not

FEW, MANY = 10, 30
"""Steps of a run as the subject is, and under the rules for noise levels that repeat timesteps at many steps."""

ROUNDING = 1e-4
"""Relative to the largest sample: rounding of 1e-7, amplified by at most 1/√ᾱ_T = 160 and a multistep's weights."""

GRID_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "skip_prk_steps")
"""Options that change which entries the list has; some make it repeat timesteps."""


@dataclass(frozen=True)
class _Straight:
    """The fixed trajectory of a configuration and a number of steps, by entry of `timesteps`."""

    subject: SchedulerUnderTest
    config: dict[str, Any]
    steps: int
    samples: list[torch.Tensor]
    outputs: list[torch.Tensor]

    def scheduler(self) -> Any:
        """A fresh one."""
        return self.subject.prepared(self.steps, **self.config)


def start_is_found_by_its_timestep(subject: SchedulerUnderTest, given: Given) -> None:
    """A fresh scheduler whose first step is at a later timestep does what it does on the way there.

    Where timesteps repeat, the first of them that begins a step is meant.
    """
    straight = _straight(subject, given)
    scheduler = straight.scheduler()
    times = scheduler.timesteps.tolist()
    order = _order(straight)
    continued = _continued(straight)
    for index in range(0, len(times), order):
        first = min(entry for entry in range(0, len(times), order) if times[entry] == times[index])
        found = _first_step(straight, index, by_index=False)
        _require_step(found, continued[first], straight, index, f"beginning by the timestep {times[index]:g},")


def start_is_found_by_its_index(subject: SchedulerUnderTest, given: Given) -> None:
    """After `set_begin_index(i)`, the first step is that of entry i, also where timesteps repeat."""
    _require_begin_index(subject)
    straight = _straight(subject, given)
    continued = _continued(straight)
    for index in range(0, len(straight.samples), _order(straight)):
        found = _first_step(straight, index, by_index=True)
        _require_step(found, continued[index], straight, index, "after set_begin_index,")


def start_within_a_step_is_refused_or_right(subject: SchedulerUnderTest, given: Given) -> None:
    """Where a step takes several evaluations, beginning at one of the later ones ends where a full run ends, or raises
    a ValueError.
    """
    straight = _straight(subject, given)
    scheduler = straight.scheduler()
    order = getattr(scheduler, "order", 1)
    count = len(scheduler.timesteps)
    if order == 1 and count == straight.steps:
        raise NotApplicable("every step is one evaluation")
    if is_stochastic(subject, straight.config, {}):
        raise NotApplicable("steps add noise, which a network that answers by time alone does not see")
    wanted = _follow(straight, 0, by_index=False)
    for index in range(1, count):
        if order > 1 and index % order == 0:
            continue  # begins a step
        found = _follow(straight, index, by_index=hasattr(scheduler, "set_begin_index"))
        if found is not None and wanted is not None:
            scale = max(float(straight.samples[index].abs().amax()), 1.0)
            bound = ROUNDING * scale / float(wanted.abs().amax())
            require_close(found, wanted, f"the result of beginning at entry {index} of {count}", bound=bound)


def _require_begin_index(subject: SchedulerUnderTest) -> None:
    if not hasattr(subject.cls, "set_begin_index"):
        raise NotApplicable(f"{subject.name} has no set_begin_index")


def _straight(subject: SchedulerUnderTest, given: Given) -> _Straight:
    """The trajectory of the subject as it is, or with an option that changes the list."""
    require_runs(subject)
    configs = [{name: True} for name in GRID_OPTIONS if True in subject.options.get(name, ())]
    configs = [{}, *(config for config in configs if not why_not(subject, config))]
    config = given.draw("config", st.sampled_from(configs))
    steps = MANY if config else FEW
    given.note("steps", steps)
    scheduler = subject.prepared(steps, **config)
    x0, drawn = 0.8 * torch.sin(noise(1)), noise(2)
    samples, outputs = [], []
    for index, timestep in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "set_begin_index") and _begins(scheduler, index):
            scheduler.set_begin_index(index)
        a, b = subject.levels(scheduler, timestep)
        x = a * x0 + b * drawn
        samples.append(x)
        outputs.append(subject.output_for(scheduler, x, x0, timestep))
    return _Straight(subject, config, steps, samples, outputs)


def _begins(scheduler: Any, index: int) -> bool:
    try:
        scheduler.set_begin_index(index)
    except REFUSALS:
        return False
    return True


def _step(straight: _Straight, scheduler: Any, index: int, seed: int, x: torch.Tensor | None = None) -> torch.Tensor:
    """The step at an entry, from x, by default the trajectory's sample."""
    timestep = scheduler.timesteps[index]
    x = straight.samples[index] if x is None else x
    options = {"generator": generators(seed)} if straight.subject.takes("step", "generator") else {}
    torch.default_generator.manual_seed(seed)
    x = straight.subject.churned(scheduler, x, timestep, **options)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, timestep)
    return sample_of(scheduler.step(straight.outputs[index], timestep, x, **options))


def _continued(straight: _Straight) -> list[torch.Tensor]:
    """What each step makes of the trajectory's sample in a run from the first entry.

    Raises NotApplicable for a sampler whose steps depend on the noise of earlier ones: a path, or a corrector of them.
    """
    runs = []
    for even in (100, 900):  # seeds of every other step, so that each odd one follows another noise
        scheduler = straight.scheduler()
        if hasattr(scheduler, "set_begin_index") and bool(scheduler.timesteps[0] == scheduler.timesteps[1]):
            scheduler.set_begin_index(0)  # else the first timestep alone says where a run begins
        seeds = [(100 if index % 2 else even) + index for index in range(len(straight.samples))]
        runs.append([_step(straight, scheduler, index, seed) for index, seed in enumerate(seeds)])
    if not all(torch.equal(a, b) for a, b in zip(runs[0][1::2], runs[1][1::2], strict=True)):
        raise NotApplicable("steps depend on the noise of earlier ones")
    return runs[0]


def _first_step(straight: _Straight, index: int, *, by_index: bool) -> torch.Tensor | None:
    """What a fresh scheduler makes of the trajectory's sample at an entry; None where it refuses to begin there."""
    scheduler = straight.scheduler()
    try:
        if by_index:
            scheduler.set_begin_index(index)
        return _step(straight, scheduler, index, 100 + index)
    except REFUSALS:
        return None


def _follow(straight: _Straight, begin: int, *, by_index: bool) -> torch.Tensor | None:
    """The end of a run from an entry; None where the scheduler refuses to begin there."""
    scheduler, x = straight.scheduler(), straight.samples[begin]
    for index in range(begin, len(straight.samples)):
        try:
            if index == begin and by_index:
                scheduler.set_begin_index(begin)
            x = _step(straight, scheduler, index, 100 + index, x)
        except REFUSALS:
            return None
    return x


def _order(straight: _Straight) -> int:
    """How many entries apart steps begin; raises NotApplicable where the list does not tell."""
    scheduler = straight.scheduler()
    order = getattr(scheduler, "order", 1)
    if order == 1 and len(scheduler.timesteps) != straight.steps:
        raise NotApplicable(
            f"{straight.steps} steps are {len(scheduler.timesteps)} evaluations: which of them begin a step?"
        )
    return order


def _require_step(found: torch.Tensor | None, wanted: torch.Tensor, straight: _Straight, index: int, what: str) -> None:
    if found is None:
        raise Violation(f"{what} the step of entry {index} is refused", step=index)
    scale = float(straight.samples[index].abs().amax())
    bound = ROUNDING * max(1.0, scale / float(wanted.abs().amax()))
    require_close(found, wanted, f"{what} the step of entry {index}", bound=bound, step=index)


CONTRACTS = (
    Contract(start_is_found_by_its_timestep, examples=6),
    Contract(start_is_found_by_its_index, examples=6),
    Contract(start_within_a_step_is_refused_or_right, examples=6),
)
