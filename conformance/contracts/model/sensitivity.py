"""Contracts of what must matter: every input, every parameter, fractions of a time; and of what must not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close
from conformance.contracts.model.driver import ModelUnderTest
from conformance.contracts.model.inputs import LABELS, MASKS, TIMES, TOKENS, Inputs
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.tensors import require_different

MAX_NAMED = 4
SINGLE_TIME = 517


def every_input_matters(subject: ModelUnderTest, given: Given) -> None:
    """Another sample, another time, another label, another condition: each alone changes the output of every sample."""
    inputs, others = subject.make(seed=0), subject.make(seed=1)
    wanted = subject.run(subject.live, inputs)
    bound = subject.rounding(inputs)
    for name, other in others.items():
        if not isinstance(other, torch.Tensor) or name in MASKS:
            continue
        if name in TIMES:
            other = inputs[name].flip(0) if len(set(inputs[name].tolist())) == len(other) else other / 2
        elif name not in {LABELS} and torch.equal(other, inputs[name]):
            continue  # Given integers, of which no other value is known to be allowed.
        require_different(subject.run(subject.live, {**inputs, name: other}), wanted, f"another {name}", bound=bound)


def fractional_times_matter(subject: ModelUnderTest, given: Given) -> None:
    """A time half a step further is another time: it is not rounded to an integer, or it is refused."""
    name = subject.inputs.time_name
    inputs = subject.make()
    times = inputs[name].float()
    bound = subject.rounding(inputs)
    at = {}
    for shift in (0.0, 0.5, 1.0):
        try:
            at[shift] = subject.run(subject.live, {**inputs, name: times - shift})
        except (ValueError, TypeError):
            raise NotApplicable(f"the network refuses a floating {name}") from None
    for neighbour in (0.0, 1.0):
        require_different(at[0.5], at[neighbour], f"half a step from {name} − {neighbour:g}", bound=bound)


def forms_of_a_time_agree(subject: ModelUnderTest, given: Given) -> None:
    """One time as an int, a float, a tensor of no dimension, of one element, or of one element a sample, integer or
    floating: the same output.

    A network whose signature names no numbers may refuse all but one element a sample.
    """
    name = subject.inputs.time_name
    inputs = subject.make()
    value = float(inputs[name].reshape(-1)[0])
    if value.is_integer() and value >= 1:
        value = float(SINGLE_TIME)
    batch = len(inputs[subject.inputs.sample_name])
    device = inputs[name].device
    forms: dict[str, Any] = {
        "one float32 a sample": torch.full((batch,), value, device=device),
        "a float": value,
        "a float32 tensor of no dimension": torch.tensor(value),
        "a float32 tensor of one element": torch.tensor([value], device=device),
        "a float64 tensor of no dimension": torch.tensor(value, dtype=torch.float64),
    }
    if value.is_integer():
        whole = int(value)
        forms |= {
            "an int": whole,
            "an int64 tensor of no dimension": torch.tensor(whole),
            "an int64 tensor of one element": torch.tensor([whole], device=device),
            "one int64 a sample": torch.full((batch,), whole, device=device),
        }
    wanted = subject.run(subject.live, {**inputs, name: forms["one float32 a sample"]})
    bound = subject.rounding(inputs)
    annotation = str(subject.inputs.parameters[name].annotation)
    takes_numbers = "int" in annotation or "float" in annotation
    for form, time in forms.items():
        try:
            found = subject.run(subject.live, {**inputs, name: time})
        except Exception as error:
            if not takes_numbers and "a sample" not in form:
                continue
            raise Violation(f"{name} as {form}: {type(error).__name__}: {error}") from error
        require_close(found, wanted, f"the output for {name} as {form}", bound=bound)


def every_parameter_matters(subject: ModelUnderTest, given: Given) -> None:
    """The output depends on every parameter: by a gradient that is not zero throughout, or else when it is changed."""
    model = subject.fresh()
    inputs = subject.make()
    reached: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: reached.add(name))
        for name, module in model.named_modules()
    ]
    with torch.enable_grad():
        output = subject.run(model, inputs)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        (output * weights).sum().backward()
    for hook in hooks:
        hook.remove()
    suspects = {name: p for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    dead = [name for name, parameter in suspects.items() if torch.equal(_changed(subject, model, parameter), output)]
    surely = [name for name in dead if name.rpartition(".")[0] in reached]
    absent = [name for name in subject.inputs.parameters if name not in inputs and name != "return_dict"]
    if dead and (surely or not absent):
        raise Violation(f"the output does not depend on {_named(surely or dead)} ({len(dead)} of {_count(model)})")
    if dead:
        raise NotApplicable(
            f"{_named(dead)} were not used, perhaps for want of {', '.join(absent)}: give these with inputs={{...}}"
        )


def _changed(subject: ModelUnderTest, model: nn.Module, parameter: nn.Parameter) -> torch.Tensor:
    """The output with another value of a parameter, which may act without a gradient (a codebook)."""
    before = parameter.detach().clone()
    parameter.copy_(1.5 * before.flip(0) + 0.1)
    output = subject.run(model, subject.make())
    parameter.copy_(before)
    return output


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _count(model: nn.Module) -> int:
    return len(list(model.parameters()))


def gradients_reach_the_inputs(subject: ModelUnderTest, given: Given) -> None:
    """Gradients flow to the sample and to every floating condition: nothing on the way is detached."""
    inputs = subject.make()
    inputs = {
        name: value.requires_grad_() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    with torch.enable_grad():
        output = subject.run(subject.live, inputs)
        if not output.requires_grad:
            raise Violation("the output has no gradient, although gradients are on and the inputs ask for them")
        output.square().sum().backward()
    for name, value in inputs.items():
        wants = isinstance(value, torch.Tensor) and value.requires_grad and name not in (*TIMES, *MASKS)
        if wants and (value.grad is None or not value.grad.any()):
            raise Violation(f"no gradient reaches {name}")
    for parameter in subject.live.parameters():
        parameter.grad = None


# --- attention masks -------------------------------------------------------------------------------------------------


def _masked(subject: ModelUnderTest) -> tuple[str, Inputs, torch.Tensor]:
    """The mask argument, inputs, and a mask that leaves out the last two tokens."""
    name = next((name for name in MASKS if name in subject.inputs.parameters), None)
    if name is None:
        raise NotApplicable(f"forward takes no {' or '.join(MASKS)}")
    inputs = subject.make()
    tokens = inputs.get(TOKENS)
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3 or tokens.shape[1] < 3:
        raise NotApplicable(f"{TOKENS} is no (B, tokens, width) of 3 tokens or more")
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    mask[:, -2:] = False
    return name, inputs, mask


def masked_tokens_do_not_matter(subject: ModelUnderTest, given: Given) -> None:
    """Tokens that the mask leaves out may hold anything, and the output is that of the sequence without them."""
    name, inputs, mask = _masked(subject)
    bound = subject.rounding(inputs)
    wanted = subject.run(subject.live, {**inputs, name: mask})
    filled = torch.where(mask[..., None], inputs[TOKENS], 3 - inputs[TOKENS])
    found = subject.run(subject.live, {**inputs, name: mask, TOKENS: filled})
    require_close(found, wanted, "the output after a change of masked tokens", bound=bound)
    short = {**inputs, TOKENS: inputs[TOKENS][:, :-2], name: mask[:, :-2]}
    require_close(subject.run(subject.live, short), wanted, "the output without the masked tokens", bound=bound)


def attention_masks_matter(subject: ModelUnderTest, given: Given) -> None:
    """A mask that leaves out tokens changes the output, one that leaves out none does not; the mask's dtype does not
    matter."""
    name, inputs, mask = _masked(subject)
    bound = subject.rounding(inputs)
    plain = subject.run(subject.live, {**inputs, name: None})
    whole = subject.run(subject.live, {**inputs, name: torch.ones_like(mask)})
    require_close(whole, plain, "the output under a mask of ones", bound=bound)
    wanted = subject.run(subject.live, {**inputs, name: mask})
    require_different(wanted, plain, f"leaving out tokens by {name}", bound=bound)
    for dtype in (torch.int64, torch.float32):
        found = subject.run(subject.live, {**inputs, name: mask.to(dtype)})
        require_close(found, wanted, f"the output under the same mask in {dtype}", bound=bound)


CONTRACTS = (
    Contract(every_input_matters),
    Contract(fractional_times_matter),
    Contract(forms_of_a_time_agree),
    Contract(every_parameter_matters),
    Contract(gradients_reach_the_inputs),
    Contract(masked_tokens_do_not_matter),
    Contract(attention_masks_matter),
)
