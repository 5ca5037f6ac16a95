"""Contracts of a call's result: what it depends on, and the forms in which it comes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close, require_finite, require_same
from conformance.contracts.pipeline.driver import MORE_STEPS, PipelineUnderTest, as_tensor, networks
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.tensors import require_different, tensors_in


def call_works(subject: PipelineUnderTest, given: Given) -> None:
    """A call for two images of a few steps works, and the images are finite."""
    if subject.problem is not None:
        arguments = ", ".join(subject.arguments(batch=2))
        advice = f"If its arguments ({arguments}) are no valid ones, give such with call={{...}}"
        refused = subject.problem.startswith(("ValueError", "TypeError")) and not subject.call
        raise (NotApplicable if refused else Violation)(f"a call for two images fails: {subject.problem}. {advice}")
    images = subject.run(subject.fresh(), batch=2)
    require_finite(images, "the images")
    if len(images) != 2:
        raise Violation(f"a call for two images returned {len(images)}")


def generator_decides_the_result(subject: PipelineUnderTest, given: Given) -> None:
    """The same seed gives the same images whatever the global random state, another seed gives others."""
    subject.require("generator")
    seed = 3
    torch.manual_seed(0)
    first = subject.run(subject.fresh(), seed=seed)
    torch.manual_seed(1)
    require_same(subject.run(subject.fresh(), seed=seed), first, "the images of the same seed")
    require_different(subject.run(subject.fresh(), seed=seed + 1), first, "another seed", bound=1e-3)


def global_random_state_stays(subject: PipelineUnderTest, given: Given) -> None:
    """A call with a generator draws nothing from the global generators of torch, NumPy and Python."""
    subject.require("generator")
    pipeline = subject.fresh()
    subject.run(pipeline)
    before = _random_state()
    subject.run(pipeline)
    for name, state in _random_state().items():
        if state != before[name]:
            raise Violation(f"a call that was given a generator drew from {name}'s global one")


def _random_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [each.tobytes() if isinstance(each, np.ndarray) else each for each in np.random.get_state()],
        "random": random.getstate(),
    }


def batch_equals_singles(subject: PipelineUnderTest, given: Given) -> None:
    """With a generator for each image, an image of a batch is what it is alone."""
    subject.require("generator")
    batch = given.draw("batch", st.integers(2, 3))
    first = given.seed()
    seeds = [first + index for index in range(batch)]
    together = subject.run(subject.fresh(), batch=batch, seed=seeds)
    bound = subject.rounding(seeds[:1])
    for index, seed in enumerate(seeds):
        alone = subject.run(subject.fresh(), seed=[seed])
        require_close(together[index : index + 1], alone, f"image {index} of a batch of {batch}", bound=bound)


def second_call_equals_first(subject: PipelineUnderTest, given: Given) -> None:
    """A pipeline keeps no trace of its calls: the same call gives the same images after another one."""
    subject.require("generator")
    pipeline = subject.fresh()
    first = subject.run(pipeline)
    require_same(subject.run(pipeline), first, "the second call")
    subject.run(pipeline, batch=2, seed=7, steps=MORE_STEPS)
    require_same(subject.run(pipeline), first, "the call after one with another number of steps and images")


def call_leaves_the_networks_alone(subject: PipelineUnderTest, given: Given) -> None:
    """A call changes no weight, no buffer and no training flag of a component."""
    pipeline = subject.fresh()
    before = {name: value.clone() for name, value in _weights(pipeline).items()}
    modes = [module.training for network in networks(pipeline) for module in network.modules()]
    subject.run(pipeline)
    for name, value in _weights(pipeline).items():
        require_same(value, before[name], f"{name} after a call")
    if modes != [module.training for network in networks(pipeline) for module in network.modules()]:
        raise Violation("a call changed the training mode of a network")


def _weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{type(network).__name__}.{name}": value
        for network in networks(pipeline)
        for name, value in (*network.named_parameters(), *network.named_buffers())
    }


def results_carry_no_graph(subject: PipelineUnderTest, given: Given) -> None:
    """Sampling keeps no graph: networks run without gradients, results need none, and the caller's mode stays."""
    pipeline = subject.fresh()
    with torch.enable_grad(), subject.watched(pipeline) as calls:
        output = subject.raw(pipeline)
        if not torch.is_grad_enabled():
            raise Violation("a call switched gradients off for its caller")
    if any(call.with_gradients for call in calls):
        raise Violation("the network runs with gradients: every step is kept in memory")
    if any(tensor.requires_grad for tensor in tensors_in(output)):
        raise Violation("the result requires gradients")


def tuple_and_record_agree(subject: PipelineUnderTest, given: Given) -> None:
    """return_dict=False gives a tuple with the same images as the output record."""
    subject.require("return_dict")
    record = subject.raw(subject.fresh(), return_dict=True)
    plain = subject.raw(subject.fresh(), return_dict=False)
    if not isinstance(plain, tuple) or isinstance(record, tuple):
        raise Violation(f"return_dict=False gave a {type(plain).__name__}, True a {type(record).__name__}")
    require_same(as_tensor(plain), as_tensor(record), "the images in the tuple")


def output_types_agree(subject: PipelineUnderTest, given: Given) -> None:
    """The forms agree: "np" is (B, H, W, C) in [0, 1], "pt" the same as (B, C, H, W), "pil" the same as integers of 0
    to 255, by whatever rounding."""
    subject.require("output_type")
    array = subject.raw(subject.fresh(), batch=2, output_type="np")
    first = as_tensor(array)
    if first.ndim != 4:
        raise NotApplicable(f'output_type="np" gave the shape {tuple(first.shape)}: no images')
    if first.shape[-1] not in (1, 3, 4):
        raise Violation(f'output_type="np" gave the shape {tuple(first.shape)} instead of (B, H, W, C)')
    if not first.is_floating_point() or first.min() < 0 or first.max() > 1:
        raise Violation(f'output_type="np" gave {first.dtype} from {first.min():.4g} to {first.max():.4g}, not [0, 1]')
    tensor = _images(subject, "pt")
    if isinstance(tensor, torch.Tensor):
        require_same(tensor.permute(0, 2, 3, 1).to(first.dtype), first, 'output_type="pt", permuted to (B, H, W, C)')
    pictures = _images(subject, "pil")
    if pictures is None:
        raise Violation('output_type="pil" is refused')
    if not all(hasattr(picture, "size") and hasattr(picture, "getpixel") for picture in pictures):
        raise Violation(f'output_type="pil" gave a list of {type(pictures[0]).__name__}')
    integers = torch.stack([torch.as_tensor(np.array(picture)) for picture in pictures]).reshape(first.shape)
    apart = (integers.double() - 255 * first.double()).abs().max().item()
    if apart >= 1:
        raise Violation(f'output_type="pil" is up to {apart:.3g} levels from 255 · "np"', max_abs=apart)


def _images(subject: PipelineUnderTest, output_type: str) -> Any:
    """The images of two in a form, or None where it is refused."""
    pipeline = subject.fresh()
    try:
        output = subject.raw(pipeline, batch=2, output_type=output_type)
    except (ValueError, TypeError):
        return None
    return output[0] if isinstance(output, tuple) else next(iter(vars(output).values()))


CONTRACTS = (
    Contract(call_works),
    Contract(generator_decides_the_result),
    Contract(global_random_state_stays),
    Contract(batch_equals_singles, examples=2),
    Contract(second_call_equals_first),
    Contract(call_leaves_the_networks_alone),
    Contract(results_carry_no_graph),
    Contract(tuple_and_record_agree),
    Contract(output_types_agree),
)
