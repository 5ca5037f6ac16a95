"""Configurations: what is saved is what is loaded, what is left out is the published default."""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.choices import combinations_of
from conformance.contracts.scheduler.cover import Config
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from conformance.contracts.scheduler.options import defaults
from conformance.contracts.scheduler.probes import every_option
from conformance.contracts.scheduler.published import CONSTRUCTOR, FURTHER, PRECISION, STEP, VALUES
from conformance.contracts.scheduler.support import STEPS, full_run, noise, require_runs, why_not

SHAPE = (1, 1, 1, 3)
LENDERS = 5
"""How many other classes lend their configuration."""

FILES = 4
"""How many configurations also go through a file."""


def config_round_trips(subject: SchedulerUnderTest, given: Given) -> None:
    """A scheduler made by `from_config` from the configuration of another, or loaded from the folder that it saved, has
    the same options and gives the same run, for every value of every option."""
    require_runs(subject)
    _require(subject, "from_config")
    configs = [config for config in (*every_option(subject), *combinations_of(subject)) if not why_not(subject, config)]
    for index, config in enumerate(configs):
        given.note("options", config)
        original = subject.make(**config)
        _require_twin(subject, original, subject.cls.from_config(original.config), "from_config", run=index % 3 == 0)  # type: ignore[attr-defined]
        if index % max(1, len(configs) // FILES) == 0 and hasattr(subject.cls, "save_pretrained"):
            with tempfile.TemporaryDirectory() as folder:
                original.save_pretrained(folder)
                _require_twin(subject, original, subject.cls.from_pretrained(folder), "from_pretrained")  # type: ignore[attr-defined]


def overrides_win(subject: SchedulerUnderTest, given: Given) -> None:
    """`from_config(config, option=value)` is a scheduler with that value, whatever the configuration says."""
    require_runs(subject)
    _require(subject, "from_config")
    config = subject.make().config
    for options in every_option(subject):
        if options and not why_not(subject, options):
            given.note("options", options)
            changed = subject.cls.from_config(config, **options)  # type: ignore[attr-defined]
            _require_twin(subject, subject.make(**options), changed, "from_config with an override", run=False)


def borrowed_config_brings_only_choices(subject: SchedulerUnderTest, given: Given) -> None:
    """`from_config` with the configuration of an object of another class, and `from_pretrained` with its file, take
    what was chosen there, and leave what that class has by default: the defaults of one class are no choices of
    another."""
    require_runs(subject)
    _require(subject, "from_config")
    lenders = _lenders(subject)
    if not lenders:
        raise NotApplicable(f"no other scheduler of {subject.cls.__module__.split('.')[0]} has other defaults")
    for lender, differing in lenders:
        given.note("from", lender.__name__)
        given.note("defaults", differing)
        borrowed = subject.cls.from_config(lender().config)  # type: ignore[attr-defined]
        _require_twin(subject, subject.cls(), borrowed, f"made from the configuration of {lender.__name__}()")
        if hasattr(subject.cls, "from_pretrained") and hasattr(lender, "save_pretrained"):
            with tempfile.TemporaryDirectory() as folder:
                lender().save_pretrained(folder)
                loaded = subject.cls.from_pretrained(folder)  # type: ignore[attr-defined]
            _require_twin(subject, subject.cls(), loaded, f"made from the file of {lender.__name__}()")
        chosen = {"beta_end": 0.015} if "beta_end" in defaults(subject.cls) and "beta_end" in defaults(lender) else {}
        borrowed = subject.cls.from_config(lender(**chosen).config)  # type: ignore[attr-defined]
        _require_twin(subject, subject.cls(**chosen), borrowed, f"made from that of {lender.__name__}(**{chosen})")


def defaults_are_the_published(subject: SchedulerUnderTest, given: Given) -> None:
    """An option or argument of `step` that is left out means what published configurations of a class of this name
    mean, in the signature, in `config`, and in the tables."""
    name = next((base.__name__ for base in subject.cls.__mro__ if base.__name__ in CONSTRUCTOR), None)
    if name is None:
        raise NotApplicable(f"no published defaults are known for {subject.name}")
    step = inspect.signature(subject.cls.step).parameters  # type: ignore[attr-defined]
    stated = {f"step: {key}": (step[key].default, value) for key, value in STEP[name].items() if key in step}
    made = subject.cls()
    for key, value in CONSTRUCTOR[name].items():
        stated[key] = (defaults(subject.cls).get(key, "nothing"), value)
        stated[f"config.{key}"] = (made.config.get(key, "nothing"), value)
    for key, value in FURTHER.get(name, {}).items():
        stated[key] = (defaults(subject.cls).get(key, value), value)
    for key, (found, wanted) in stated.items():
        if found != wanted or isinstance(found, bool) is not isinstance(wanted, bool):
            raise Violation(f"the default of {key} is {found!r} instead of {wanted!r}")
    _require_twin(subject, subject.cls(**CONSTRUCTOR[name]), made, "made without options")


def published_values_are_taken(subject: SchedulerUnderTest, given: Given) -> None:
    """A class of a published name runs with every value of an option that published configurations have, alone or
    together with another value of one further option."""
    name = next((base.__name__ for base in subject.cls.__mro__ if base.__name__ in VALUES), None)
    if name is None:
        raise NotApplicable(f"no published values are known for {subject.name}")
    for option, values in VALUES[name].items():
        for value in values:
            problem = why_not(subject, {option: value})
            if problem and all(why_not(subject, {**other, option: value}) for other in every_option(subject)):
                raise Violation(f"{option}={value!r} does not run: {problem}")


def further_options_are_saved_if_chosen(subject: SchedulerUnderTest, given: Given) -> None:
    """A class of a published name that has further options saves one of them only if it was chosen: other libraries,
    which do not know it, load the file of every other object."""
    _require(subject, "save_pretrained")
    name = next((base.__name__ for base in subject.cls.__mro__ if base.__name__ in CONSTRUCTOR), None)
    further = set() if name is None else defaults(subject.cls).keys() - CONSTRUCTOR[name].keys()
    if not further:
        raise NotApplicable(f"{subject.name} is known by no published options, or has no others")
    for config in ({}, *({name: subject.options[name][1]} for name in sorted(further & subject.options.keys()))):
        given.note("options", config)
        if not why_not(subject, config):
            saved = _saved(subject.make(**config))
            if extra := sorted((saved.keys() & further) - config.keys() - subject.base.keys()):
                raise Violation(f"the file has {extra[0]}={saved[extra[0]]!r}, which was not chosen")


def _saved(scheduler: Any) -> Config:
    """What is in the file that a scheduler saves."""
    with tempfile.TemporaryDirectory() as folder:
        scheduler.save_pretrained(folder)
        (file,) = Path(folder).iterdir()
        return json.loads(file.read_text(encoding="utf-8"))


def precision_follows_the_schedule(subject: SchedulerUnderTest, given: Given) -> None:
    """Where `coefficients` are not chosen, tables and steps have the bits of those that are documented for the
    beta_schedule."""
    require_runs(subject)
    name = next((base.__name__ for base in subject.cls.__mro__ if base.__name__ in PRECISION), None)
    if name is None or "coefficients" not in subject.options:
        raise NotApplicable(f"{subject.name} has no choice of precisions that would be documented")
    for schedule, documented in PRECISION[name].items():
        given.note("beta_schedule", schedule)
        plain = subject.make(beta_schedule=schedule, coefficients=None)
        chosen = subject.make(beta_schedule=schedule, coefficients=documented)
        require_same(plain.alphas_cumprod, chosen.alphas_cumprod, f"alphas_cumprod instead of {documented!r}")
        _require_same_runs(subject, plain, chosen, f"without coefficients instead of {documented!r}")


def _require(subject: SchedulerUnderTest, method: str) -> None:
    if not callable(getattr(subject.cls, method, None)):
        raise NotApplicable(f"{subject.name} has no {method}")


def _require_twin(subject: SchedulerUnderTest, original: Any, twin: Any, how: str, *, run: bool = True) -> None:
    """Both have the same options, and, with `run`, give the same run."""
    wanted, found = _options(subject, original), _options(subject, twin)
    for name in wanted:
        if wanted[name] != found[name]:
            raise Violation(f"{how}: {name} is {found[name]!r} instead of {wanted[name]!r}")
    if run:
        _require_same_runs(subject, twin, original, how)


def _require_same_runs(subject: SchedulerUnderTest, twin: Any, original: Any, how: str) -> None:
    """Both have the same timesteps, and their steps the same bits."""
    runs = []
    for scheduler in (original, twin):
        scheduler.set_timesteps(STEPS)
        if not hasattr(scheduler.timesteps, "__len__"):
            return  # Which times it chooses depends on its samples, and these are no run's.
        runs.append(full_run(subject, scheduler, 0, noise(3, SHAPE)))
    if runs[0].times != runs[1].times:
        raise Violation(f"{how}: timesteps {runs[1].times[:4]}, … instead of {runs[0].times[:4]}, …")
    for k, (sample, same) in enumerate(zip(runs[1].samples, runs[0].samples, strict=True)):
        require_same(sample, same, f"the sample of a scheduler {how}", step=k)


def _options(subject: SchedulerUnderTest, scheduler: Any) -> Config:
    found = {name: scheduler.config.get(name) for name in defaults(subject.cls)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _lenders(subject: SchedulerUnderTest) -> list[tuple[type, Config]]:
    """Other schedulers of the same library whose defaults of a shared option differ; at most LENDERS."""
    library = sys.modules[subject.cls.__module__.split(".")[0]]
    own = defaults(subject.cls)
    found: list[tuple[type, Config]] = []
    for name in sorted(dir(library)):
        other = getattr(library, name) if name.endswith("Scheduler") else None
        if not isinstance(other, type) or other is subject.cls:
            continue
        try:
            other().step  # noqa: B018 - stand-ins for classes whose requirements are missing raise at any touch
            shared = {key: value for key, value in defaults(other).items() if key in own and value != own[key]}
        except Exception:  # noqa: BLE001 - a class that cannot be made without arguments lends nothing
            continue
        if shared and len(found) < LENDERS:
            found.append((other, shared))
    return found


CONTRACTS = (
    Contract(config_round_trips),
    Contract(overrides_win),
    Contract(borrowed_config_brings_only_choices),
    Contract(defaults_are_the_published),
    Contract(published_values_are_taken),
    Contract(further_options_are_saved_if_chosen),
    Contract(precision_follows_the_schedule),
)
