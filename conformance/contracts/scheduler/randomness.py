"""Contracts of randomness: all of it comes from the generator, in an order and number that no option changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close, require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SHAPE, SchedulerUnderTest, generators
from conformance.contracts.scheduler.support import (
    STEPS,
    STOCHASTIC_OPTIONS,
    feed,
    full_run,
    one_step,
    record,
    require_runs,
    some_config,
    some_step_options,
)


def is_stochastic(subject: SchedulerUnderTest, config: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether the seed changes the result, with these options of the class and these arguments of `step`."""
    return not torch.equal(*(_result(subject, config, options, seed, seed) for seed in (1, 2)))


def draws_globally(subject: SchedulerUnderTest, config: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether the global random state changes the result although a generator is given where one is taken."""
    return not torch.equal(*(_result(subject, config, options, 1, seed) for seed in (1, 2)))


def _result(
    subject: SchedulerUnderTest, config: dict[str, Any], options: dict[str, Any], seed: int, global_seed: int
) -> torch.Tensor:
    key = f"result {sorted(config.items())!r} {sorted(options.items())!r} {seed} {global_seed}"
    if key not in subject.results:
        torch.default_generator.manual_seed(global_seed)
        scheduler = subject.prepared(STEPS, **config)
        x = subject.start(scheduler, 0)
        run = subject.run(scheduler, x, None, generator=generators(seed), step_options=options)
        subject.results[key] = run.final
    return subject.results[key]


def same_seed_gives_the_same_result(subject: SchedulerUnderTest, given: Given) -> None:
    """The same generator seed gives the same result, whatever the global random state is."""
    _require_generator(subject)
    config, options, seed = some_config(subject, given), some_step_options(subject, given), given.seed()
    results = []
    for global_seed in (1, 2):
        torch.default_generator.manual_seed(global_seed)
        scheduler = subject.prepared(STEPS, **config)
        x = subject.start(scheduler, 0)
        results.append(subject.run(scheduler, x, None, generator=generators(seed), step_options=options))
    for index, (found, wanted) in enumerate(zip(results[1].samples, results[0].samples, strict=True)):
        require_same(found, wanted, "the result for the same seed and another global random state", step=index)


def noise_options_make_noise(subject: SchedulerUnderTest, given: Given) -> None:
    """At zero, an argument of `step` that controls noise makes the result independent of the seed; at one, the seed
    matters.
    """
    require_runs(subject)
    offered = {name: values for name, values in STOCHASTIC_OPTIONS.items() if subject.takes("step", name)}
    if not offered:
        raise NotApplicable(f"step takes none of {', '.join(STOCHASTIC_OPTIONS)}")
    for name, (off, on) in offered.items():
        given.note("step", {name: off})
        if is_stochastic(subject, {}, {name: off}):
            raise Violation(f"{name}={off:g}, but another seed gives another result")
        given.note("step", {name: on})
        if not is_stochastic(subject, {}, {name: on}):
            raise Violation(f"{name}={on:g}, but another seed gives the same result")


def global_random_state_is_untouched(subject: SchedulerUnderTest, given: Given) -> None:
    """Neither making a scheduler nor `set_timesteps` nor, with a generator, `step` changes the global random state of
    torch, NumPy or Python.
    """
    config, options = some_config(subject, given), some_step_options(subject, given)
    holder: list[Any] = []
    _require_untouched(lambda: holder.append(subject.prepared(STEPS, **config)), "making a scheduler or set_timesteps")
    scheduler = holder[0]
    x = subject.start(scheduler, 0)
    takes = subject.takes("step", "generator")
    _require_untouched(
        lambda: subject.run(scheduler, x, None, generator=generators(0), step_options=options),
        "step with a generator" if takes else "step, which takes no generator,",
    )


def _require_untouched(action: Callable[[], Any], what: str) -> None:
    torch.default_generator.manual_seed(987)
    np.random.seed(987)
    random.seed(987)  # states that no code sets by itself; `Contract.hold` restores the caller's
    before = _global_states()
    action()
    after = _global_states()
    for library, a, b in zip(("torch", "NumPy", "Python"), after, before, strict=True):
        if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
            raise Violation(f"{what} changes the global random state of {library}")


def _global_states() -> tuple[torch.Tensor, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()


CHURN = {"s_churn": (0.0, 2.0)}
"""An option of the constructor, where noise is added ahead of the network."""


def draws_do_not_depend_on_options(subject: SchedulerUnderTest, given: Given) -> None:
    """A step takes as many numbers from the generator at zero noise as at full noise.

    Otherwise the next image of a seed depends on an option of this one, and the stream of the original, which draws in
    every step, is lost.
    """
    _require_generator(subject)
    config = some_config(subject, given)
    offered = {name: values for name, values in STOCHASTIC_OPTIONS.items() if subject.takes("step", name)}
    made_with = {name: values for name, values in CHURN.items() if subject.takes("__init__", name)}
    if not offered and not made_with:
        raise NotApplicable(f"step takes none of {', '.join(STOCHASTIC_OPTIONS)}, nor is it made with s_churn")
    for name, (off, on) in (offered | made_with).items():
        streams = {
            value: _states(subject, config | {name: value}, {})
            if name in made_with
            else _states(subject, config, {name: value})
            for value in (off, on)
        }
        for index, (a, b) in enumerate(zip(streams[off], streams[on], strict=True)):
            if not torch.equal(a, b):
                raise Violation(f"the step draws another amount of noise for {name}={off:g} than for {name}={on:g}",
                                step=index)  # fmt: skip


def _states(subject: SchedulerUnderTest, config: dict[str, Any], options: dict[str, Any]) -> list[torch.Tensor]:
    """The state of the generator after each step."""
    generator, states = generators(0), []
    scheduler = subject.prepared(STEPS, **config)
    subject.run(
        scheduler, subject.start(scheduler, 0), None, generator=generator, step_options=options,
        after=lambda index, sample: states.append(generator.get_state()),
    )  # fmt: skip
    return states


def noise_can_be_given(subject: SchedulerUnderTest, given: Given) -> None:
    """`step(variance_noise=z)` is the step that draws z itself."""
    if not subject.takes("step", "variance_noise"):
        raise NotApplicable("step takes no variance_noise")
    _require_generator(subject)
    config, seed = some_config(subject, given), given.seed()
    options = {name: values[-1] for name, values in STOCHASTIC_OPTIONS.items() if subject.takes("step", name)}
    if not is_stochastic(subject, config, options):
        raise NotApplicable("the seed does not change the result")
    scheduler = subject.prepared(STEPS, **config)
    run = full_run(subject, scheduler, seed, step_options=options)
    for index in (0, len(run.samples) - 2):
        scheduler = subject.prepared(STEPS, **config)
        subject.run(scheduler, run.inputs[0], None, generator=generators(seed), stop=index, step_options=options)
        drawn = torch.randn(SHAPE, generator=generators(seed))
        given.note("step", {**options, "index": index})
        output, timestep, x = run.outputs[index], scheduler.timesteps[index], run.inputs[index]
        source = generators(seed)
        wanted = one_step(subject, scheduler, output, timestep, x, source, **options)
        if torch.equal(source.get_state(), generators(seed).get_state()):
            continue  # an evaluation within a step, after which nothing is drawn
        found = one_step(subject, scheduler, output, timestep, x, variance_noise=drawn, **options)
        require_close(found, wanted, "the step with the noise given instead of drawn", bound=1e-6, step=index)


def generators_are_counted(subject: SchedulerUnderTest, given: Given) -> None:
    """A list of generators that is shorter or longer than the batch raises a ValueError."""
    _require_generator(subject)
    require_runs(subject)
    options = {name: values[-1] for name, values in STOCHASTIC_OPTIONS.items() if subject.takes("step", name)}
    if not is_stochastic(subject, {}, options):
        raise NotApplicable("the seed does not change the result")
    shape = (3, *SHAPE[1:])  # a list of one generator may stand for that generator, so take at least two
    for count in (2, 4):
        given.note("generators", count)
        what = f"{count} generators for a batch of {shape[0]}"
        scheduler = subject.prepared(STEPS)
        x = subject.start(scheduler, 0, shape)
        try:
            subject.run(scheduler, x, None, generator=generators(0, count), step_options=options)
        except ValueError:
            continue
        except Exception as error:  # noqa: BLE001 - whatever the subject raises is what is reported
            raise Violation(f"{what}: {type(error).__name__} ({error}) instead of ValueError") from None
        raise Violation(f"{what} are accepted")


def draws_do_not_depend_on_precision(subject: SchedulerUnderTest, given: Given) -> None:
    """The noise of a step has the same numbers in every precision, but for rounding: a seed gives the same image."""
    _require_generator(subject)
    dtype = given.draw("dtype", st.sampled_from((torch.float16, torch.bfloat16, torch.float64)))
    require_runs(subject)
    options = {name: values[-1] for name, values in STOCHASTIC_OPTIONS.items() if subject.takes("step", name)}
    if not is_stochastic(subject, {}, options):
        raise NotApplicable("the seed does not change the result")
    run = record(subject, {}, 0, (2, 3, 3, 3))  # torch fills tensors of 16 and more differently in each dtype
    parts = {}
    for kind in (torch.float32, dtype):
        inputs, outputs = ([tensor.to(dtype).to(kind) for tensor in tensors] for tensors in (run.inputs, run.outputs))
        draws = [feed(subject, {}, inputs, outputs, generators(seed), **options) for seed in (3, 4)]
        parts[kind] = [(a - b).float() for a, b in zip(*draws, strict=True)]
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for index, (wanted, found) in enumerate(zip(*parts.values(), strict=True)):
        if wanted.any():
            # What differs between the seeds is a difference of two samples, each rounded.
            bound = 32 * unit * max(1.0, float(run.samples[index].abs().amax()) / float(wanted.abs().amax()))
            return require_close(found, wanted, f"the noise drawn in {dtype}", bound=bound, step=index)
    raise NotApplicable("no step adds noise")


def _require_generator(subject: SchedulerUnderTest) -> None:
    if not subject.takes("step", "generator"):
        raise NotApplicable("step takes no generator")


CONTRACTS = (
    Contract(same_seed_gives_the_same_result, examples=6),
    Contract(noise_options_make_noise),
    Contract(global_random_state_is_untouched, examples=6),
    Contract(draws_do_not_depend_on_options, examples=4),
    Contract(noise_can_be_given, examples=6),
    Contract(generators_are_counted),
    Contract(draws_do_not_depend_on_precision, examples=3),
)
