"""Making a user's pipeline or network from what is known about its constructor, and small ones for contracts."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from conformance.errors import ConformanceError, Unsupported

EXAMPLE = "conformance_subject"
"""A class method of this name returns the small instance that contracts are held against, where none can be guessed."""

NETWORK_ARGUMENTS = ("unet", "model", "transformer")
"""Names under which a pipeline's constructor takes its network."""


def assemble_pipeline(cls: Any, network: torch.nn.Module, scheduler: Any) -> Any:
    """A pipeline of a network and a scheduler alone, without a progress bar; what has a default keeps it.

    Raises:
        Unsupported: the constructor needs other components, or takes no network or no scheduler by a known name.
    """
    parameters = inspect.signature(cls).parameters
    place = next((name for name in NETWORK_ARGUMENTS if name in parameters), None)
    needed = [name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    others = [name for name in needed if name not in (place, "scheduler")]
    if place is None or "scheduler" not in parameters or others:
        what = f"needs {', '.join(others)}" if others else f"lacks scheduler or one of {', '.join(NETWORK_ARGUMENTS)}"
        raise Unsupported(f"{cls.__name__} cannot be made from a network and a scheduler alone: its constructor {what}")
    return quiet(cls(**{place: network, "scheduler": scheduler}))


def small_instance(cls: Any, make: Any) -> Any:
    """What `cls.conformance_subject()` returns, or else `make()`, with seeded weights.

    Raises:
        ConformanceError: neither works; says why.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return getattr(cls, EXAMPLE, make)()
        except (TypeError, ValueError, Unsupported) as error:
            raise ConformanceError(
                f"no small {cls.__name__} can be made for its contracts ({error}); give the class a class method "
                f"{EXAMPLE}() that returns one"
            ) from error


def quiet(pipeline: Any) -> Any:
    """The pipeline, without a progress bar."""
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
    return pipeline
