"""`diffusers_ref`, the reference implementation of this project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from conformance.errors import Unsupported
from conformance.fixture import Subject
from conformance.implementations.base import Implementation, Scheduler
from conformance.implementations.subjects import Subjects, image_subjects, scheduler_subjects

SUBJECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "ScoreSdeVpScheduler": {"beta_max": 1.5},  # the discrete chain needs more steps than beta_max
}
"""Options other than the defaults with which contracts are held against a scheduler class."""


class ReferenceImplementation(Implementation):
    """Builds everything through the public API of `diffusers_ref`, and networks through `diffusers_ref.original`."""

    name = "diffusers_ref"
    quirks: ClassVar[Mapping[str, str]] = {
        "contract/PNDMScheduler/each_step_is_one_evaluation": "the warm-up of both originals evaluates the network two "
        "(PLMS, S-PNDM) or four times (F-PNDM) in a step, and visits timesteps twice",
        "contract/KarrasVeScheduler/inputs_have_unit_variance": "its networks are score SDE's, trained on pixels in "
        "[0, 1]: they are given x/2 + 1/2",
        **{
            f"contract/{name}/batch_equals_singles": "Langevin step sizes follow from norms averaged over the batch"
            for name in ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler", "ScoreSdeVePipeline")
        },
        "contract/ScoreSdeVeScheduler/inputs_have_unit_variance": "networks of score SDEs are given the sample itself",
        **{
            f"contract/{name}/{contract}": "steps discretise the SDE: they are 1/N long or read a truncated index, and "
            "land near the next level"
            for name in ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler", "ScoreSdeSubVpScheduler")
            for contract in ("steps_land_on_their_levels", "runs_end_at_the_data")
            if (name, contract) != ("ScoreSdeVeScheduler", "runs_end_at_the_data")
        },
        "contract/DEISRungeKuttaScheduler/each_step_is_one_evaluation": "a step of the default method evaluates the "
        "network three times, twice at its end",
        "contract/DEISRungeKuttaScheduler/inputs_have_unit_variance": "the original looks t(rho) up in float32, which "
        "is coarse where little signal is left, and scales the network's input as at that time",
        "contract/KDPM2AncestralDiscreteScheduler/timesteps_descend_within_training": "the level between lies at the "
        "next one, to which noise returns; use_karras_sigmas of published classes rounds the times but those between",
        "contract/DPMFastScheduler/timesteps_differ": "quantize gives two evaluations one training timestep",
        **{
            f"contract/DPMFastScheduler/start_is_found_by_its_{what}": "n evaluations are fewer steps, of one to three "
            "evaluations each, and sampling begins at the first evaluation of a step"
            for what in ("timestep", "index")
        },
        **{
            f"contract/{name}/full_grid_is_that_of_training": "sd3.5 and published classes make the grid between "
            "levels of training, which are shifted already, and shift it again (d13243); 'shifted_once' does not"
            for name in (
                "FlowMatchDPMPP2MScheduler",
                "FlowMatchEulerDiscreteScheduler",
                "FlowMatchHeunDiscreteScheduler",
            )
        },
        "contract/ScoreSdeVeScheduler/limits_hold_in_the_result": "the last level is σ(ε), a little above the σ_1 that "
        "the last step takes off",
    }

    def __init__(self) -> None:
        import diffusers_ref

        self._library = diffusers_ref
        self.version = diffusers_ref.__version__

    def _class(self, name: str) -> Any:
        try:
            return getattr(self._library, name)
        except AttributeError:
            raise Unsupported(f"diffusers_ref has no {name}") from None

    def subjects(self) -> Subjects:
        from diffusers_ref.registry import CLASSES

        schedulers = scheduler_subjects(self._library, CLASSES["scheduler_config.json"], SUBJECT_ARGUMENTS)
        return schedulers | image_subjects(self._library)

    def scheduler(self, subject: Subject) -> Scheduler:
        return self._class(subject.cls).from_config(subject.config)

    def original_shapes(self, subject: Subject) -> dict[str, tuple[int, ...]]:
        from diffusers_ref.original import original_keys

        form = self._format(subject)
        return original_keys(form, form.parse_config(subject.config))

    def model(self, subject: Subject, state: Mapping[str, np.ndarray]) -> torch.nn.Module:
        from diffusers_ref.original import build_unet

        return build_unet(self._format(subject).NAME, subject.config, state)

    def tap_modules(self, subject: Subject) -> dict[str, str]:
        from diffusers_ref.original import module_map

        form = self._format(subject)
        return module_map(form, form.parse_config(subject.config))

    def pipeline(self, subject: Subject, checkpoint: Path, original_config: Path) -> Any:
        pipeline = self._class(subject.cls).from_single_file(
            checkpoint, original_config=original_config, original_format=subject.original
        )
        if subject.scheduler:
            scheduler = pipeline.scheduler
            pipeline.scheduler = type(scheduler).from_config(scheduler.config, **subject.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _format(self, subject: Subject) -> Any:
        from diffusers_ref.original import FORMATS

        if subject.original is None or subject.original not in FORMATS:
            raise Unsupported(f"diffusers_ref does not read checkpoints of {subject.original}")
        return FORMATS[subject.original]
