"""Contracts of the grid: which timesteps are visited, for every number of steps and for explicit lists."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close, require_finite, require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SchedulerUnderTest, config_of
from conformance.contracts.scheduler.options import contradicts, defaults, parameters
from conformance.contracts.scheduler.probes import every_option
from conformance.contracts.scheduler.support import (
    REFUSALS,
    STEPS,
    TINY,
    full_run,
    require_runs,
    single_options,
    some_config,
    why_not,
)

SHORT_CHAIN = 40
"""T of chains that are cheap to visit in full."""

GRID_OPTIONS = ("timestep_spacing", "steps_offset", "skip_prk_steps", "final_sigmas_type", "interpolation_type",
                "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "sigma_schedule",
                "use_lu_lambdas", "shift", "flow_shift", "shift_terminal", "rescale_betas_zero_snr")  # fmt: skip
"""Options that change the list of timesteps or levels."""

ROUNDING = 1e-4
"""Relative. Lists that go through float32 and back may move a level by 1e-7, which 1/√ᾱ_T = 160 amplifies."""


def timesteps_descend_within_training(subject: SchedulerUnderTest, given: Given) -> None:
    """The timesteps are finite, lie within those of training, and never turn back: from noise to data, or, for an
    inverse sampler, from data to noise.
    """
    config, steps = some_config(subject, given), given.draw("steps", st.integers(1, 50))
    training = _training_timesteps(subject, config)
    scheduler = _prepared(subject, steps, config)
    times = scheduler.timesteps.double()
    require_finite(times, "the list of timesteps")
    last = _chain_length(subject, config)
    whole = not scheduler.timesteps.is_floating_point()
    low = min(0.0, training.min().item()) if len(training) else 0.0
    high = max(float(last), training.max().item()) if len(training) else float(last)
    high = last - 1 if whole else high
    if times.min() < low or times.max() > high:
        raise Violation(f"timesteps from {times.min():g} to {times.max():g}; those of training are {low:g} to {high:g}")
    moves = times.diff()
    upwards = bool(moves.sum() > 0)
    rounding = 1e-6 * float(times.abs().amax())
    back = moves < -rounding if upwards else moves > rounding
    if back.any():
        index = int(back.nonzero()[0])
        way = "ascending" if upwards else "descending"
        raise Violation(f"the {way} list turns back: {times[index]:g}, then {times[index + 1]:g}", step=index + 1)
    if not config and len(training) and len(moves) and upwards != bool(training[-1] > training[0]):
        raise Violation(f"from {times[0]:g} to {times[-1]:g}, but in training from {training[0]:g} to {training[-1]:g}")


def each_step_is_one_evaluation(subject: SchedulerUnderTest, given: Given) -> None:
    """n steps are n evaluations of the network at n timesteps, or order·n, of which the last step may save some."""
    config, steps = some_config(subject, given), given.draw("steps", st.integers(4, 50))
    scheduler = _prepared(subject, steps, config)
    order = getattr(scheduler, "order", 1)
    found, allowed = len(scheduler.timesteps), {steps, order * steps, order * steps - (order - 1)}
    if found not in allowed:
        times = scheduler.timesteps.tolist()
        repeated = sorted({t for t in times if times.count(t) > 1}, reverse=True)
        seen = f"; visited more than once: {', '.join(f'{t:g}' for t in repeated[:4])}" if repeated else ""
        raise Violation(f"{steps} steps of order {order} are {found} evaluations instead of {min(allowed)}{seen}")


def timesteps_differ(subject: SchedulerUnderTest, given: Given) -> None:
    """Where every step is one evaluation, no timestep appears twice: the timestep alone says which step it is."""
    config, steps = some_config(subject, given), given.draw("steps", st.integers(1, 50))
    scheduler = _prepared(subject, steps, config)
    times = scheduler.timesteps.double()
    if getattr(scheduler, "order", 1) != 1 or len(times) != steps:
        raise NotApplicable(f"{steps} steps are {len(times)} evaluations")
    same = (times.diff() == 0).nonzero().flatten()
    if len(same):
        index = int(same[0])
        raise Violation(f"the timestep {times[index]:g} is visited twice, at {index} and {index + 1}", step=index + 1)


def any_step_count_runs_or_is_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """For 1, 2, 3, …, T−1 and T steps, also where they do not divide T, a run ends with finite numbers, or
    `set_timesteps` raises a ValueError that speaks of the number of steps; so it is with each option of the grid.
    """
    require_runs(subject)
    short: dict[str, Any] = {}
    counts = [1, 2, 3, 7, 11]
    if "num_train_timesteps" in defaults(subject.cls) and subject.base.get("trained_betas") is None:
        short = {"num_train_timesteps": SHORT_CHAIN}
        counts += [SHORT_CHAIN // 2 + 1, SHORT_CHAIN - 1, SHORT_CHAIN]
    options = [{name: value} for name in GRID_OPTIONS for value in subject.options.get(name, ())[1:]]
    for option in [{}, *options]:
        config = {**short, **option}
        if contradicts({**subject.base, **config}) or why_not(subject, config):
            continue
        given.note("config", config)
        for steps in counts:
            given.note("steps", steps)
            _require_ends(subject, config, steps)
        if given.out_of_time:
            break


def longest_runs_end(subject: SchedulerUnderTest, given: Given) -> None:
    """A run of T−1 and of all T steps of training ends with finite numbers, or `set_timesteps` raises a ValueError that
    speaks of the number of steps.
    """
    require_runs(subject)
    count = _chain_length(subject, {})
    for steps in (count, count - 1):
        given.note("steps", steps)
        _require_ends(subject, {}, steps)
        if given.out_of_time:
            break


def _require_ends(subject: SchedulerUnderTest, config: dict[str, Any], steps: int) -> None:
    scheduler = subject.make(**config)
    try:
        scheduler.set_timesteps(steps)
    except REFUSALS as refusal:
        text = str(refusal)
        if "step" not in text and str(steps) not in text:
            raise Violation(f"the refusal of {steps} steps does not say what is wrong: {text!r}") from None
        return
    if not len(scheduler.timesteps):
        raise Violation(f"{steps} steps are no timesteps at all")
    x = subject.start(scheduler, 0, TINY)
    for index, sample in enumerate(full_run(subject, scheduler, 0, x).samples):
        require_finite(sample, "the sample", step=index)


def full_grid_is_that_of_training(subject: SchedulerUnderTest, given: Given) -> None:
    """All T steps visit the timesteps that the scheduler was made with, each to within one entry of the list.

    A shift of the noise levels that is applied in the constructor and again in `set_timesteps` breaks it.
    """
    require_runs(subject)
    count = _chain_length(subject, {})
    shifts = [(name, v) for name in ("shift", "flow_shift") for v in subject.options.get(name, ())]
    for config in [{}, *({name: value} for name, value in shifts)]:
        given.note("config", config)
        training = _training_timesteps(subject, config).unique()
        if len(training) != count:
            raise NotApplicable(f"the constructor lists {len(training)} timesteps, T is {count}")
        visited = _prepared(subject, count, config).timesteps.double().unique()
        gaps = training.diff()
        stride = torch.maximum(torch.cat([gaps, gaps[-1:]]), torch.cat([gaps[:1], gaps]))
        after = torch.searchsorted(visited, training)
        nearest = torch.minimum(
            (training - visited[(after - 1).clamp(min=0)]).abs(),
            (training - visited[after.clamp(max=len(visited) - 1)]).abs(),
        )
        worst = int((nearest / stride).argmax())
        if nearest[worst] > 1.01 * stride[worst]:
            raise Violation(
                f"{count} steps pass the training timestep {training[worst]:.6g} by {nearest[worst]:.3g}, although "
                f"its neighbours are {stride[worst]:.3g} apart; they visit {visited[-1]:.6g} to {visited[0]:.6g} "
                f"instead of {training[-1]:.6g} to {training[0]:.6g}"
            )


def explicit_timesteps_are_honoured(subject: SchedulerUnderTest, given: Given) -> None:
    """`set_timesteps(timesteps=…)` visits exactly these; with the timesteps of the default grid, a run is the same."""
    _require_takes(subject, "timesteps")
    require_runs(subject)
    held, missing = False, NotApplicable("no configuration takes timesteps")
    for config in single_options(subject):
        given.note("config", config)
        try:
            _require_honoured(subject, config)
        except NotApplicable as reason:
            missing = reason
        else:
            held = True
        if given.out_of_time:
            break
    # Where the times of the network are not whole numbers, the argument may be something else: indices, say.
    whole = not subject.prepared(STEPS).timesteps.is_floating_point()
    if not held and whole and isinstance(missing, Refused):
        raise Violation(f"set_timesteps has the argument, but {missing}")
    if not held:
        raise missing


def _require_honoured(subject: SchedulerUnderTest, config: dict[str, Any]) -> None:
    default = subject.prepared(STEPS, **config)
    grid = _without_repeats(default.timesteps)
    if len(grid) != STEPS:
        raise NotApplicable(f"{STEPS} steps visit {len(grid)} timesteps: which of them the grid has is not seen")
    part = grid[::2]
    try:
        explicit = _with_list(subject, config, timesteps=grid)
    except Refused as refusal:
        _with_list(subject, config, timesteps=part)
        raise Violation(
            f"every second timestep of the default grid can be given, but not all of it: {refusal}"
        ) from None
    require_close(
        explicit.timesteps.double(), default.timesteps.double(), "the list from its own timesteps", bound=1e-6
    )
    wanted, found = full_run(subject, default, 1), full_run(subject, explicit, 1)
    for index, (a, b) in enumerate(zip(found.samples, wanted.samples, strict=True)):
        require_close(a, b, "the run over the default timesteps, given explicitly", bound=ROUNDING, step=index)
    scheduler = _with_list(subject, config, timesteps=part)
    found_part = torch.tensor(_without_repeats(scheduler.timesteps)).double()
    require_same(found_part, torch.tensor(part).double(), f"the list given, {part},")
    for index, sample in enumerate(full_run(subject, scheduler, 1).samples):
        require_finite(sample, "the sample", step=index)


def explicit_sigmas_are_honoured(subject: SchedulerUnderTest, given: Given) -> None:
    """`set_timesteps(sigmas=…)` visits exactly these; with the levels of the default grid, a run is the same. It takes
    them, if not as the class is given, then with another option. Where levels may be repeated, a run goes on
    with finite numbers."""
    _require_takes(subject, "sigmas")
    require_runs(subject)
    default = subject.prepared(STEPS)
    whole = default.sigmas.tolist()
    sigmas = whole[: min(len(default.timesteps), len(whole) - 1)]  # a step may take several evaluations
    given.note("sigmas", sigmas)
    end: list[float] = []
    try:
        explicit = _with_list(subject, {}, sigmas=sigmas)
    except NotApplicable:
        if any(map(partial(_takes_list, subject, sigmas + whole[-1:]), every_option(subject))):
            raise
        raise Violation("the levels of the default grid are refused, whatever the options") from None
    if len(explicit.sigmas) == len(sigmas):  # the class wants to be given the level after the last step, too
        end = whole[-1:]
        explicit = _with_list(subject, {}, sigmas=sigmas + end)
    require_close(explicit.sigmas, default.sigmas, "the list of sigmas from the default ones", bound=ROUNDING)
    require_close(
        explicit.timesteps.double(), default.timesteps.double(), "the timesteps from the default sigmas", bound=1e-3
    )
    part = sigmas[::2]
    given.note("sigmas", part + end)
    scheduler = _with_list(subject, {}, sigmas=part + end)
    require_close(
        scheduler.sigmas[: len(part)].double(), torch.tensor(part).double(), "the list of sigmas", bound=ROUNDING
    )
    for index, sample in enumerate(full_run(subject, scheduler, 1).samples):
        require_finite(sample, "the sample", step=index)
    for config in single_options(subject):
        given.note("options", config)
        own = subject.prepared(STEPS, **config).sigmas.tolist()[: len(sigmas)]
        _require_repeats(subject, config, [*own[:2], own[1], *own[1:], *end])


def _require_repeats(subject: SchedulerUnderTest, config: dict[str, Any], sigmas: list[float]) -> None:
    try:
        scheduler = _with_list(subject, config, sigmas=sigmas)
    except NotApplicable:
        return
    for index, sample in enumerate(full_run(subject, scheduler, 1).samples):
        require_finite(sample, f"the sample of a run over repeated levels with {config}", step=index)


def unusable_timesteps_are_refused(subject: SchedulerUnderTest, given: Given) -> None:
    """Explicit timesteps that ascend, lie outside of training or are empty raise a ValueError, and so do those of which
    there are fewer than the number of steps that is asked for with them."""
    _require_takes(subject, "timesteps")
    require_runs(subject)
    default = subject.prepared(STEPS)
    grid, last = _without_repeats(default.timesteps), _chain_length(subject, {})
    kind = type(grid[0])
    kinds = {"ascend": grid[::-1], "lie outside of training": [kind(last + 5), *grid], "are none": []}
    kinds["lie below training"] = [*(t for t in grid if t > 0), kind(-1)]
    if not default.timesteps.is_floating_point():
        kinds["begin at T"] = [last, *grid]
    calls: dict[str, tuple[list[Any], dict[str, int]]] = {
        f"timesteps that {what}": (values, {}) for what, values in kinds.items()
    }
    calls[f"{len(grid[::2])} timesteps for {STEPS} steps"] = grid[::2], {"num_inference_steps": STEPS}
    for what, (values, count) in calls.items():
        given.note("timesteps", values)
        try:
            scheduler = _with_list(subject, {}, count, timesteps=values)
        except NotApplicable:
            continue
        except Exception as error:  # noqa: BLE001 - whatever the subject raises is what is reported
            raise Violation(f"{what} raise {type(error).__name__} ({error}) instead of ValueError") from None
        raise Violation(f"{what} are accepted, as {scheduler.timesteps.tolist()[:8]}")


class Refused(NotApplicable):
    """A list that is given to `set_timesteps` is refused."""


def _require_takes(subject: SchedulerUnderTest, argument: str) -> None:
    if not subject.takes("set_timesteps", argument):
        raise NotApplicable(f"set_timesteps takes no {argument}")


def _takes_list(subject: SchedulerUnderTest, sigmas: list[float], config: dict[str, Any]) -> bool:
    """Whether the levels (but for the last), or all of them, are not refused."""
    for values in (sigmas[:-1], sigmas):
        try:
            _with_list(subject, config, sigmas=values)
        except (NotApplicable, *REFUSALS):
            continue
        except Exception:  # noqa: BLE001 - not refused; what an option does wrong is no matter here
            pass
        return True
    return False


def _with_list(
    subject: SchedulerUnderTest, config: dict[str, Any], count: dict[str, int] | None = None, **values: list[Any]
) -> Any:
    """A scheduler over an explicit list; raises NotApplicable where the class refuses it.

    count: the number of steps that is asked for; None for that of the list, where the class wants one.
    """
    scheduler = subject.make(**config)
    if not count:
        first = parameters(subject.cls, "set_timesteps")["num_inference_steps"]
        needed = first.default is first.empty
        count = {"num_inference_steps": len(next(iter(values.values())))} if needed else {}
    try:
        scheduler.set_timesteps(**count, **values)
    except REFUSALS as refusal:
        raise Refused(f"set_timesteps({', '.join(values)}=…) is refused: {refusal}") from None
    return scheduler


def _prepared(subject: SchedulerUnderTest, steps: int, config: dict[str, Any]) -> Any:
    """A scheduler over this many steps; raises NotApplicable where the class refuses the number."""
    try:
        return subject.prepared(steps, **config)
    except REFUSALS as refusal:
        raise NotApplicable(f"{steps} steps are refused: {refusal}") from None


def _training_timesteps(subject: SchedulerUnderTest, config: dict[str, Any]) -> torch.Tensor:
    """(N,) the timesteps that a scheduler lists before `set_timesteps`; none for a class that has no list yet."""
    times = getattr(subject.make(**config), "timesteps", None)
    return torch.zeros(0) if times is None else torch.as_tensor(times).double().flatten()


def _chain_length(subject: SchedulerUnderTest, config: dict[str, Any]) -> int:
    """T; raises NotApplicable for a scheduler that does not know it."""
    length = config_of(subject.make(**config)).get("num_train_timesteps")
    if length is None:
        raise NotApplicable(f"{subject.name} has no num_train_timesteps")
    return int(length)


def _without_repeats(timesteps: torch.Tensor) -> list[Any]:
    """The list without immediate repeats, as numbers."""
    values = timesteps.tolist()
    return [t for index, t in enumerate(values) if index == 0 or t != values[index - 1]]


CONTRACTS = (
    Contract(timesteps_descend_within_training, examples=25),
    Contract(each_step_is_one_evaluation, examples=10),
    Contract(timesteps_differ, examples=25),
    Contract(any_step_count_runs_or_is_refused),
    Contract(longest_runs_end),
    Contract(full_grid_is_that_of_training),
    Contract(explicit_timesteps_are_honoured),
    Contract(explicit_sigmas_are_honoured),
    Contract(unusable_timesteps_are_refused),
)
