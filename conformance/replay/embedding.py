"""The sinusoidal timestep embedding: an output of its own, and the original's values for the network behind it.

Its frequencies, sines and cosines are float32 in every original, and differ in the last bits between libraries, CPUs
and GPUs; at t = 1000 this is up to a thousand times what the network itself rounds. So fixtures store the original's
values as a table. The embedding that an implementation computes is compared with it, and what follows is then computed
from the table: a network is judged by its own arithmetic, in every precision and on any machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from conformance.compare import EMBEDDING, FLOAT64, ONE_ULP, UNIT_ROUNDOFF, Comparison, Policy, compare_steps
from conformance.fixture import Fixture
from conformance.replay import Settings

OWN_EMBEDDING = (
    "the implementation names no module that embeds the times, so its own embedding was used; "
    "its last bits differ between machines, which alone can exceed this bound"
)


@contextmanager
def recorded_embedding(module: torch.nn.Module | None, table: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Let `module` answer its k-th call with `table[k]`, in the dtype of its own answer.

    A call beyond the table, or of another width, is left alone: the comparison of the own answers shows it.

    Args:
        module: the embedding of the network, or None if the implementation has no such module.
        table: (calls, B or 1, width) float32.

    Yields:
        What the module would have answered, call by call.
    """
    own: list[torch.Tensor] = []

    def answer(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        own.append(output.detach().to("cpu"))
        call = len(own) - 1
        if call >= len(table) or table.shape[-1] != output.shape[-1]:
            return output
        return table[call].to(output).expand(output.shape)

    handle = None if module is None else module.register_forward_hook(answer)
    try:
        yield own
    finally:
        if handle is not None:
            handle.remove()


def compare_embedding(
    own: Sequence[torch.Tensor], fixture: Fixture, settings: Settings, *, bitwise: bool
) -> list[Comparison]:
    """The implementation's own embedding against the original's, one row a time; nothing if no module was called.

    The embedding is float32 whatever the precision of the network, so its floor is not scaled for half types: a time
    that was rounded to one before is seen. An embedding that is rounded to one after is allowed that rounding.

    Args:
        own: what the module answered, call by call: (B, width) for the one call of a network, whose times are one per
            image, or for each call of a pipeline, whose time is one for all images.
        bitwise: whether the embedding may be called bitwise, so that it counts towards a case that is.
    """
    if not own:
        return []
    table, exact, floors = (fixture.tensors[EMBEDDING + suffix] for suffix in ("", FLOAT64, ".floor"))
    observed = own[0]
    if fixture.manifest.kind == "pipeline":
        same = len({tuple(answer.shape) for answer in own}) == 1
        observed = torch.stack(list(own)) if same else torch.cat([answer.reshape(-1) for answer in own])
        shape = (len(table), observed.shape[1] if observed.ndim == 3 else 1, table.shape[-1])
        table, exact = table[:, None].expand(shape), exact[:, None].expand(shape)
    floors = floors.clamp_min(UNIT_ROUNDOFF.get(observed.dtype, ONE_ULP))
    policy = Policy(settings.policy.max_rho)
    found = compare_steps(EMBEDDING, observed, table if bitwise else None, exact, floors, policy)
    return [found if fixture.manifest.kind == "pipeline" else dataclasses.replace(found, step=None)]


def say_own_embedding(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of an implementation without an embedding module: the first that fails says what was used."""
    found = list(comparisons)
    for i, comparison in enumerate(found):
        if not comparison.verdict.green:
            found[i] = dataclasses.replace(comparison, detail=f"{comparison.detail} ({OWN_EMBEDDING})")
            break
    return found
