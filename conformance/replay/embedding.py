"""The sinusoidal timestep embedding as a table of the original.

Its frequencies, sines and cosines are float32 in every original, and differ in the last bits between libraries, CPUs
and GPUs. So fixtures store the original's values, and a float64 replay is given them: what is compared then is the
network's own arithmetic, on any machine. Float32 replays use the implementation's own embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def recorded_embedding(module: torch.nn.Module | None, table: torch.Tensor) -> Iterator[None]:
    """Let `module` answer its k-th call with `table[k]`.

    Args:
        module: the embedding of the network, or None if the implementation has no such module.
        table: (calls, B or 1, width) float32.
    """
    if module is None:
        yield
        return
    rows = iter(table)

    def answer(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        row = next(rows).to(output)
        if row.shape[-1] != output.shape[-1]:
            return output  # of another width: left alone, and the comparison shows it
        return row.expand(output.shape)

    handle = module.register_forward_hook(answer)
    try:
        yield
    finally:
        handle.remove()
