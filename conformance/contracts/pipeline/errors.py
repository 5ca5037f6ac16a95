"""Contracts of wrong arguments: each is a clear error, before the network has run for nothing."""

from __future__ import annotations

from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.pipeline.driver import PipelineUnderTest, generators
from conformance.contracts.pipeline.sampling import INITIAL
from conformance.contracts.result import NotApplicable, Violation

CLEAR = (ValueError, TypeError)


def _require_refused(subject: PipelineUnderTest, wrong: dict[str, dict[str, Any]], batch: int = 1) -> None:
    """Each of these changes of a good call raises a ValueError or TypeError before the network is called."""
    if not wrong:
        raise NotApplicable("a call takes no such argument")
    findings = []
    for what, change in wrong.items():
        pipeline = subject.fresh()
        with subject.watched(pipeline) as calls:
            try:
                subject.raw(pipeline, batch=batch, **change)
            except NotApplicable:
                raise
            except CLEAR as error:
                if calls:
                    findings.append(f"{what}: {type(error).__name__} only after {len(calls)} network calls")
            except Exception as error:  # noqa: BLE001 - any other error is the finding
                findings.append(f"{what}: an unclear {type(error).__name__}: {' '.join(str(error).split())[:80]}")
            else:
                findings.append(f"{what} is accepted")
    if findings:
        raise Violation("; ".join(findings))


def wrong_counts_raise(subject: PipelineUnderTest, given: Given) -> None:
    """No, negative and broken numbers of images or steps are refused, before the network is called."""
    wrong: dict[str, dict[str, Any]] = {}
    for name in ("batch_size", "num_inference_steps", "num_images_per_prompt"):
        if subject.takes(name):
            wrong |= {f"{name}={value!r}": {name: value} for value in (0, -1, 1.5)}
    _require_refused(subject, wrong)


def wrong_generators_raise(subject: PipelineUnderTest, given: Given) -> None:
    """A list of generators that is not one an image, and what is no generator, are refused, before the network is
    called."""
    wrong = {
        "3 generators for 2 images": generators([0, 1, 2]),
        "generator=0": 0,
        "generator=['a', 'b']": ["a", "b"],
    }
    subject.require("generator")
    _require_refused(subject, {what: {"generator": value} for what, value in wrong.items()}, batch=2)


def wrong_latents_raise(subject: PipelineUnderTest, given: Given) -> None:
    """x_T with a channel too many, without a batch, of another batch, or no tensor is refused, before the network is
    called."""
    name = next((name for name in INITIAL if subject.takes(name)), None)
    if name is None:
        raise NotApplicable(f"a call takes no {' or '.join(INITIAL)}")
    pipeline = subject.fresh()
    with subject.watched(pipeline) as calls:
        subject.run(pipeline, batch=2)
    good = torch.zeros_like(calls[0].sample[:2])
    wrong = {
        f"{name} with a channel too many": torch.cat([good, good[:, :1]], dim=1),
        f"{name} without a batch": good[0],
        f"{name} of 3 images for 2": good[[0, 1, 0]],
        f"{name}='noise'": "noise",
    }
    _require_refused(subject, {what: {name: value} for what, value in wrong.items()}, batch=2)


def unknown_output_type_raises(subject: PipelineUnderTest, given: Given) -> None:
    """An output type that does not exist is refused, before the network is called."""
    subject.require("output_type")
    _require_refused(subject, {f"output_type={value!r}": {"output_type": value} for value in ("jpeg", 3)})


def unknown_keywords_raise(subject: PipelineUnderTest, given: Given) -> None:
    """An argument that a call does not know (a misspelt one) is refused, not ignored."""
    _require_refused(subject, {"num_inference_stepz=4": {"num_inference_stepz": 4}})


CONTRACTS = (
    Contract(wrong_counts_raise),
    Contract(wrong_generators_raise),
    Contract(wrong_latents_raise),
    Contract(unknown_output_type_raises),
    Contract(unknown_keywords_raise),
)
