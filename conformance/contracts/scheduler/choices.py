"""Choices: options in pairs, options that must have an effect, values that a class does not know."""

from __future__ import annotations

import inspect
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, combinations
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.cover import Config, Pair, pairs_of, pairwise
from conformance.contracts.scheduler.driver import SchedulerUnderTest, generators
from conformance.contracts.scheduler.options import INHERITED, contradicts, defaults, parameters
from conformance.contracts.scheduler.probes import every_option, meaningless
from conformance.contracts.scheduler.support import REFUSALS, STEPS, full_run, noise, require_runs

SHAPE = (2, 1, 2, 3)
COUNTS = (2, 3, 4, STEPS)
"""Numbers of steps of runs with a few options."""


WILD = 150
"""Combinations of all options by chance that are tried before an option is called silent."""

MOST = 600
"""Combinations in which an option has no effect, after which it is called silent."""

REFUSED = 40
"""Combinations in which every value but the first is refused, after which an option counts as one without another."""

COMPANIONS = 12
"""Tries to find a combination with a pair of values that is not refused."""

SHOWN = 4
"""Findings that a report lists; the rest is counted."""

ANY = frozenset({"at", "use", "type", "max", "min", "to", "from"})
"""Words in names of options that do not tell what they are about."""

UNKNOWN = "no-such-value"

NOT_IN_STEPS = frozenset({"upscale_mode", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"})
"""Options that pipelines read, and that no run of a scheduler shows."""


ALWAYS_GIVEN = frozenset(
    {"num_train_timesteps", "beta_start", "beta_end", "clip_sample_range", "sigma_min", "sigma_max"}
)
"""Numbers of published configurations, which limit others or describe the training."""


def option_pairs_run_or_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """Any two options go together: a run ends with finite numbers, or the class refuses with ValueError or
    NotImplementedError. Never NaN, and no other error.

    Every value of every option is tried with several numbers of steps, every pair of values at least once.
    """
    require_runs(subject)
    found: dict[str, str] = {}
    for config, steps in _cases(subject):
        if _outcome(subject, config, steps):
            config = _smallest(subject, config, steps)
            found.setdefault(_shown(config), f"with {steps} steps: {_outcome(subject, config, steps)}")
    if found:
        listed = [f"{config} {problem}" for config, problem in found.items()]
        rest = f"; and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise Violation("; ".join(listed[:SHOWN]) + rest)


def options_have_an_effect(subject: SchedulerUnderTest, given: Given) -> None:
    """An option that is accepted changes something: the timesteps, the first noise, the result or what is drawn, in at
    least one combination with other options. (Else it is silently ignored.)"""
    require_runs(subject)
    silent = []
    unused = NOT_IN_STEPS.union(*(INHERITED.get(base.__name__, ()) for base in subject.cls.__mro__))
    for name, values in {**subject.options, **_numbers(subject)}.items():
        if name not in unused and not (
            _has_effect(subject, name, values)
            or _is_default_count(subject, name, values)
            or _is_training_count(subject, name, values)
        ):
            silent.append(f"{name} ({', '.join(map(repr, values))})")
    if silent:
        raise Violation(f"accepted, but without an effect in any combination that was tried: {'; '.join(silent)}")


def idle_numbers_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """A class that refuses a number because it has no effect, and says so, keeps to that: with every option, each of
    its numbers, moved away from its default, changes a run or is refused. (But for those that published configurations
    have whether they matter or not.)"""
    require_runs(subject)
    promised, idle = False, []
    for context in every_option(subject):
        plain = _fingerprint(subject, context)
        for name, values in _numbers(subject).items() if plain is not None else ():
            if name in ALWAYS_GIVEN or name in NOT_IN_STEPS:
                continue
            config = {**context, name: values[1]}
            given.note("options", config)
            try:
                subject.make(**config)
            except REFUSALS as refusal:
                promised = promised or "no effect" in str(refusal)
            else:
                idle += [_shown(config)] if _fingerprint(subject, config) == plain else []
    if not promised:
        raise NotApplicable(f"{subject.name} refuses no number for having no effect")
    if idle:
        rest = f"; and {len(idle) - SHOWN} more" if len(idle) > SHOWN else ""
        raise Violation(f"accepted, but without an effect: {'; '.join(idle[:SHOWN])}{rest}")


def unknown_values_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """A value that an option does not know is refused with ValueError or NotImplementedError that names the option or
    the value, and no other option: when the scheduler is made, by set_timesteps, or by the first step at the latest."""
    require_runs(subject)
    named = {name for name, default in defaults(subject.cls).items() if isinstance(default, str)}
    named |= {name for name, values in subject.options.items() if any(isinstance(value, str) for value in values)}
    if not named:
        raise NotApplicable(f"{subject.name} has no option that takes a name")
    problems = []
    for name in sorted(named - NOT_IN_STEPS):
        given.note("option", name)
        try:
            full_run(subject, _prepared(subject, {name: UNKNOWN}), 0, noise(0, SHAPE))
        except REFUSALS as refusal:
            blamed = re.findall(rf"(\w+) ?= ?['\"]?{UNKNOWN}", str(refusal))
            if (name not in str(refusal) and UNKNOWN not in str(refusal)) or blamed not in ([], [name]):
                problems.append(f"{name}: the message does not say what is wrong: {refusal}")
        except Exception as error:  # noqa: BLE001 - which other error it is belongs into the report
            problems.append(f"{name}: {type(error).__name__}: {error}")
        else:
            problems.append(f"{name}={UNKNOWN!r} is accepted")
    if problems:
        raise Violation("; ".join(problems))


def unknown_options_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """An option that the class does not have is no option of its constructor: TypeError."""
    try:
        subject.make(no_such_option=1)
    except (TypeError, *REFUSALS):
        return
    raise Violation("the constructor takes no_such_option=1 without a word")


# --- runs of combinations --------------------------------------------------------------------------------------------


def combinations_of(subject: SchedulerUnderTest) -> list[Config]:
    """Combinations of all options in which every pair of values occurs that the subject does not refuse, as far as a
    few tries tell; once per subject."""
    if "cover" not in subject.measured:
        subject.measured["cover"] = _cover(subject) if len(subject.options) > 1 else []
    return subject.measured["cover"]


def _cover(subject: SchedulerUnderTest) -> list[Config]:
    def excluded(config: Config) -> bool:
        return contradicts({**subject.base, **config}) or meaningless(subject, config)

    rows = pairwise(subject.options, excluded)
    reached: set[Pair] = set()
    for row in rows:
        reached |= pairs_of(row) if _outcome(subject, row, STEPS) is not None else set()
    # A refused row reaches none of its pairs: each gets a few other companions.
    source = random.Random(0)
    for pair in sorted(set().union(*map(pairs_of, rows)) - reached, key=str):
        for _ in range(0 if pair in reached else COMPANIONS):
            row = {name: source.choice(values) for name, values in subject.options.items()} | dict(pair)
            if not excluded(row) and _outcome(subject, row, STEPS) is not None:
                reached |= pairs_of(row)
                rows.append(row)
                break
    return rows


def _cases(subject: SchedulerUnderTest) -> Iterator[tuple[Config, int]]:
    for config in every_option(subject):
        if not contradicts({**subject.base, **config}) and not meaningless(subject, config):
            yield from ((config, steps) for steps in COUNTS)
    for index, config in enumerate(combinations_of(subject)):
        yield config, STEPS
        yield config, COUNTS[index % len(COUNTS)]


def _outcome(subject: SchedulerUnderTest, config: Config, steps: int) -> str | None:
    """What is wrong with a run: "" if it ends with finite numbers, None if it is refused."""
    key = f"outcome {steps} {sorted(config.items())}"
    if key not in subject.measured:
        subject.measured[key] = _try(subject, config, steps)
    return subject.measured[key]


def _try(subject: SchedulerUnderTest, config: Config, steps: int) -> str | None:
    try:
        final = full_run(subject, subject.prepared(steps, **config), 0, noise(0, SHAPE)).final
    except REFUSALS:
        return None
    except Exception as error:  # noqa: BLE001 - any other error is a finding
        return f"{type(error).__name__}: {error}"
    broken = int((~final.isfinite()).sum())
    return f"{broken} of {final.numel()} results are NaN or infinite" if broken else ""


def _smallest(subject: SchedulerUnderTest, config: Config, steps: int) -> Config:
    """Without the options that the problem does not need."""
    for name in list(config):
        fewer = {key: value for key, value in config.items() if key != name}
        if _outcome(subject, fewer, steps):
            config = fewer
    return config


def _shown(config: Config) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in config.items()) or "the defaults"


# --- effects ---------------------------------------------------------------------------------------------------------


def _numbers(subject: SchedulerUnderTest) -> dict[str, tuple[Any, ...]]:
    """Numeric options -> the default, and a value that differs from it in a way that most classes allow."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, default in {**defaults(subject.cls), **subject.base}.items():
        if name in subject.options or isinstance(default, bool):
            continue
        if isinstance(default, int):
            found[name] = (default, max(2, default // 2))
        elif isinstance(default, float):
            # A lower limit has to be high to be met.
            factor = 0.8 if name.endswith("ratio") else 10.0 if name.endswith("min_value") else 1.5
            found[name] = (default, -1.0 if math.isinf(default) else default * factor or 0.5)
    return found


def _has_effect(subject: SchedulerUnderTest, name: str, values: tuple[Any, ...]) -> bool:
    compared = refused = 0
    for context in _contexts(subject, name, values):
        plain = _fingerprint(subject, {**context, name: values[0]})
        if plain is None:
            continue
        others = [_fingerprint(subject, {**context, name: value}) for value in values[1:]]
        if any(other not in (None, plain) for other in others):
            return True
        compared += any(other is not None for other in others)
        refused += all(other is None for other in others)
        if compared == MOST or (refused == REFUSED and not compared):
            break
    return not compared  # a class that refuses every other value ignores nothing


def _contexts(subject: SchedulerUnderTest, name: str, values: tuple[Any, ...]) -> Iterator[Config]:
    """Combinations of other options in which an option may have an effect, the likely ones first."""
    related = _related(subject, name, values)
    (none, *others) = every_option(subject, skip=(name,))
    others.sort(key=lambda single: -related[next(iter(single))])
    near = [single for single in others if related[next(iter(single))]]
    moved = {other: pair[1] for other, pair in _numbers(subject).items() if other != name}
    yield from (none, *others)
    yield from ({**single, **moved} for single in (none, *near))
    yield from (first | second for first in near for second in others if first.keys() != second.keys())
    source = random.Random(0)
    wild = ({other: source.choice(tried) for other, tried in subject.options.items()} for _ in range(WILD))
    pairs = (first | second for first, second in combinations(others, 2) if first.keys() != second.keys())
    for context in chain((none, *others), combinations_of(subject), wild, pairs):
        yield context
        yield {**context, **moved}


def _related(subject: SchedulerUnderTest, name: str, values: tuple[Any, ...]) -> Counter[str]:
    """How much other options have to do with one, by their names: words that they share, and mention in a refusal."""
    related: Counter[str] = Counter()
    for other in subject.options.keys() - {name}:
        words, others = ([word for word in option.split("_") if word not in ANY] for option in (name, other))
        related[other] = sum(a.startswith(b) or b.startswith(a) for a in words for b in others)
    for value in values[1:]:
        try:
            subject.make(**{name: value})
        except Exception as refusal:  # noqa: BLE001 - only its words matter
            related.update(re.findall(r"\w+", str(refusal)))
    return related


def _is_default_count(subject: SchedulerUnderTest, name: str, values: tuple[Any, ...]) -> bool:
    """Whether the option is the number of steps that `set_timesteps` takes where it is told none."""
    if parameters(subject.cls, "set_timesteps")["num_inference_steps"].default is inspect.Parameter.empty:
        return False
    try:
        schedulers = [subject.make(**{name: value}) for value in values]
        for scheduler in schedulers:
            scheduler.set_timesteps()
    except Exception:  # noqa: BLE001 - a class without such a default
        return False
    return len({len(scheduler.timesteps) for scheduler in schedulers}) == len(values)


def _is_training_count(subject: SchedulerUnderTest, name: str, values: tuple[Any, ...]) -> bool:
    """Whether the option is the number of levels that a class without betas lists for training, before
    `set_timesteps`: one more for each that is asked for, and from the first level to the last."""
    if name != "num_train_timesteps" or "beta_schedule" in defaults(subject.cls):
        return False
    lists = [torch.as_tensor(subject.make(**{name: value}).timesteps) for value in values]
    more = {len(times) - value for times, value in zip(lists, values, strict=True)}
    ends = {(float(times[0]), float(times[-1])) for times in lists}
    return more <= {0, 1} and len(more) == len(ends) == 1


def _prepared(subject: SchedulerUnderTest, config: Config) -> Any:
    """A scheduler for a run, with the shift that dynamic shifting needs."""
    scheduler = subject.make(**config)
    shift = {"mu": 0.8} if scheduler.config.get("use_dynamic_shifting") and subject.takes("set_timesteps", "mu") else {}
    scheduler.set_timesteps(STEPS, **shift)
    return scheduler


def _fingerprint(subject: SchedulerUnderTest, config: Config) -> tuple[Any, ...] | None:
    """What a configuration does, to be compared with what another does; None where it does not run."""
    own = {**defaults(subject.cls), **subject.base}
    config = {name: value for name, value in config.items() if name not in own or own[name] != value}
    key = f"fingerprint {sorted(config.items(), key=str)}"
    if key not in subject.measured:
        subject.measured[key] = _observe(subject, config)
    return subject.measured[key]


def _observe(subject: SchedulerUnderTest, config: Config) -> tuple[Any, ...] | None:
    if contradicts({**subject.base, **config}) or meaningless(subject, config):
        return None
    try:
        scheduler = _prepared(subject, config)
        x = noise(1, SHAPE) * 3.0
        if hasattr(scheduler, "scale_model_input"):
            x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
        generator = generators(0)
        run = full_run(subject, scheduler, 0, x, generator=generator)
    except Exception:  # noqa: BLE001 - what goes wrong is another contract's finding
        return None
    next_draw = torch.rand((), generator=generator).item()
    times = tuple(torch.as_tensor(scheduler.timesteps).tolist())
    told = getattr(scheduler, "network_timestep", lambda t: t)(scheduler.timesteps[0])
    shapes = tuple(tuple(output.shape) for output in run.outputs)
    numbers = tuple(tuple(sample.flatten().tolist()) for sample in run.samples)
    return times, float(told), float(getattr(scheduler, "init_noise_sigma", 1.0)), shapes, numbers, next_draw


CONTRACTS = (
    Contract(option_pairs_run_or_are_refused),
    Contract(options_have_an_effect),
    Contract(idle_numbers_are_refused),
    Contract(unknown_values_are_refused),
    Contract(unknown_options_are_refused),
)
