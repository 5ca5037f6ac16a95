"""Tables and grids against their published formulas, computed again in float64."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_finite
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler import published
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from conformance.contracts.scheduler.formulas import beta_tables, grids, sections, zero_terminal_snr
from conformance.contracts.scheduler.options import defaults
from conformance.contracts.scheduler.probes import EPS, choice
from conformance.contracts.scheduler.support import REFUSALS, TINY, full_run, require_runs

SMALL = 50
"""Training timesteps where their number does not matter: a few classes take long to build their tables."""

FEW = 15
"""Training timesteps of which every smaller number is tried as the number of steps."""

SPACINGS = ("leading", "linspace", "trailing", "ddim_uniform", "ddim_quad")
EPS64 = 2.0**-52
NO_SIGNAL = 2**-24
"""What samplers that need a logarithm of the signal put in the place of abar = 0."""


def betas_follow_their_schedule(subject: SchedulerUnderTest, given: Given) -> None:
    """For every `beta_schedule`, and every range of betas, the table `betas` is the published formula within float32
    rounding, and `alphas_cumprod` is the cumulative product of 1 - beta; with `trained_betas`, it is those.

    With `coefficients` of "float64", where there is that choice, within float64 rounding.
    """
    require_runs(subject)
    scheduler = _with_tables(subject)
    size = SMALL
    exact = {"coefficients": "float64"} if "float64" in subject.options.get("coefficients", ()) else None
    for start, end in (_range(scheduler), (0.0005, 0.03)):
        for name, wanted in beta_tables(start, end, size).items():
            config = {"beta_schedule": name, "beta_start": start, "beta_end": end}
            given.note("options", config)
            _require_tables(subject, config, wanted)
            if exact:
                _require_tables(subject, config | exact, wanted, EPS64)
    if "trained_betas" in scheduler.config:
        betas = np.linspace(0.001, 0.01, size)
        given.note("options", {"trained_betas": "0.001 to 0.01"})
        trained = {"trained_betas": betas.tolist()}
        if _made(subject, trained) is None:
            raise Violation(f"trained_betas for all of {size} timesteps are refused")
        _require_tables(subject, trained, betas)
        if exact:
            _require_tables(subject, trained | exact, betas, EPS64)


def zero_snr_leaves_no_signal(subject: SchedulerUnderTest, given: Given) -> None:
    """With `rescale_betas_zero_snr`, alphas_cumprod is that of Algorithm 1 of arXiv 2305.08891: no signal at the last
    training timestep, the same signal at the first."""
    require_runs(subject)
    scheduler = _with_tables(subject)
    if "rescale_betas_zero_snr" not in scheduler.config:
        raise NotApplicable(f"{subject.name} has no option rescale_betas_zero_snr")
    start, end = _range(scheduler)
    size = SMALL
    for name, betas in beta_tables(start, end, size).items():
        config = {"beta_schedule": name, "rescale_betas_zero_snr": True}
        given.note("options", config)
        made = _made(subject, config)
        if made is None:
            continue
        found = made.alphas_cumprod.double().numpy()
        wanted = zero_terminal_snr(np.cumprod(1 - betas))
        if found[-1] > NO_SIGNAL:
            raise Violation(f"alphas_cumprod ends at {found[-1]:.3g} instead of 0", index=(size - 1,))
        # Every root is a difference of float32 products of up to T factors.
        _require_near(np.sqrt(found[:-1]), np.sqrt(wanted[:-1]), np.full(size - 1, size * EPS), "sqrt(alphas_cumprod)")


def timesteps_follow_the_spacing(subject: SchedulerUnderTest, given: Given) -> None:
    """For every `timestep_spacing` the timesteps are those of Table 2 of arXiv 2305.08891 ("leading", "linspace" also
    without the clean end, as DPM-Solver reads them), or of section 4.2 of 2010.02502, rounded or not, with
    `steps_offset`; further ones may lie between.

    The number of steps is drawn, also one that does not divide the training timesteps; of a few training timesteps,
    every smaller number is tried. A class of a published name refuses none of its spacings.
    """
    require_runs(subject)
    offered = defaults(subject.cls)
    if "timestep_spacing" not in offered:
        raise NotApplicable(f"{subject.name} has no option timestep_spacing")
    size = given.draw("num_train_timesteps", st.sampled_from((SMALL, SMALL, SMALL, offered["num_train_timesteps"])))
    n = given.draw("steps", st.integers(2, min(size, 120)))
    spacing = given.draw("timestep_spacing", st.sampled_from(SPACINGS))
    offset = given.draw("steps_offset", st.sampled_from((0, 1))) if "steps_offset" in subject.options else 0
    _require_spacing_matters(subject)
    if "grids" not in subject.measured:
        for each in SPACINGS:
            for count in range(2, FEW):
                given.note("few", f"{count} of {FEW} {each}")
                _require_spacing(subject, each, FEW, count, 0)
        given.note("few", "")
        subject.measured["grids"] = True
    _require_spacing(subject, spacing, size, n, offset)


def _require_spacing(subject: SchedulerUnderTest, spacing: str, size: int, n: int, offset: int) -> None:
    """n of `size` training timesteps are those of the spacing, or are refused where they may be."""
    config: dict[str, Any] = {"timestep_spacing": spacing, "num_train_timesteps": size}
    config |= {"steps_offset": offset} if "steps_offset" in subject.options else {}
    rules = grids(spacing, size, n, offset)
    try:
        scheduler = subject.prepared(n, **config)
    except REFUSALS as refusal:
        if spacing in _published_spacings(subject) and rules[0].max() <= size - 1 and _takes(subject, size, n):
            raise Violation(f"{n} steps of {size} spaced {spacing!r} are refused: {refusal}") from None
        return
    found = torch.as_tensor(scheduler.timesteps).double().cpu().numpy()
    if found[0] < found[-1]:
        raise NotApplicable(f"{subject.name} runs from data to noise")
    if not any(_visits(found, rule) for rule in rules):
        shown = ", ".join(f"{t:g}" for t in found[:4])
        wanted = " or ".join(", ".join(f"{t:g}" for t in rule[:4]) + ", …" for rule in rules)
        raise Violation(f"{n} steps spaced {spacing!r} begin with {shown}, … instead of {wanted}")


def _published_spacings(subject: SchedulerUnderTest) -> tuple[str, ...]:
    name = next((base.__name__ for base in subject.cls.__mro__ if base.__name__ in published.SPACINGS), None)
    return () if name is None else published.SPACINGS[name]


def _takes(subject: SchedulerUnderTest, size: int, n: int) -> bool:
    """Whether the class takes so many steps with the spacing that it has by default."""
    try:
        subject.prepared(n, num_train_timesteps=size)
    except REFUSALS:
        return False
    return True


def sections_are_respaced(subject: SchedulerUnderTest, given: Given) -> None:
    """`set_timesteps(respacing=…)` visits so many timesteps of each section of the chain, evenly spaced from its first
    to its last, or, for "ddimN", N with the smallest whole stride that gives so many (arXiv 2102.09672; further ones
    may lie between), and a run over them ends with finite numbers.

    Sections without a step, with more than they have, or of what is no whole number are a ValueError, and so is any
    respacing with another spacing than that of sections.
    """
    require_runs(subject)
    if not subject.takes("set_timesteps", "respacing"):
        raise NotApplicable("set_timesteps takes no respacing")
    config: dict[str, Any] = {"timestep_spacing": "improved_diffusion", "num_train_timesteps": SMALL}
    for text, counts in {"1": [1], "7": [7], "3,1,5": [3, 1, 5], "17,2,16": [17, 2, 16]}.items():
        for respacing in (text, counts):
            given.note("respacing", respacing)
            _require_sections(subject, config, respacing, sections(counts, SMALL))
    for n, stride in {2: 25, 5: 10, 13: 4, SMALL: 1}.items():
        given.note("respacing", f"ddim{n}")
        _require_sections(subject, config, f"ddim{n}", stride * np.arange(n)[::-1].astype(float))
    bad: tuple[Any, ...] = (
        "",
        "0",
        "0,5",
        "5,-1",
        "5,x",
        "5,30,5",
        "ddim0",
        "ddim30",
        f"ddim{SMALL + 1}",
        [],
        [2.5],
        [True],
    )
    for sent, options in [*((value, config) for value in bad), ("5", {"timestep_spacing": "leading"})]:
        given.note("respacing", sent)
        scheduler = subject.make(**options)
        try:
            scheduler.set_timesteps(respacing=sent)
        except REFUSALS:
            continue
        raise Violation(f"respacing={sent!r} is accepted, as {scheduler.timesteps.tolist()[:4]}, …")


def _require_sections(subject: SchedulerUnderTest, config: dict[str, Any], respacing: Any, wanted: np.ndarray) -> None:
    scheduler = subject.make(**config)
    scheduler.set_timesteps(respacing=respacing)
    found = torch.as_tensor(scheduler.timesteps).double().cpu().numpy()
    if not _visits(found, wanted):
        raise Violation(f"timesteps {found.tolist()} instead of {np.round(wanted, 1).tolist()}")
    require_finite(full_run(subject, scheduler, 0, subject.start(scheduler, 0, TINY)).final, "the result")


def _visits(found: np.ndarray, rule: np.ndarray) -> bool:
    """Whether every timestep of the rule is visited, in order, as it is or rounded to a whole number."""
    if len(found) < len(rule):
        return False
    position = 0
    for time in rule:
        while position < len(found) and abs(found[position] - time) > 0.5 + 1e-3:
            position += 1
        if position == len(found):
            return False
        position += 1
    whole = bool((found == np.round(found)).all())
    return whole or len(found) > len(rule) or bool((np.abs(found - rule) <= 1e-3).all())


def _require_spacing_matters(subject: SchedulerUnderTest) -> None:
    if "spacings" not in subject.measured:
        subject.measured["spacings"] = set()
        for spacing in SPACINGS:
            with contextlib.suppress(*REFUSALS):
                times = subject.prepared(10, timestep_spacing=spacing, num_train_timesteps=SMALL).timesteps
                subject.measured["spacings"].add(tuple(torch.as_tensor(times).tolist()))
    if len(subject.measured["spacings"]) < 2:
        raise NotApplicable("timestep_spacing does not change the timesteps: the class has a grid of its own")


def _with_tables(subject: SchedulerUnderTest) -> Any:
    scheduler = _made(subject, {})
    if scheduler is None or scheduler.config.get("rescale_betas_zero_snr"):
        raise NotApplicable("the betas are rescaled")
    missing = [
        name for name in ("betas", "alphas_cumprod") if not isinstance(getattr(scheduler, name, None), torch.Tensor)
    ]
    if missing or "beta_schedule" not in choice(subject, {}):
        raise NotApplicable(f"{subject.name} has no tables of betas and a beta_schedule")
    return scheduler


def _range(scheduler: Any) -> tuple[float, float]:
    return float(scheduler.config.get("beta_start", 0.0001)), float(scheduler.config.get("beta_end", 0.02))


def _made(subject: SchedulerUnderTest, config: dict[str, Any]) -> Any | None:
    """The scheduler with the options that its class has, without another shift of the levels; None where refused."""
    offered = defaults(subject.cls)
    config = {"num_train_timesteps": SMALL, **config}
    config = {name: value for name, value in config.items() if name in offered}
    if "snr_shift_scale" in offered:
        config["snr_shift_scale"] = 1.0
    try:
        return subject.make(**config)
    except REFUSALS:
        return None


def _require_tables(subject: SchedulerUnderTest, config: dict[str, Any], betas: np.ndarray, eps: float = EPS) -> None:
    scheduler = _made(subject, config)
    ranged = "beta_start" in config and config.get("beta_schedule") not in ("squaredcos_cap_v2", "jsd")
    if scheduler is None or (ranged and "beta_start" not in scheduler.config):
        return
    wanted = np.cumprod(1 - betas)
    # Every beta is off by a few roundings of the largest, and every product by two more a factor.
    few = np.full(len(betas), 4 * eps * betas.max())
    _require_near(scheduler.betas.double().cpu().numpy(), betas, few, "betas")
    factors = np.arange(1, len(betas) + 1)
    drift = np.cumsum(few / np.maximum(1 - betas, NO_SIGNAL)) + factors * eps
    _require_near(scheduler.alphas_cumprod.double().cpu().numpy(), wanted, wanted * drift + 1e-37, "alphas_cumprod")


def _require_near(found: np.ndarray, wanted: np.ndarray, allowed: np.ndarray, what: str) -> None:
    if found.shape != wanted.shape:
        raise Violation(f"{what} has the shape {found.shape} instead of {wanted.shape}")
    gap = np.abs(found - wanted)
    excess = ~(gap <= allowed)
    if excess.any():
        i = int(np.argmax(excess))
        raise Violation(
            f"{what}[{i}] is {found[i]:.9g} instead of {wanted[i]:.9g} (allowed: ±{allowed[i]:.1g})",
            max_abs=float(gap[i]),
            index=(i,),
        )


CONTRACTS = (
    Contract(betas_follow_their_schedule),
    Contract(zero_snr_leaves_no_signal),
    Contract(timesteps_follow_the_spacing, examples=30),
    Contract(sections_are_respaced),
)
