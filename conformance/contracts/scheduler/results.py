"""What `step` returns: an object or a tuple with the same values, in the sample's form, whatever the precision."""

from __future__ import annotations

from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_same
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.scheduler.driver import SHAPE, SchedulerUnderTest, generators
from conformance.contracts.scheduler.support import (
    STEPS,
    STOCHASTIC_OPTIONS,
    feed,
    full_run,
    noise,
    record,
    require_runs,
    single_options,
)

HALF = (torch.float16, torch.bfloat16)

MIXED = (
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
    (torch.float64, torch.float32),
)
"""Precisions of the sample and of the model output."""


def tuples_hold_the_same(subject: SchedulerUnderTest, given: Given) -> None:
    """`step(return_dict=False)` returns a tuple: the sample of the object that `step` returns otherwise, then the x_0
    that it reports, if it does."""
    require_runs(subject)
    if not subject.takes("step", "return_dict"):
        raise NotApplicable("step takes no return_dict")
    objects, tuples = subject.prepared(STEPS), subject.prepared(STEPS)
    x = subject.start(objects, 0)
    for index, t in enumerate(objects.timesteps):
        wanted, found = (
            _stepped(subject, scheduler, t, x, form) for scheduler, form in ((objects, True), (tuples, False))
        )
        if not isinstance(found, tuple):
            raise Violation(f"step(return_dict=False) returns {type(found).__name__}, no tuple", step=index)
        if isinstance(wanted, tuple):
            raise Violation("step(return_dict=True) returns a tuple", step=index)
        require_same(found[0], wanted.prev_sample, "the first of the tuple", step=index)
        x0 = getattr(wanted, "pred_original_sample", None)
        if x0 is not None and len(found) > 1:
            require_same(found[1], x0, "the second of the tuple", step=index)
        x = wanted.prev_sample


def _stepped(subject: SchedulerUnderTest, scheduler: Any, t: torch.Tensor, x: torch.Tensor, form: bool) -> Any:
    torch.default_generator.manual_seed(0)
    options = {"generator": generators(0)} if subject.takes("step", "generator") else {}
    x = subject.churned(scheduler, x, t, **options)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, t)
    return scheduler.step(subject.some_output(scheduler, x, t), t, x, return_dict=form, **options)


def reported_x0_has_the_form_of_the_sample(subject: SchedulerUnderTest, given: Given) -> None:
    """The x_0 that `step` reports has the shape, the dtype and the device of the sample, in every precision, and with
    the first option with which one is reported if there is none without."""
    require_runs(subject)
    for config in single_options(subject):
        given.note("options", config)
        if _require_form(subject, given, config):
            return
    raise NotApplicable(f"step of {subject.name} reports no x_0")


def _require_form(subject: SchedulerUnderTest, given: Given, config: dict[str, Any]) -> bool:
    """Whether anything is reported."""
    reports = 0
    for dtype in (torch.float32, torch.float64, *HALF):
        given.note("dtype", dtype)
        scheduler = subject.prepared(STEPS, **config)
        x = subject.start(scheduler, 0, dtype=dtype)
        for index, x0 in enumerate(full_run(subject, scheduler, 0, x).x0):
            reports += x0 is not None
            for name in ("shape", "dtype", "device") if x0 is not None else ():
                if getattr(x0, name) != getattr(x, name):
                    raise Violation(
                        f"the reported x_0 has the {name} {getattr(x0, name)}, the sample {getattr(x, name)}",
                        step=index,
                    )
    return bool(reports)


def low_precision_is_widened_throughout(subject: SchedulerUnderTest, given: Given) -> None:
    """A scheduler whose forward process computes in float32 where samples are in half precision, and rounds once, does
    so in its steps: they are those of the same numbers in float32, rounded once, where sample, model output or both are
    in half precision. Likewise float64 samples with float32 model outputs are steps in float64. (Without churn, which
    rounds what the network is given.)"""
    require_runs(subject)
    _require_wide_forward_process(subject)
    still = {"s_churn": 0.0} if subject.takes("__init__", "s_churn") else {}
    for config in single_options(subject):
        if not config.keys() <= {"prediction_type", "coefficients"}:
            continue
        config = {**config, **still}
        given.note("options", config)
        run = record(subject, config, 0, SHAPE)
        for of_sample, of_output in MIXED:
            given.note("sample", of_sample)
            given.note("model output", of_output)
            wide = torch.float64 if of_sample is torch.float64 else torch.float32
            inputs = [x.to(of_sample) for x in run.inputs]
            outputs = [output.to(of_output) for output in run.outputs]
            wanted = _fed(subject, config, [x.to(wide) for x in inputs], [output.to(wide) for output in outputs])
            found = _fed(subject, config, inputs, outputs)
            for index, (narrow, reference) in enumerate(zip(found, wanted, strict=True)):
                require_same(narrow, reference.to(of_sample), "the sample", step=index)


def _fed(
    subject: SchedulerUnderTest, config: dict[str, Any], inputs: list[torch.Tensor], outputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    torch.default_generator.manual_seed(0)
    options = {name: values[-1] for name, values in STOCHASTIC_OPTIONS.items() if subject.takes("step", name)}
    return feed(subject, config, inputs, outputs, generators(0), **options)


def _require_wide_forward_process(subject: SchedulerUnderTest) -> None:
    """Raises NotApplicable unless x_t of half precision is that of float32, rounded once."""
    scheduler = subject.prepared(STEPS)
    for dtype in HALF:
        x0, drawn = noise(1, SHAPE, dtype), noise(2, SHAPE, dtype)
        for t in scheduler.timesteps:
            narrow = subject.add_noise(scheduler, x0, drawn, t)
            if not torch.equal(narrow, subject.add_noise(scheduler, x0.float(), drawn.float(), t).to(dtype)):
                raise NotApplicable(f"the forward process of {subject.name} computes in the precision of the sample")


CONTRACTS = (
    Contract(tuples_hold_the_same),
    Contract(reported_x0_has_the_form_of_the_sample),
    Contract(low_precision_is_widened_throughout),
)
