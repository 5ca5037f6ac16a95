"""Contracts of shapes: the output follows the input, and inputs that do not fit are refused."""

from __future__ import annotations

from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.model.driver import ModelUnderTest
from conformance.contracts.model.inputs import LABELS, TOKENS, Inputs
from conformance.contracts.result import NotApplicable, Violation

CLEAR = (ValueError, TypeError, RuntimeError, AssertionError)
"""What an invalid input may raise. An AttributeError, IndexError, KeyError or NameError is an accident."""


def output_shape_follows_the_input(subject: ModelUnderTest, given: Given) -> None:
    """Doubling the height or width of the sample does the same to the output, or is refused."""
    size = subject.inputs.image_size
    if subject.inputs.given is not None or not size:
        raise NotApplicable("which sizes of the given inputs go together is not known")
    base = subject.run(subject.live, subject.make())
    if base.ndim != 2 + len(size):
        raise NotApplicable(f"the output of shape {tuple(base.shape)} is no image")
    for axis in range(len(size)):
        doubled = tuple(n * (2 if index == axis else 1) for index, n in enumerate(size))
        wanted = (*base.shape[:2], *(n * (2 if index == axis else 1) for index, n in enumerate(base.shape[2:])))
        try:
            found = tuple(subject.run(subject.live, subject.make(size=doubled)).shape)
        except CLEAR:
            continue
        if found != wanted:
            raise Violation(f"a sample of {doubled} gave an output of shape {found} instead of {wanted}")


def odd_sizes_are_right_or_refused(subject: ModelUnderTest, given: Given) -> None:
    """A size one larger than the configured one gives an output that is one larger, or a clear error; never another
    size."""
    size = subject.inputs.image_size
    if subject.inputs.given is not None or not size:
        raise NotApplicable("which sizes of the given inputs go together is not known")
    base = subject.run(subject.live, subject.make())
    if base.ndim != 2 + len(size) or base.shape[2:] != size:
        raise NotApplicable(f"the output of shape {tuple(base.shape)} has not the size of the sample")
    for axis in range(len(size)):
        longer = tuple(n + (index == axis) for index, n in enumerate(size))
        inputs = subject.make(size=longer)
        try:
            found = tuple(subject.run(subject.live, inputs).shape[2:])
        except CLEAR:
            continue
        except Exception as error:
            raise Violation(f"a sample of {longer}: an unclear {type(error).__name__}: {error}") from error
        if found != longer:
            raise Violation(f"a sample of {longer} gave an output of {found}, without an error")


def misfitting_inputs_raise(subject: ModelUnderTest, given: Given) -> None:
    """A sample with a channel too many, a time for a sample that is not there, tokens of another width, a label that
    is no class: each is a clear error."""
    inputs = subject.make(batch=2)
    wrong = _misfits(subject, inputs)
    if not wrong:
        raise NotApplicable("no input of a known meaning")
    accepted = []
    for what, change in wrong.items():
        try:
            subject.run(subject.live, {**inputs, **change})
        except (*CLEAR, IndexError):  # torch's own answer to a label out of range is an IndexError that says so
            continue
        except Exception as error:  # noqa: BLE001 - whatever the subject raises is what is reported
            accepted.append(f"{what}: an unclear {type(error).__name__}: {error}")
        else:
            accepted.append(f"{what} was accepted")
    if accepted:
        raise Violation("; ".join(accepted))


def _misfits(subject: ModelUnderTest, inputs: Inputs) -> dict[str, dict[str, Any]]:
    """What is wrong -> the inputs that are, for inputs of two samples."""
    found: dict[str, dict[str, Any]] = {}
    name = subject.inputs.sample_name
    sample = inputs[name]
    if subject.inputs.given is None:
        found[f"{name} with a channel too many"] = {name: torch.cat([sample, sample[:, :1]], 1)}
    try:
        time = subject.inputs.time_name
        found[f"3 {time}s for 2 samples"] = {time: inputs[time][[0, 1, 0]]}
    except NotApplicable:
        pass
    tokens = inputs.get(TOKENS)
    if isinstance(tokens, torch.Tensor):
        found[f"{TOKENS} of another width"] = {TOKENS: torch.cat([tokens, tokens[..., :1]], -1)}
        found[f"{TOKENS} of 3 samples for 2"] = {TOKENS: tokens[[0, 1, 0]]}
    labels = inputs.get(LABELS)
    if isinstance(labels, torch.Tensor):
        found["a negative class label"] = {LABELS: torch.full_like(labels, -1)}
        found["a class label beyond the last"] = {LABELS: torch.full_like(labels, 10**6)}
        found["3 class labels for 2 samples"] = {LABELS: labels[[0, 1, 0]]}
        found["no class labels"] = {LABELS: None}
    return found


CONTRACTS = (
    Contract(output_shape_follows_the_input),
    Contract(odd_sizes_are_right_or_refused),
    Contract(misfitting_inputs_raise),
)
