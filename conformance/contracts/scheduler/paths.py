"""Samplers whose noise is increments of a Brownian path over the levels: the path of a seed, and other sources."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close, require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from conformance.contracts.scheduler.options import defaults
from conformance.contracts.scheduler.support import noise, require_runs, sample_of

FINE, COARSE = [8.0, 4.0, 2.0, 1.0], [8.0, 2.0, 1.0]
"""Levels between the same ends, the second list without one of the first."""

SHAPE = (2, 4, 16, 16)
"""Large enough that the variance of a draw is 1 within 0.2: six of its standard deviations."""

SMALL = (2, 1, 2, 2)


def seeded_noise_is_one_path(subject: SchedulerUnderTest, given: Given) -> None:
    """With `noise_sampler_seed`, the noise of a step from σ to σ' is W(σ') - W(σ) over √(σ - σ'), of unit variance, of
    one Brownian path W: a step's is that of the steps together which a finer grid has in its place. Each sample of a
    batch has a path of its own; with a list of seeds, that of its seed. Another seed is another path."""
    _require_paths(subject)
    fine, coarse = _increments(subject, 3, FINE, SHAPE), _increments(subject, 3, COARSE, SHAPE)
    for step, increment in enumerate(fine):
        variance = float((increment**2).mean())
        if not abs(variance - 1) < 0.2:
            raise Violation(f"the noise of a step has the variance {variance:.3g} instead of 1", step=step)
    together = fine[0] * (FINE[0] - FINE[1]) ** 0.5 + fine[1] * (FINE[1] - FINE[2]) ** 0.5
    whole = coarse[0] * (COARSE[0] - COARSE[1]) ** 0.5
    require_close(whole, together, "the noise of a step that a finer grid makes in two", bound=1e-4)
    require_close(coarse[1], fine[2], "the noise of a step that a finer grid has, too", bound=1e-4)
    if torch.allclose(fine[0][0], fine[0][1], atol=1e-2):
        raise Violation("the samples of a batch have the same noise")
    if torch.allclose(_increments(subject, 4, COARSE, SMALL)[0], _increments(subject, 3, COARSE, SMALL)[0], atol=1e-2):
        raise Violation("two seeds give the same noise")
    listed = _increments(subject, [4, 9], COARSE, SMALL)[0]
    for index, seed in enumerate((4, 9)):
        alone = _increments(subject, [seed], COARSE, (1, *SMALL[1:]))[0]
        require_close(listed[index : index + 1], alone, f"the noise of the sample with the seed {seed}", bound=1e-9)
    scheduler = _prepared(subject, [4, 9, 5], COARSE)
    _require_refused(scheduler, "three seeds for a batch of two", noise(0, SMALL))


def paths_last_for_a_run(subject: SchedulerUnderTest, given: Given) -> None:
    """A path is that of a run: one that begins anew, with samples of another shape and from `set_timesteps` or not,
    is the run of a fresh scheduler. Without a seed, a run's path depends on torch's global generator."""
    _require_paths(subject)
    x, other = noise(0, SMALL), noise(1, (3, 1, 2, 1))
    wanted = _run(_prepared(subject, 3, FINE), other)
    used = _prepared(subject, 3, FINE)
    _run(used, x)
    for how in ("with set_timesteps", "without set_timesteps"):
        if how == "with set_timesteps":
            used.set_timesteps(sigmas=FINE)
        require_same(_run(used, other), wanted, f"the sample of a run that begins anew {how}")
        _run(used, x)
    ends = []
    for seed in (1, 1, 2):
        scheduler = _prepared(subject, None, FINE)
        torch.default_generator.manual_seed(seed)
        ends.append(_run(scheduler, x))
    require_same(ends[1], ends[0], "the sample of a run without a seed")
    if torch.equal(ends[2], ends[0]):
        raise Violation("without a seed every run has the same noise")


def noise_samplers_are_asked(subject: SchedulerUnderTest, given: Given) -> None:
    """A `noise_sampler` that is given to step, or to set_timesteps for all steps until the next one, is called with the
    two levels between which noise is made, the larger first, and what it returns is the noise. One that returns
    another shape is refused with ValueError, and so is one together with a generator or with noise."""
    _require_paths(subject)
    x, asked = noise(0, SMALL), []

    def sampler(sigma: Any, sigma_next: Any) -> torch.Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return torch.full(SMALL, 0.5)

    wanted = _run(_prepared(subject, None, FINE), x, variance_noise=torch.full(SMALL, 0.5))
    scheduler = _prepared(subject, None, FINE)
    require_same(_run(scheduler, x, noise_sampler=sampler), wanted, "the sample of steps with a noise sampler")
    starts = sorted({sigma for sigma, _ in asked}, reverse=True)
    if len(asked) != len(scheduler.timesteps) or not all(sigma > below for sigma, below in asked):
        raise Violation(f"the noise sampler was asked for {asked} over the levels {FINE}")
    require_close(torch.tensor(starts), torch.tensor(FINE[:-1]), "the levels from which noise is made", bound=1e-5)
    scheduler.set_timesteps(sigmas=FINE, noise_sampler=sampler)
    require_same(_run(scheduler, x), wanted, "the sample of a run with a noise sampler")
    asked.clear()
    scheduler.set_timesteps(sigmas=FINE)
    _run(scheduler, x, generator=torch.Generator().manual_seed(0))
    if asked:
        raise Violation("a noise sampler outlives the run for which it was given")
    refused: dict[str, dict[str, Any]] = {
        "a noise sampler of another shape": {"noise_sampler": lambda sigma, sigma_next: torch.ones(1)},
        "a noise sampler together with a generator": {"noise_sampler": sampler, "generator": torch.Generator()},
        "a noise sampler together with noise": {"noise_sampler": sampler, "variance_noise": x},
    }
    for what, options in refused.items():
        _require_refused(_prepared(subject, None, FINE), what, x, **options)


def _require_paths(subject: SchedulerUnderTest) -> None:
    require_runs(subject)
    if "noise_sampler_seed" not in defaults(subject.cls):
        raise NotApplicable(f"{subject.name} has no noise_sampler_seed")
    for method, arguments in (("step", ("variance_noise", "noise_sampler")), ("set_timesteps", ("sigmas",))):
        for argument in arguments:
            if not subject.takes(method, argument):
                raise NotApplicable(f"{method} of {subject.name} takes no {argument}")
    if importlib.util.find_spec("torchsde") is None:
        raise NotApplicable("torchsde, which makes the paths, is not installed")


def _prepared(subject: SchedulerUnderTest, seed: int | Sequence[int] | None, sigmas: list[float]) -> Any:
    scheduler = subject.make(noise_sampler_seed=seed)
    scheduler.set_timesteps(sigmas=sigmas)
    return scheduler


def _increments(
    subject: SchedulerUnderTest, seed: int | Sequence[int], sigmas: list[float], shape: tuple[int, ...]
) -> list[torch.Tensor]:
    """The noise after the last evaluation of each step, told by what steps make of noise that is given."""
    scheduler = _prepared(subject, seed, sigmas)
    x, output = noise(1, shape, torch.float64), noise(2, shape, torch.float64)
    evaluations = len(scheduler.timesteps) // (len(sigmas) - 1)
    found = []
    for index, t in enumerate(scheduler.timesteps):
        none, unit = (
            sample_of(copy.deepcopy(scheduler).step(output, t, x, variance_noise=torch.full_like(x, level)))
            for level in (0.0, 1.0)
        )
        seeded = sample_of(scheduler.step(output, t, x))
        if index % evaluations == evaluations - 1:
            found.append((seeded - none) / (unit - none))
    return found


def _run(scheduler: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    """The end of a run from x with a network that halves the sample."""
    for t in scheduler.timesteps:
        x = sample_of(scheduler.step(0.5 * x, t, x, **options))
    return x


def _require_refused(scheduler: Any, what: str, x: torch.Tensor, **options: Any) -> None:
    try:
        scheduler.step(x, scheduler.timesteps[0], x, **options)
    except ValueError:
        return
    raise Violation(f"{what} is accepted")


CONTRACTS = (
    Contract(seeded_noise_is_one_path),
    Contract(paths_last_for_a_run),
    Contract(noise_samplers_are_asked),
)
