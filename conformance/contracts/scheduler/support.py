"""What the scheduler contracts share: configurations that run, one step at a time, the tables of a scheduler."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from conformance.contracts.contract import Given
from conformance.contracts.result import NotApplicable
from conformance.contracts.scheduler.driver import SHAPE, SchedulerUnderTest, Trajectory, generators
from conformance.contracts.scheduler.options import contradicts

STEPS = 6
"""Steps of a short run: enough for every multistep order and every warm-up."""

TINY = (1, 1, 1, 2)
"""The shape of samples where only the course of a run matters."""

REFUSALS = (ValueError, NotImplementedError)
"""By what a scheduler may say that it does not offer something."""

STOCHASTIC_OPTIONS: dict[str, tuple[float, ...]] = {"eta": (0.0, 1.0), "s_churn": (0.0, 1.0)}
"""Arguments of `step` that turn noise off and on."""


def require_runs(subject: SchedulerUnderTest) -> None:
    """Raises NotApplicable if a short run of the subject as it is given does not get through.

    Why it does not is the finding of one contract, `runs_as_it_is`, and not of all.
    """
    problem = why_not(subject, {})
    if problem:
        raise NotApplicable(f"a run of {STEPS} steps does not get through: {problem}")


def why_not(subject: SchedulerUnderTest, config: dict[str, Any]) -> str:
    """Why a short run with these options does not get through with finite numbers; "" if it does."""
    key = repr(sorted(config.items()))
    if key not in subject.outcomes:
        subject.outcomes[key] = _why_not(subject, config)
    return subject.outcomes[key]


def _why_not(subject: SchedulerUnderTest, config: dict[str, Any]) -> str:
    subject.require_common_step()
    try:
        scheduler = subject.prepared(STEPS, **config)
        final = full_run(subject, scheduler, 0).final
    except NotApplicable:
        raise
    except Exception as error:  # noqa: BLE001 - another contract reports what a configuration does wrong
        return f"{type(error).__name__}: {error}"
    return "" if bool(final.isfinite().all()) else "the result is not finite"


def some_config(subject: SchedulerUnderTest, given: Given, most: int = 2) -> dict[str, Any]:
    """Draw up to `most` options that differ from the subject's own, with which a short run gets through.

    Options that do not run together are dropped: what they do wrong is for the contracts of configurations.
    """
    require_runs(subject)
    others = [(name, value) for name, values in subject.options.items() for value in values[1:]]
    chosen = given.pick(st.lists(st.sampled_from(others), max_size=most, unique_by=_name_of)) if others else []
    config = dict(chosen)
    while config and (contradicts({**subject.base, **config}) or why_not(subject, config)):
        config.popitem()
    if config:
        given.note("config", config)
    return config


def single_options(subject: SchedulerUnderTest) -> Iterator[dict[str, Any]]:
    """No option, and then each option alone with which a short run gets through."""
    yield {}
    for name, values in subject.options.items():
        for value in values[1:]:
            config = {name: value}
            if not contradicts({**subject.base, **config}) and not why_not(subject, config):
                yield config


def some_step_options(subject: SchedulerUnderTest, given: Given) -> dict[str, float]:
    """Draw arguments of `step` that turn noise off and on, where it has them."""
    offered = {name: values for name, values in STOCHASTIC_OPTIONS.items() if subject.takes("step", name)}
    options = {name: given.pick(st.sampled_from(values)) for name, values in offered.items()}
    if options:
        given.note("step", options)
    return options


def _name_of(option: tuple[str, Any]) -> str:
    return option[0]


def full_run(
    subject: SchedulerUnderTest, scheduler: Any, seed: int, x: torch.Tensor | None = None, **options: Any
) -> Trajectory:
    """A run from x_T with a network without a meaning, with the generator and the global random state seeded alike.

    options: see `SchedulerUnderTest.run`.
    """
    # For a sampler that takes no generator; the caller's state is restored by `Contract.hold`.
    torch.default_generator.manual_seed(seed)
    x = subject.start(scheduler, seed) if x is None else x
    return subject.run(scheduler, x, None, **{"generator": generators(seed), **options})


@dataclass(frozen=True)
class Record:
    """The samples and the model outputs of a run, in its order, and what steps made of them."""

    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    samples: list[torch.Tensor]


def record(subject: SchedulerUnderTest, config: dict[str, Any], seed: int, shape: tuple[int, ...]) -> Record:
    """A run to feed to others."""
    scheduler = subject.prepared(STEPS, **config)
    trajectory = full_run(subject, scheduler, seed, subject.start(scheduler, seed, shape))
    return Record(trajectory.inputs, trajectory.outputs, trajectory.samples)


def feed(
    subject: SchedulerUnderTest,
    config: dict[str, Any],
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
    generator: Any = None,
    **options: Any,
) -> list[torch.Tensor]:
    """What a fresh scheduler's steps make of recorded samples and outputs, one after the other."""
    scheduler, samples = subject.prepared(STEPS, **config), []
    if generator is not None and subject.takes("step", "generator"):
        options["generator"] = generator
    draws = {} if generator is None else {"generator": generator}
    for timestep, x, output in zip(scheduler.timesteps, inputs, outputs, strict=True):
        x = subject.churned(scheduler, x, timestep, **draws)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, timestep)
        result = scheduler.step(output, timestep, x, **options)
        samples.append(sample_of(result))
    return samples


def one_step(
    subject: SchedulerUnderTest,
    scheduler: Any,
    output: torch.Tensor,
    timestep: Any,
    x: torch.Tensor,
    generator: Any = None,
    **options: Any,
) -> torch.Tensor:
    """What `step` makes of x, on a copy of the scheduler, so that its state stays as it is."""
    scheduler = copy.deepcopy(scheduler)
    if subject.takes("add_noise_to_input", "variance_noise"):  # what a step draws is added before the network is asked
        given = {"variance_noise": options.pop("variance_noise")} if "variance_noise" in options else {}
        x = subject.churned(scheduler, x, timestep, generator=generator, **given)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, timestep)
    if generator is not None and subject.takes("step", "generator"):
        options["generator"] = generator
    return sample_of(scheduler.step(output, timestep, x, **options))


def sample_of(result: Any) -> torch.Tensor:
    """x_{t−1} in what `step` returned."""
    return result[0] if isinstance(result, tuple) else result.prev_sample


def noise(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal numbers, the same in every dtype but for rounding."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tables(scheduler: Any) -> dict[str, torch.Tensor]:
    """Copies of the public one-dimensional tables of a scheduler: `betas`, `alphas_cumprod`, `timesteps`, …"""
    properties = [name for name in dir(type(scheduler)) if isinstance(getattr(type(scheduler), name, None), property)]
    found = {}
    for name in sorted({*vars(scheduler), *properties}):
        value = None if name.startswith("_") else getattr(scheduler, name, None)
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(value, torch.Tensor) and value.ndim == 1 and len(value) > 1:
            found[name] = value.clone()
    return found
