"""Predictor–corrector sampling of the VP and sub-VP SDEs.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (arXiv 2011.13456), algorithms
1, 3 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from diffusers_ref.outputs import ImagePipelineOutput
from diffusers_ref.pipelines.unconditional import ContinuousSamplingOptions, UnconditionalImagePipeline
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.scheduler import SchedulerMixin
from diffusers_ref.schedulers.score_sde_sub_vp import ScoreSdeSubVpScheduler
from diffusers_ref.schedulers.score_sde_vp import ScoreSdeVpScheduler

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusers_ref.models.ncsnpp import NCSNppModel
    from diffusers_ref.models.unet_2d import UNet2DModel


class ScoreSdeVpPipeline(UnconditionalImagePipeline):
    """Unconditional images by the noise predictor of a VP or sub-VP SDE. A scheduler of another class is used as it is.

    centered: the images that the network was trained on are in [−1, 1] (`data.centered` of
        yang-song/score_sde_pytorch), as those of all its VP and sub-VP configurations are, not in [0, 1].
    """

    scheduler_class: ClassVar[type[SchedulerMixin]] = ScoreSdeVpScheduler

    def __init__(
        self,
        unet: UNet2DModel | NCSNppModel,
        scheduler: SchedulerMixin,
        pixel_rounding: str = "half_even",
        centered: bool = True,
    ) -> None:
        super().__init__(unet, scheduler, pixel_rounding)
        self.centered = centered

    @classmethod
    def _scheduler_class(cls, scheduler_configs: Mapping[str, Any]) -> type[SchedulerMixin]:
        offered = ScoreSdeSubVpScheduler.__name__ in scheduler_configs
        return ScoreSdeSubVpScheduler if offered else cls.scheduler_class

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 1000,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[ContinuousSamplingOptions],
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` images through `num_inference_steps` noise levels, each with all its corrector steps.

        generator: one generator, or one per image; every draw is taken from it. None: torch's global generator.
        output_type: "pil", "np" or "pt" for images, "latent" or "raw" for the sampler's last tensor, unclipped.
        return_dict: return an ImagePipelineOutput rather than a tuple.
        options: see ContinuousSamplingOptions.
        """
        return self._sample(batch_size, generator, num_inference_steps, output_type, return_dict, {}, **options)
