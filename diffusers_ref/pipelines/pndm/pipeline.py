"""Pseudo Numerical Methods for Diffusion Models on Manifolds (Liu et al., arXiv 2202.09778), algorithm 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from diffusers_ref.outputs import ImagePipelineOutput
from diffusers_ref.pipelines.unconditional import SamplingOptions, UnconditionalImagePipeline, converted
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.pndm import PNDMScheduler
from diffusers_ref.schedulers.scheduler import SchedulerMixin

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusers_ref.models.unet_2d import UNet2DModel


class PNDMPipeline(UnconditionalImagePipeline):
    """Unconditional images by PNDM. A scheduler of another class is replaced by a PNDMScheduler with its options."""

    scheduler_class: ClassVar[type[SchedulerMixin]] = PNDMScheduler

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, pixel_rounding: str = "half_even") -> None:
        super().__init__(unet, converted(scheduler, PNDMScheduler), pixel_rounding)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` images on a grid of `num_inference_steps` steps (the first steps take several evaluations).

        generator: one generator, or one per image; only x_T is drawn. None: torch's global generator.
        output_type: "pil", "np" or "pt" for images, "latent" or "raw" for the sampler's last tensor in [-1, 1].
        return_dict: return an ImagePipelineOutput rather than a tuple.
        options: see SamplingOptions.
        """
        return self._sample(batch_size, generator, num_inference_steps, output_type, return_dict, {}, **options)
