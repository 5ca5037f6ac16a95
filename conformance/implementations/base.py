"""What a replay needs of an implementation: building the subject of a fixture and calling it.

The defaults speak the API that HF diffusers made common; an implementation overrides where it differs. What it cannot
build raises `Unsupported` with the reason, which becomes the case's verdict.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from conformance.errors import Unsupported
from conformance.fixture import Subject
from conformance.implementations.subjects import Subjects


class Scheduler(Protocol):
    """The scheduler API that replays drive."""

    timesteps: torch.Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None: ...
    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any: ...


class Implementation:
    """Base of all implementations: name, version and the builders, each of which may raise `Unsupported`."""

    name = "?"
    version = "?"

    quirks: ClassVar[Mapping[str, str]] = {}
    """Contracts that a subject does not keep, as `contract/<subject>/<name>`, because its original does not: why."""

    def subjects(self) -> Subjects:
        """What contracts are held against, by name."""
        return {}

    def scheduler(self, subject: Subject) -> Scheduler:
        """A fresh scheduler for the subject, before `set_timesteps`."""
        raise Unsupported(f"{self.name} offers no schedulers")

    def original_shapes(self, subject: Subject) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the original's parameters."""
        raise Unsupported(f"{self.name} reads no original checkpoints")

    def model(self, subject: Subject, state: Mapping[str, np.ndarray]) -> torch.nn.Module:
        """The subject's network with weights from a state in the original's layout."""
        raise Unsupported(f"{self.name} offers no models")

    def tap_modules(self, subject: Subject) -> dict[str, str]:
        """Original module path -> module path in `model`'s network, for aligning taps; empty if unknown."""
        return {}

    def embedding_module(self, network: torch.nn.Module | None) -> torch.nn.Module | None:
        """The module of a network that turns times (B,) into sines and cosines (B, width), if there is one."""
        return getattr(network, "time_proj", None)

    def pipeline(self, subject: Subject, checkpoint: Path, original_config: Path) -> Any:
        """The subject's pipeline from the original checkpoint and config files."""
        raise Unsupported(f"{self.name} offers no pipelines")

    def pipeline_around(self, subject: Subject, network: torch.nn.Module) -> Any | None:
        """A pipeline of this network and the subject's scheduler, if a pipeline's loop is under test too."""
        return None

    def loop_options(self, pipeline: Any, subject: Subject) -> dict[str, Any]:
        """Keyword arguments of such a pipeline for a sampler's fixture: those of `set_timesteps` and of `step`."""
        return {**(subject.set_timesteps or {}), **(subject.step or {})}

    def set_timesteps(self, scheduler: Scheduler, subject: Subject) -> None:
        scheduler.set_timesteps(**(subject.set_timesteps or {}))

    def network_times(self, scheduler: Scheduler) -> list[float]:
        """What the network is given at each evaluation."""
        own = getattr(scheduler, "network_timesteps", None)
        if own is not None:
            return [float(t) for t in own]
        to_network = getattr(scheduler, "network_timestep", None)
        return [float(t if to_network is None else to_network(t)) for t in scheduler.timesteps]

    def step_options(self, scheduler: Scheduler, subject: Subject) -> dict[str, Any]:
        """Keyword arguments of `step` beside the three tensors and the noise."""
        return dict(subject.step or {})

    def call_options(self, subject: Subject) -> dict[str, Any]:
        """Keyword arguments of the pipeline beside batch size, generator and output type."""
        return dict(subject.call or {})

    def step_takes(self, scheduler: Scheduler, name: str) -> bool:
        """Whether `step` has an argument of that name; a step that takes any keyword takes a `generator`."""
        parameters = inspect.signature(scheduler.step).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        return name in parameters or (takes_any and name == "generator")
