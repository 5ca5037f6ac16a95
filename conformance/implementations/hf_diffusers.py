"""HF `diffusers`: what a user of that library gets for the same published weights and settings.

Conventions of originals that its classes do not offer are left out and the closest published option is taken, so that
the difference shows as a divergence. What has no counterpart at all is `unsupported`.
"""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.errors import ConformanceError, Unsupported
from conformance.fixture import Subject
from conformance.implementations.base import Implementation, Scheduler
from conformance.implementations.hf_counterparts import counterpart
from conformance.implementations.reference import ReferenceImplementation
from conformance.implementations.subjects import Subjects, image_subjects, scheduler_subjects

# Closest published option for an original's grid.
SPACINGS = {"ddim_uniform": "leading", "ddim_quad": "leading", "improved_diffusion": "linspace"}
NO_RESAMPLING = {"downsample_type": "avg_pool", "upsample_type": "nearest"}
NEEDED_ARGUMENTS: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 7},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
}
"""Constructor arguments without a default, of scheduler classes that contracts are held against."""


class DiffusersImplementation(Implementation):
    """Schedulers by configuration; networks and pipelines through folders saved by `diffusers_ref`."""

    name = "diffusers"

    def __init__(self) -> None:
        try:
            import diffusers
        except ImportError:
            raise ConformanceError("the implementation `diffusers` is not installed: pip install diffusers") from None
        diffusers.utils.logging.set_verbosity_error()
        self._library = diffusers
        self.version = diffusers.__version__
        self._reference = ReferenceImplementation()

    def subjects(self) -> Subjects:
        names = [name for name in dir(self._library) if name.endswith("Scheduler")]
        return scheduler_subjects(self._library, names, NEEDED_ARGUMENTS) | image_subjects(self._library)

    def scheduler(self, subject: Subject) -> Scheduler:
        found = counterpart(subject)
        cls = getattr(self._library, found.cls, getattr(self._library.schedulers, found.cls, None))
        if cls is None:
            raise Unsupported(f"diffusers has no {found.cls}")
        config = dict(found.config)
        if "timestep_spacing" in config:
            config["timestep_spacing"] = SPACINGS.get(config["timestep_spacing"], config["timestep_spacing"])
        if config.get("prediction_type") == "previous_sample":
            raise Unsupported("diffusers does not predict the previous sample")
        allowed = inspect.signature(cls.__init__).parameters
        try:
            made = cls(**{name: value for name, value in config.items() if name in allowed})
        except NotImplementedError as error:
            raise Unsupported(str(error)) from None
        return made if found.around is None else found.around(made)  # type: ignore[no-any-return]

    def set_timesteps(self, scheduler: Scheduler, subject: Subject) -> None:
        arguments = _without_respacing(counterpart(subject).set_timesteps)
        taken = inspect.signature(scheduler.set_timesteps).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        if missing := sorted(name for name in arguments if name not in taken and not takes_any):
            raise Unsupported(f"diffusers' set_timesteps has no {', '.join(missing)}")
        if "sigmas" in arguments:
            del arguments["num_inference_steps"]
        scheduler.set_timesteps(**arguments)

    def step_options(self, scheduler: Scheduler, subject: Subject) -> dict[str, Any]:
        options = counterpart(subject).step
        if subject.config.get("rederive_epsilon"):
            options["use_clipped_model_output"] = True
        return options

    def call_options(self, subject: Subject) -> dict[str, Any]:
        return _without_respacing(subject.call or {})

    def original_shapes(self, subject: Subject) -> dict[str, tuple[int, ...]]:
        return self._reference.original_shapes(subject)

    def model(self, subject: Subject, state: Mapping[str, np.ndarray]) -> torch.nn.Module:
        return self._network(self._reference.model(subject, state))

    def tap_modules(self, subject: Subject) -> dict[str, str]:
        # Inside its attention tokens come before channels, so those outputs have no counterpart.
        return {theirs: ours for theirs, ours in self._reference.tap_modules(subject).items() if ".to_" not in ours}

    def pipeline(self, subject: Subject, checkpoint: Path, original_config: Path) -> Any:
        cls = getattr(self._library, subject.cls, None)
        if cls is None:
            raise Unsupported(f"diffusers has no {subject.cls}")
        ours = self._reference.pipeline(subject, checkpoint, original_config)
        scheduler = dataclasses.replace(subject, cls=type(ours.scheduler).__name__, config=dict(ours.scheduler.config))
        pipeline = cls(unet=self._network(ours.unet), scheduler=self.scheduler(scheduler))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _network(self, ours: Any) -> torch.nn.Module:
        """The network as diffusers loads it from a folder."""
        if type(ours).__name__ != "UNet2DModel":
            raise Unsupported(f"diffusers has no {type(ours).__name__}")
        other = [name for name in sorted(ours.convention_options) if name not in ours.config.defaulted]
        other += [f"{name}={value!r}" for name, value in NO_RESAMPLING.items() if ours.config[name] == value]
        if other:
            raise Unsupported(f"diffusers' UNet2DModel has no {', '.join(other)}")
        with tempfile.TemporaryDirectory() as folder:
            ours.save_pretrained(folder)
            return self._library.UNet2DModel.from_pretrained(folder).eval()


def _without_respacing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with a respacing of one section as a number of steps; diffusers has no other."""
    arguments = dict(arguments)
    respacing = arguments.pop("respacing", None)
    if respacing is not None:
        digits = str(respacing).removeprefix("ddim")
        if not digits.isdigit():
            raise Unsupported(f"diffusers has no grid by sections {respacing!r}")
        arguments["num_inference_steps"] = int(digits)
    return arguments
