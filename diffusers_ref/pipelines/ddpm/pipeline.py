"""Ancestral sampling: Denoising Diffusion Probabilistic Models (Ho et al., arXiv 2006.11239), algorithm 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from diffusers_ref.outputs import ImagePipelineOutput
from diffusers_ref.pipelines.unconditional import SamplingOptions, UnconditionalImagePipeline
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.ddpm import DDPMScheduler
from diffusers_ref.schedulers.scheduler import SchedulerMixin

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DDPMPipeline(UnconditionalImagePipeline):
    """Unconditional images by ancestral sampling. A scheduler of another class is used as it is."""

    scheduler_class: ClassVar[type[SchedulerMixin]] = DDPMScheduler

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 1000,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` images in `num_inference_steps` steps.

        generator: one generator, or one per image; every draw is taken from it. None: torch's global generator.
        output_type: "pil", "np" or "pt" for images, "latent" or "raw" for the sampler's last tensor in [-1, 1].
        return_dict: return an ImagePipelineOutput rather than a tuple.
        options: see SamplingOptions.
        """
        return self._sample(batch_size, generator, num_inference_steps, output_type, return_dict, {}, **options)
