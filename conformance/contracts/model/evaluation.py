"""Contracts of one evaluation: repeatable, without side effects, and each sample on its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close, require_finite, require_same
from conformance.contracts.model.driver import ModelUnderTest, rows
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.tensors import tensors_in


def evaluates(subject: ModelUnderTest, given: Given) -> None:
    """The network can be called with inputs of the sizes that its configuration names, and the result is finite."""
    if subject.problem is not None:
        raise Violation(
            f"a call fails: {subject.problem}. If its inputs ({', '.join(subject.inputs.make(2, 0))}) are no valid "
            "ones, give such with inputs={...}; the other contracts apply then, too"
        )
    output = subject.run(subject.live, subject.make(batch=2))
    require_finite(output, "the output")
    if len(output) != 2:
        raise Violation(f"2 samples gave an output of shape {tuple(output.shape)}: batch first was wanted")


def evaluation_repeats(subject: ModelUnderTest, given: Given) -> None:
    """In evaluation mode the same inputs give the same output, whatever the global random state."""
    inputs = subject.make()
    torch.manual_seed(0)
    first = subject.run(subject.live, inputs)
    torch.manual_seed(1)
    require_same(subject.run(subject.live, inputs), first, "the second evaluation of the same inputs")


def evaluation_draws_nothing(subject: ModelUnderTest, given: Given) -> None:
    """An evaluation leaves the global random state untouched."""
    inputs = subject.make()
    before = torch.get_rng_state()
    subject.run(subject.live, inputs)
    if not torch.equal(before, torch.get_rng_state()):
        raise Violation("an evaluation drew from torch's global generator: seeds before it no longer reproduce a run")


def inputs_stay_unchanged(subject: ModelUnderTest, given: Given) -> None:
    """An evaluation changes none of its inputs in place."""
    inputs = subject.make()
    before = copy.deepcopy(inputs)
    subject.run(subject.live, inputs)
    for name, value in inputs.items():
        for found, wanted in zip(tensors_in(value), tensors_in(before[name]), strict=True):
            require_same(found, wanted, f"{name} after the evaluation")


def evaluation_keeps_the_network(subject: ModelUnderTest, given: Given) -> None:
    """An evaluation changes no parameter, no buffer and no training flag."""
    model = subject.fresh()
    before = {name: value.clone() for name, value in _state(model).items()}
    subject.run(model, subject.make())
    after = _state(model)
    for name, value in before.items():
        if name not in after:
            raise Violation(f"{name} is gone after an evaluation")
        require_same(after[name], value, f"{name} after an evaluation")
    training = [name or "the network" for name, module in model.named_modules() if module.training]
    if training:
        raise Violation(f"an evaluation put {training[0]} into training mode")


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def dropout_is_off_in_evaluation(subject: ModelUnderTest, given: Given) -> None:
    """Dropout acts in training mode and only there: eval() after train() gives what the network gave without it."""
    inputs = subject.make()
    model, options = _with_dropout(subject)
    wanted = subject.run(subject.live, inputs)
    model.train()
    torch.manual_seed(0)
    one = subject.run(model, inputs)
    torch.manual_seed(1)
    if torch.equal(one, subject.run(model, inputs)):
        raise Violation(f"{', '.join(f'{name}=0.5' for name in options)} changed nothing in training mode")
    model.eval()
    require_same(subject.run(model, inputs), wanted, f"the evaluation of a network made with {', '.join(options)}=0.5")


def _with_dropout(subject: ModelUnderTest) -> tuple[nn.Module, list[str]]:
    config = subject.config()
    options = [name for name in config if "dropout" in name and isinstance(config[name], (int, float))]
    if not options:
        raise NotApplicable("the configuration has no dropout")
    model = subject.cls.from_config({**config, **dict.fromkeys(options, 0.5)})  # type: ignore[attr-defined]
    model.load_state_dict(subject.live.state_dict())
    return model, options


def batch_equals_singles(subject: ModelUnderTest, given: Given) -> None:
    """Each sample of a batch, with a time and conditions of its own, gives what it gives alone."""
    batch = given.draw("batch", st.integers(2, 4))
    inputs = subject.make(batch, given.seed())
    bound = subject.rounding(inputs)
    together = subject.run(subject.live, inputs)
    for index in range(batch):
        alone = subject.run(subject.live, rows(inputs, batch, [index]))
        require_close(together[index : index + 1], alone, f"sample {index} in a batch of {batch}", bound=bound)


def permuting_the_batch_permutes_the_output(subject: ModelUnderTest, given: Given) -> None:
    """Samples in another order give the same outputs in that order."""
    order = given.draw("order", st.sampled_from(([1, 0], [2, 0, 1], [3, 1, 0, 2])))
    inputs = subject.make(len(order), given.seed())
    bound = subject.rounding(inputs)
    wanted = subject.run(subject.live, inputs)[order]
    require_close(subject.run(subject.live, rows(inputs, len(order), order)), wanted, "the permuted batch", bound=bound)


def memory_layout_does_not_matter(subject: ModelUnderTest, given: Given) -> None:
    """Inputs that are not contiguous (strided, channels last) give the same output."""
    inputs = subject.make()
    wanted = subject.run(subject.live, inputs)
    bound = subject.rounding(inputs)
    layouts = {"strided": _strided}
    if inputs[subject.inputs.sample_name].ndim == 4:
        layouts["channels last"] = lambda x: x.contiguous(memory_format=torch.channels_last)
    for layout, arrange in layouts.items():
        name = subject.inputs.sample_name
        found = subject.run(subject.live, {**inputs, name: arrange(inputs[name])})
        require_close(found, wanted, f"the output for a {layout} {name}", bound=bound)


def _strided(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, every second place of a longer tensor."""
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0] if x.is_floating_point() else x


def tuple_and_record_agree(subject: ModelUnderTest, given: Given) -> None:
    """return_dict=False gives a tuple with the same tensors as the output record."""
    if "return_dict" not in subject.inputs.parameters:
        raise NotApplicable("forward takes no return_dict")
    inputs = subject.make()
    record = subject.live(**inputs, return_dict=True)
    plain = subject.live(**inputs, return_dict=False)
    if not isinstance(plain, tuple) or isinstance(record, tuple):
        raise Violation(f"return_dict=False gave a {type(plain).__name__}, True a {type(record).__name__}")
    _require_equal(list(tensors_in(plain)), list(tensors_in(record)))


def _require_equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    if len(found) != len(wanted):
        raise Violation(f"the tuple has {len(found)} tensors, the record {len(wanted)}")
    for a, b in zip(found, wanted, strict=True):
        require_same(a, b, "the tuple's tensor")


def copies_are_independent(subject: ModelUnderTest, given: Given) -> None:
    """A deep copy gives the same output, and changing its weights leaves the network's output as it was."""
    inputs = subject.make()
    model = subject.fresh()
    wanted = subject.run(model, inputs)
    twin: Any = copy.deepcopy(model)
    require_same(subject.run(twin, inputs), wanted, "the output of a deep copy")
    for parameter in twin.parameters():
        parameter.mul_(0.5)
    require_same(subject.run(model, inputs), wanted, "the output after a deep copy's weights changed")


CONTRACTS = (
    Contract(evaluates),
    Contract(evaluation_repeats),
    Contract(evaluation_draws_nothing),
    Contract(inputs_stay_unchanged),
    Contract(evaluation_keeps_the_network),
    Contract(dropout_is_off_in_evaluation),
    Contract(batch_equals_singles, examples=3),
    Contract(permuting_the_batch_permutes_the_output, examples=2),
    Contract(memory_layout_does_not_matter),
    Contract(tuple_and_record_agree),
    Contract(copies_are_independent),
)
