"""Contracts of precision: the dtype is kept, half types come close, tables survive a change of dtype."""

from __future__ import annotations

import torch
from torch import nn

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_finite, require_same
from conformance.contracts.model.driver import ModelUnderTest, in_dtype
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.tensors import distance, lacks_kernel

HALVES = (torch.float16, torch.bfloat16)

SLACK = 2
"""How many times the sum of what rounding the weights does and what rounding the arithmetic does (both are measured) a
half type may be away: both are maxima over one input."""


def dtype_and_device_are_kept(subject: ModelUnderTest, given: Given) -> None:
    """The output has the dtype and device of the sample, for float32, float64, float16 and bfloat16 networks."""
    inputs = subject.make()
    for dtype in (torch.float32, torch.float64, *HALVES):
        model = subject.fresh().to(dtype)
        try:
            output = subject.run(model, in_dtype(inputs, dtype, but=_times(subject)))
        except (RuntimeError, NotImplementedError) as error:
            if lacks_kernel(error):
                continue
            raise Violation(f"a {dtype} network fails: {type(error).__name__}: {error}") from error
        if output.dtype != dtype or output.device != subject.inputs.device:
            raise Violation(f"a {dtype} network on {subject.inputs.device} returns {output.dtype} on {output.device}")


def half_precision_is_close(subject: ModelUnderTest, given: Given) -> None:
    """In float16 and bfloat16 the output is finite, and as close to float32's as rounding of weights, inputs and
    arithmetic to that type explains: nothing else, such as a table, is rounded."""
    inputs = subject.make()
    wanted = subject.run(subject.live, inputs)
    exact = subject.run(subject.fresh().double(), in_dtype(inputs, torch.float64))
    arithmetic = max(distance(wanted.double(), exact), 2.0**-24)
    for dtype in _halves(subject):
        rounded = in_dtype(in_dtype(inputs, dtype, but=_times(subject)), torch.float32, but=_times(subject))
        of_weights = distance(subject.run(_rounded(subject.fresh(), dtype), rounded), wanted)
        coarser = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        bound = SLACK * (of_weights + coarser * arithmetic)
        output = subject.run(subject.fresh().to(dtype), in_dtype(inputs, dtype, but=_times(subject)))
        require_finite(output, f"the {dtype} output")
        apart = distance(output.float(), wanted)
        if apart > bound:
            raise Violation(
                f"in {dtype} the output is {apart:.2g} from float32's; its rounding explains {bound:.2g}",
                max_rel=apart,
            )


def half_precision_keeps_times_apart(subject: ModelUnderTest, given: Given) -> None:
    """In float16 and bfloat16 two times that are one number in that type give two outputs: times are not rounded to the
    network's dtype."""
    name = subject.inputs.time_name
    inputs = subject.make()
    time = inputs[name].double()
    seen = False
    for dtype in _halves(subject):
        step = torch.finfo(dtype).eps / 4  # Less than half of what this type can tell apart.
        pair = [time.to(dtype).float(), (time.to(dtype).double() * (1 + step)).float()]
        if not torch.equal(pair[1].to(dtype), pair[0].to(dtype)):
            continue
        try:
            one, other = (subject.run(subject.live, {**inputs, name: each}) for each in pair)
        except (ValueError, TypeError):
            raise NotApplicable(f"the network refuses a floating {name}") from None
        if distance(other, one) < 8 * torch.finfo(dtype).eps:
            continue  # In this type the difference need not be seen.
        seen = True
        model, rounded = subject.fresh().to(dtype), in_dtype(inputs, dtype)
        one, other = (subject.run(model, {**rounded, name: each}) for each in pair)
        if torch.equal(one, other):
            first, second = (each.reshape(-1)[0].item() for each in pair)
            raise Violation(f"a {dtype} network gives the same output at the times {first:.9g} and {second:.9g}")
    if not seen:
        raise NotApplicable("times closer than a half type can tell apart make no difference in it")


def half_precision_leaves_tables_alone(subject: ModelUnderTest, given: Given) -> None:
    """A network that went to a half type and back to float32 has rounded weights and nothing else rounded: tables that
    are not in the state dict keep their precision."""
    inputs = subject.make()
    for dtype in _halves(subject):
        wanted = subject.run(_rounded(subject.fresh(), dtype), inputs)
        found = subject.run(subject.fresh().to(dtype).float(), inputs)
        require_same(found, wanted, f"the output after {dtype} and back, beside that of rounded weights")


def _halves(subject: ModelUnderTest) -> list[torch.dtype]:
    """The half types in which torch can evaluate the network here. Raises NotApplicable if there is none."""
    found = []
    for dtype in HALVES:
        try:
            subject.run(subject.fresh().to(dtype), in_dtype(subject.make(), dtype, but=_times(subject)))
        except RuntimeError as error:
            if lacks_kernel(error):
                continue
            raise
        found.append(dtype)
    if not found:
        raise NotApplicable("torch has no half precision for this network on this device")
    return found


def _rounded(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Parameters and saved buffers rounded to `dtype`, in float32."""
    for value in model.state_dict().values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.copy_(value.to(dtype))
    return model


def _times(subject: ModelUnderTest) -> tuple[str, ...]:
    """The time argument, which a caller never rounds."""
    try:
        return (subject.inputs.time_name,)
    except NotApplicable:
        return ()


CONTRACTS = (
    Contract(dtype_and_device_are_kept),
    Contract(half_precision_is_close),
    Contract(half_precision_keeps_times_apart),
    Contract(half_precision_leaves_tables_alone),
)
