"""Implicit sampling: Denoising Diffusion Implicit Models (Song et al., arXiv 2010.02502), equation 12."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from diffusers_ref.outputs import ImagePipelineOutput
from diffusers_ref.pipelines.unconditional import SamplingOptions, UnconditionalImagePipeline, converted
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.ddim import DDIMScheduler
from diffusers_ref.schedulers.scheduler import SchedulerMixin

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusers_ref.models.unet_2d import UNet2DModel


class DDIMPipeline(UnconditionalImagePipeline):
    """Unconditional images by DDIM. A scheduler of another class is replaced by a DDIMScheduler with its options."""

    scheduler_class: ClassVar[type[SchedulerMixin]] = DDIMScheduler

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, pixel_rounding: str = "half_even") -> None:
        super().__init__(unet, converted(scheduler, DDIMScheduler), pixel_rounding)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` images in `num_inference_steps` steps.

        eta: η, the share of noise in a step; 0 is DDIM (deterministic given x_T), 1 has the variance of DDPM.
        use_clipped_model_output: re-derive epsilon from the clipped x_0; None leaves it to the scheduler.
        generator: one generator, or one per image; every draw is taken from it. None: torch's global generator.
        output_type: "pil", "np" or "pt" for images, "latent" or "raw" for the sampler's last tensor in [-1, 1].
        return_dict: return an ImagePipelineOutput rather than a tuple.
        options: see SamplingOptions.
        """
        step_options: dict[str, Any] = {"eta": eta}
        if use_clipped_model_output is not None:
            step_options["use_clipped_model_output"] = use_clipped_model_output
        return self._sample(
            batch_size, generator, num_inference_steps, output_type, return_dict, step_options, **options
        )
