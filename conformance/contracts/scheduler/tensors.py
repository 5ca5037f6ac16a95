"""Contracts of tensors: any shape, any precision, any batch; the same numbers come out.

The comparisons feed recorded model outputs, so that only the scheduler's own arithmetic is compared.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close, require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SHAPE, SchedulerUnderTest, generators
from conformance.contracts.scheduler.randomness import draws_globally, is_stochastic
from conformance.contracts.scheduler.support import (
    REFUSALS,
    STEPS,
    feed,
    full_run,
    noise,
    record,
    require_runs,
    sample_of,
    single_options,
    some_config,
    some_step_options,
)

BATCH = (3, 2, 2, 2)
SHAPES = ((2, 24), (2, 6, 4), (2, 3, 4, 2), (2, 3, 2, 2, 2))
"""Layouts of the same numbers: a signal, audio, images, video."""

HALF = (torch.float16, torch.bfloat16)


def shape_dtype_and_device_are_kept(subject: SchedulerUnderTest, given: Given) -> None:
    """Every step returns the shape, the dtype and the device of the sample; so does the forward process."""
    config = some_config(subject, given)
    dtype = given.draw("dtype", st.sampled_from((torch.float32, torch.float64, *HALF)))
    scheduler = subject.prepared(STEPS, **config)
    x = subject.start(scheduler, 0, dtype=dtype)
    for index, sample in enumerate(full_run(subject, scheduler, 0, x).samples):
        _require_like(sample, x, "the sample", index)
    try:
        mixed = subject.add_noise(scheduler, x, noise(1, SHAPE, dtype), scheduler.timesteps[0])
    except NotApplicable:
        return
    _require_like(mixed, x, "add_noise", None)


def _require_like(found: torch.Tensor, x: torch.Tensor, what: str, step: int | None) -> None:
    for name in ("shape", "dtype", "device"):
        if getattr(found, name) != getattr(x, name):
            raise Violation(f"{what} has the {name} {getattr(found, name)} instead of {getattr(x, name)}", step=step)


def timesteps_lie_on_the_device(subject: SchedulerUnderTest, given: Given) -> None:
    """`set_timesteps(n, device=…)` puts `timesteps` on that device; so it is with each option.

    The device is torch's "meta", which every machine has; a class that reads its list there cannot be asked.
    """
    require_runs(subject)
    if not subject.takes("set_timesteps", "device"):
        raise NotApplicable(f"set_timesteps of {subject.name} takes no device")
    asked = 0
    for config in single_options(subject):
        given.note("options", config)
        scheduler = subject.make(**config)
        try:
            scheduler.set_timesteps(STEPS, device="meta")
        except (RuntimeError, NotImplementedError):  # how torch says that there are no numbers
            continue
        asked += 1
        if scheduler.timesteps.device.type != "meta":
            raise Violation(f"timesteps that were asked for on the device meta are on {scheduler.timesteps.device}")
    if not asked:
        raise NotApplicable("set_timesteps reads numbers from the device")


def inputs_are_left_alone(subject: SchedulerUnderTest, given: Given) -> None:
    """Neither `step` nor `add_noise` nor `scale_model_input` writes into a tensor that it is given."""
    config, options = some_config(subject, given), some_step_options(subject, given)
    run = record(subject, config, given.seed(), SHAPE)
    inputs, outputs = ([1.5 * tensor for tensor in tensors] for tensors in (run.inputs, run.outputs))
    before = [x.clone() for x in inputs], [output.clone() for output in outputs]
    feed(subject, config, inputs, outputs, generators(0), **options)
    for index, (x, output) in enumerate(zip(inputs, outputs, strict=True)):
        require_same(x, before[0][index], "the sample that was given to step", step=index)
        require_same(output, before[1][index], "the model output that was given to step", step=index)
    scheduler, x0, drawn = subject.prepared(STEPS, **config), noise(1), noise(2)
    try:
        subject.add_noise(scheduler, x0, drawn, scheduler.timesteps[0])
    except NotApplicable:
        return
    require_same(x0, noise(1), "the sample that was given to add_noise")
    require_same(drawn, noise(2), "the noise that was given to add_noise")


def batch_equals_singles(subject: SchedulerUnderTest, given: Given) -> None:
    """A batch with one generator per sample gives what the samples give one by one."""
    config, options = some_config(subject, given), some_step_options(subject, given)
    _require_seedable(subject, config, options)
    seed = given.seed()
    run = record(subject, config, seed, BATCH)
    batch = feed(subject, config, run.inputs, run.outputs, generators(seed, len(run.inputs[0])), **options)
    for one in range(BATCH[0]):
        inputs, outputs = ([tensor[one : one + 1] for tensor in tensors] for tensors in (run.inputs, run.outputs))
        single = feed(subject, config, inputs, outputs, generators(seed + one, 1), **options)
        for index, (found, wanted) in enumerate(zip(batch, single, strict=True)):
            require_close(
                found[one : one + 1], wanted, f"sample {one} of a batch of {BATCH[0]}", bound=1e-6, step=index
            )


def permuting_the_batch_permutes_the_result(subject: SchedulerUnderTest, given: Given) -> None:
    """Samples, model outputs and generators in another order give the same results in that order."""
    config, options = some_config(subject, given), some_step_options(subject, given)
    _require_seedable(subject, config, options)
    seed, order = given.seed(), given.draw("order", st.permutations(range(BATCH[0])))
    run = record(subject, config, seed, BATCH)
    plain = feed(subject, config, run.inputs, run.outputs, generators(seed, BATCH[0]), **options)
    moved = feed(
        subject,
        config,
        [tensor[order] for tensor in run.inputs],
        [tensor[order] for tensor in run.outputs],
        [generators(seed + one) for one in order],
        **options,
    )
    for index, (found, wanted) in enumerate(zip(moved, plain, strict=True)):
        require_close(found, wanted[order], "the permuted batch", bound=1e-6, step=index)


def any_shape_gives_the_same_numbers(subject: SchedulerUnderTest, given: Given) -> None:
    """Signals (B, L), audio (B, C, L), images (B, C, H, W) and video (B, C, F, H, W) with the same numbers give the
    same numbers.
    """
    require_runs(subject)
    shape = given.draw("shape", st.sampled_from(SHAPES))
    seed = given.seed()
    run = record(subject, {}, seed, SHAPE)
    if run.outputs[0].shape != run.inputs[0].shape:
        raise NotApplicable("the network returns more channels than the sample has")
    torch.default_generator.manual_seed(seed)
    wanted = feed(subject, {}, run.inputs, run.outputs, generators(seed))
    inputs, outputs = ([tensor.reshape(shape) for tensor in tensors] for tensors in (run.inputs, run.outputs))
    torch.default_generator.manual_seed(seed)
    for index, (found, image) in enumerate(
        zip(feed(subject, {}, inputs, outputs, generators(seed)), wanted, strict=True)
    ):
        require_close(found, image.reshape(shape), f"the sample of shape {shape}", bound=1e-6, step=index)


def memory_layout_does_not_matter(subject: SchedulerUnderTest, given: Given) -> None:
    """Tensors that are not contiguous, or that record gradients, give the same numbers."""
    require_runs(subject)
    kind = given.draw("tensors", st.sampled_from(("not contiguous", "with gradients")))
    seed = given.seed()
    run = record(subject, {}, seed, SHAPE)
    torch.default_generator.manual_seed(seed)
    wanted = feed(subject, {}, run.inputs, run.outputs, generators(seed))
    torch.default_generator.manual_seed(seed)
    if kind == "not contiguous":
        inputs, outputs = ([t.mT.contiguous().mT for t in tensors] for tensors in (run.inputs, run.outputs))
        found = feed(subject, {}, inputs, outputs, generators(seed))
    else:
        inputs, outputs = ([t.clone().requires_grad_() for t in tensors] for tensors in (run.inputs, run.outputs))
        with torch.enable_grad():
            found = feed(subject, {}, inputs, outputs, generators(seed))
    for index, (sample, one) in enumerate(zip(found, wanted, strict=True)):
        require_close(sample, one, f"the sample from tensors {kind}", bound=1e-6, step=index)


def any_form_of_timestep_will_do(subject: SchedulerUnderTest, given: Given) -> None:
    """A timestep as a 0-d tensor of the list, as a tensor of one element or as a Python number is the same timestep,
    or is refused.
    """
    require_runs(subject)
    form = given.draw("form", st.sampled_from(("a tensor of one element", "a Python number", "another 0-d tensor")))
    run = record(subject, {}, 0, SHAPE)
    wanted, scheduler = subject.prepared(STEPS), subject.prepared(STEPS)
    for index in range(2):
        timestep = scheduler.timesteps[index]
        if form == "a Python number":
            other = timestep.item()
        else:
            other = timestep.clone().reshape(1) if form == "a tensor of one element" else timestep.clone()
        options = {"generator": generators(0)} if subject.takes("step", "generator") else {}
        torch.default_generator.manual_seed(0)
        plain = sample_of(wanted.step(run.outputs[index], timestep, run.inputs[index], **options))
        options = {"generator": generators(0)} if options else {}
        torch.default_generator.manual_seed(0)
        try:
            found = sample_of(scheduler.step(run.outputs[index], other, run.inputs[index], **options))
        except (*REFUSALS, TypeError):
            raise NotApplicable(f"{form} is refused") from None
        require_close(found, plain, f"the step at {form}", bound=1e-6, step=index)


def half_precision_is_close(subject: SchedulerUnderTest, given: Given) -> None:
    """Steps in float16 and bfloat16 give what float32 gives for the same numbers, to a few roundings.

    A rounding is what moving the inputs by one unit of the half type does to the result, plus one unit of the result;
    eight of them are allowed. Steps are compared without noise, as the same seed may draw other numbers there.
    """
    config, dtype = some_config(subject, given), given.draw("dtype", st.sampled_from(HALF))
    options = {"eta": 0.0} if subject.takes("step", "eta") else {}
    if is_stochastic(subject, config, options):
        raise NotApplicable("steps add noise")
    unit = torch.finfo(dtype).eps
    run = record(subject, config, given.seed(), SHAPE)
    inputs, outputs = ([tensor.to(dtype) for tensor in tensors] for tensors in (run.inputs, run.outputs))
    if not all(bool(tensor.isfinite().all()) for tensor in inputs):
        raise NotApplicable(f"samples of this configuration exceed {dtype}")
    found = feed(subject, config, inputs, outputs, **options)
    wide_inputs, wide_outputs = ([tensor.float() for tensor in tensors] for tensors in (inputs, outputs))
    wanted = feed(subject, config, wide_inputs, wide_outputs, **options)
    rounding = [unit * sample.abs().amax() for sample in wanted]
    for probe in range(3):
        moved = feed(
            subject,
            config,
            [x + unit * x.abs() * noise(7 + probe, tuple(x.shape)).sign() for x in wide_inputs],
            [x + unit * x.abs() * noise(17 + probe, tuple(x.shape)).sign() for x in wide_outputs],
            **options,
        )
        rounding = [
            torch.maximum(one, (a - b).abs().amax() + unit * b.abs().amax())
            for one, a, b in zip(rounding, moved, wanted, strict=True)
        ]
    for index, (half, wide) in enumerate(zip(found, wanted, strict=True)):
        bound = float(8 * rounding[index] / wide.abs().amax())
        require_close(half.float(), wide, f"the step in {dtype}", bound=bound, step=index)


def half_precision_keeps_the_levels(subject: SchedulerUnderTest, given: Given) -> None:
    """In float16 and bfloat16, the forward process has the levels of float32: x_t = a·x_0 + b·noise with a and b right
    to two units of the half type, relative to the larger one.

    √(1 − ᾱ_t) from an ᾱ_t that was rounded to half precision first is wrong by more than that at small t.
    """
    config, dtype = some_config(subject, given), given.draw("dtype", st.sampled_from(HALF))
    scheduler = subject.prepared(STEPS, **config)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    parts = ((one, zero), (zero, one))
    for index, timestep in enumerate(scheduler.timesteps):
        wide, half = (
            [subject.add_noise(scheduler, x0.to(kind), drawn.to(kind), timestep) for x0, drawn in parts]
            for kind in (torch.float32, dtype)
        )
        allowed = 2 * torch.finfo(dtype).eps * max(float(level.abs()) for level in wide)
        for what, found, level in zip(("signal", "noise"), half, wide, strict=True):
            bound = allowed / max(float(level.abs()), torch.finfo(torch.float32).tiny)
            name = f"the level of the {what} at timestep {float(timestep):g} in {dtype}"
            require_close(found.float(), level.float(), name, bound=bound, step=index)


def float64_is_not_narrowed(subject: SchedulerUnderTest, given: Given) -> None:
    """A step computes float64 samples in float64: a change that float32 could not hold reaches the result.

    Tables may be float32; the arithmetic may not. A change that is lost beside a large sample says nothing.
    """
    config = some_config(subject, given)
    run = record(subject, config, given.seed(), SHAPE)
    inputs, outputs = ([tensor.double() for tensor in tensors] for tensors in (run.inputs, run.outputs))
    which = given.draw("scaled", st.sampled_from(("sample", "model output")))
    results = []
    for share in (0.0, 2.0**-36, 2.0**-20):  # which float32 cannot, and can, add to 1
        torch.default_generator.manual_seed(0)
        moved_inputs = [(1 + share * (which == "sample")) * x for x in inputs]
        moved_outputs = [(1 + share * (which == "model output")) * x for x in outputs]
        results.append(feed(subject, config, moved_inputs, moved_outputs, generators(0)))
    for index, (plain, finely, coarsely) in enumerate(zip(*results, strict=True)):
        if plain.dtype is not torch.float64:
            raise Violation(f"the result for float64 samples is {plain.dtype}", step=index)
        moved = (coarsely - plain).abs()
        if torch.equal(plain, finely) and (2.0**-16 * moved > 2.0**-50 * plain.abs()).any():
            raise Violation(
                f"scaling a float64 {which} by 1 + 1.5e-11 changed nothing: it is rounded to float32", step=index
            )


def _require_seedable(subject: SchedulerUnderTest, config: dict[str, Any], options: dict[str, Any]) -> None:
    if draws_globally(subject, config, options):
        raise NotApplicable("the noise does not come from the generator")


CONTRACTS = (
    Contract(shape_dtype_and_device_are_kept, examples=10),
    Contract(timesteps_lie_on_the_device),
    Contract(inputs_are_left_alone, examples=6),
    Contract(batch_equals_singles, examples=10),
    Contract(permuting_the_batch_permutes_the_result, examples=6),
    Contract(any_shape_gives_the_same_numbers, examples=8),
    Contract(memory_layout_does_not_matter, examples=4),
    Contract(any_form_of_timestep_will_do, examples=4),
    Contract(half_precision_is_close, examples=10),
    Contract(half_precision_keeps_the_levels, examples=6),
    Contract(float64_is_not_narrowed, examples=8),
)
