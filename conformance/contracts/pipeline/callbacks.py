"""Contracts of the callback after each step."""

from __future__ import annotations

import functools
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_same
from conformance.contracts.pipeline.driver import PipelineUnderTest
from conformance.contracts.result import Violation
from conformance.contracts.tensors import tensors_in

CALLBACK = "callback_on_step_end"


def callbacks_see_every_step(subject: PipelineUnderTest, given: Given) -> None:
    """The callback is called once after every step, in order, with the step's index, its time and its sample: the one
    that the next step starts from, and at last the result before it becomes an image."""
    subject.require(CALLBACK)
    pipeline = subject.fresh()
    seen: list[tuple[int, float]] = []
    samples: list[torch.Tensor] = []

    def callback(owner: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if owner is not pipeline:
            raise Violation(f"the callback's first argument is a {type(owner).__name__}, not the pipeline")
        seen.append((index, float(timestep)))
        samples.append(next(tensors_in(tensors)).clone())
        return {}

    starts = _step_inputs(subject.scheduler(pipeline))
    options: dict[str, Any] = {"output_type": "latent"} if subject.takes("output_type") else {}
    try:
        result = subject.run(pipeline, callback_on_step_end=callback, **options)
    except ValueError:  # No latent result.
        for each in (seen, samples, starts, options):
            each.clear()
        result = subject.run(pipeline, callback_on_step_end=callback)
    times = [float(t) for t in subject.scheduler(pipeline).timesteps]
    wanted = list(enumerate(times))
    if seen != wanted:
        pairs = enumerate(zip(seen, wanted, strict=False))
        first = next((index for index, (a, b) in pairs if a != b), min(len(seen), len(wanted)))
        found, due = seen[first : first + 3], wanted[first : first + 3]
        raise Violation(f"{len(seen)} callbacks for {len(times)} timesteps: {found} instead of {due}", step=first)
    for index, (sample, start) in enumerate(zip(samples[:-1], starts[1:], strict=False)):
        require_same(sample, start, "the callback's sample, beside what the next step starts from", step=index)
    if options:
        require_same(samples[-1], result, "the callback's last sample, beside the latent result")


def _step_inputs(scheduler: Any) -> list[torch.Tensor]:
    """Fills up with the sample that each call of the scheduler's `step` is given."""
    found: list[torch.Tensor] = []
    original = scheduler.step

    def step(model_output: Any, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(sample.clone())
        return original(model_output, timestep, sample, *args, **kwargs)

    functools.update_wrapper(step, original)
    scheduler.step = step
    return found


def callbacks_can_replace_the_sample(subject: PipelineUnderTest, given: Given) -> None:
    """A tensor that the callback returns takes the place of the sample: the next network call receives it."""
    subject.require(CALLBACK)
    pipeline = subject.fresh()
    calls_at: list[int] = []

    def callback(calls: list[Any], owner: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        name, tensor = next((name, value) for name, value in tensors.items() if isinstance(value, torch.Tensor))
        if index == 0:
            calls_at.append(len(calls))
            return {name: torch.zeros_like(tensor)}
        return {}

    with subject.watched(pipeline) as calls:
        subject.run(pipeline, callback_on_step_end=functools.partial(callback, calls))
    after = calls[calls_at[0]].sample
    if after.any():
        raise Violation(
            f"the callback replaced the sample by zeros, the next network input goes up to {after.abs().max():.3g}",
            step=1,
        )


CONTRACTS = (
    Contract(callbacks_see_every_step),
    Contract(callbacks_can_replace_the_sample),
)
