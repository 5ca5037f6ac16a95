"""Predictor–corrector sampling of the VE SDE.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (arXiv 2011.13456), algorithms
1, 2 and 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from diffusers_ref.outputs import ImagePipelineOutput
from diffusers_ref.pipelines.unconditional import ContinuousSamplingOptions, UnconditionalImagePipeline
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.scheduler import SchedulerMixin
from diffusers_ref.schedulers.score_sde_ve import ScoreSdeVeScheduler

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusers_ref.models.ncsnpp import NCSNppModel
    from diffusers_ref.models.unet_2d import UNet2DModel


class ScoreSdeVePipeline(UnconditionalImagePipeline):
    """Unconditional images by a score network of noise levels. A scheduler of another class is used as it is.

    centered: the images that the network was trained on are in [−1, 1] (`data.centered` of
        yang-song/score_sde_pytorch), not in [0, 1] as those of all its VE configurations are.
    """

    scheduler_class: ClassVar[type[SchedulerMixin]] = ScoreSdeVeScheduler

    def __init__(
        self,
        unet: UNet2DModel | NCSNppModel,
        scheduler: SchedulerMixin,
        pixel_rounding: str = "half_even",
        centered: bool = False,
    ) -> None:
        super().__init__(unet, scheduler, pixel_rounding)
        self.centered = centered

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 2000,
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
