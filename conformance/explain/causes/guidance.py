"""Classifier-free guidance: which half of a doubled batch is the unconditional one, and what the scale means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from conformance.explain.alteration import Alteration
from conformance.explain.state import State
from conformance.explain.trial import Cause, Repair

SCALE = "guidance_scale"


class _Swapped(Alteration):
    """The two halves of the network's output change places."""

    def network(self, network: torch.nn.Module) -> None:
        def swap(tensor: Any) -> Any:
            even = isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[0] % 2 == 0
            return torch.cat(tensor.chunk(2)[::-1]) if even else tensor

        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
            if isinstance(output, torch.Tensor):
                return swap(output)
            if isinstance(output, tuple):
                return tuple(map(swap, output))
            output.sample = swap(output.sample)
            return output

        network.register_forward_hook(hook)


class _Scale(Alteration):
    """Another guidance scale in the pipeline's call."""

    def __init__(self, change: float) -> None:
        self._change = change

    def call_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, SCALE: options[SCALE] + self._change} if SCALE in options else options


def _orders(state: State) -> Iterator[Repair]:
    if not _is_guided(state):
        return
    yield Repair(
        "the conditional and the unconditional half of the doubled batch are taken for each other",
        "halves of the network's output swapped",
        _Swapped(),
    )


def _scales(state: State) -> Iterator[Repair]:
    if not _is_guided(state):
        return
    for change, statement in (
        (1.0, "the guidance scale counts from 1, the original's from 0"),
        (-1.0, "the guidance scale counts from 0, the original's from 1"),
    ):
        yield Repair(statement, f"guidance scale {change:+g}", _Scale(change))


def _is_guided(state: State) -> bool:
    return state.at("sample", "images") and SCALE in (state.fixture.manifest.subject.call or {})


CAUSES = (Cause("guidance order", _orders), Cause("guidance scale", _scales))
