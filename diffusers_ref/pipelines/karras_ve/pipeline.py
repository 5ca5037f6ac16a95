"""Stochastic sampling: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., arXiv
2206.00364), algorithm 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from diffusers_ref.outputs import ImagePipelineOutput
from diffusers_ref.pipelines.unconditional import ContinuousSamplingOptions, UnconditionalImagePipeline
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.karras_ve import KarrasVeScheduler
from diffusers_ref.schedulers.preconditioned_scheduler import PreconditionedScheduler
from diffusers_ref.schedulers.scheduler import SchedulerMixin

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusers_ref.models.ncsnpp import NCSNppModel
    from diffusers_ref.models.unet_2d import UNet2DModel


class KarrasVePipeline(UnconditionalImagePipeline):
    """Unconditional images by a network of noise levels and a sampler of EDM.

    unet: with a KarrasVeScheduler, a score network of score SDE, on pixels in [0, 1]; with EDMHeunScheduler,
        EDMAblationScheduler or EDMEulerScheduler, one of their preconditioning, on images in [−1, 1].
    scheduler: one of these. The state is in its `state_dtype`, around a network of any precision.

    HF diffusers takes the square of every noise level; here they are the paper's.
    """

    scheduler_class: ClassVar[type[SchedulerMixin]] = KarrasVeScheduler

    def __init__(
        self, unet: UNet2DModel | NCSNppModel, scheduler: SchedulerMixin, pixel_rounding: str = "half_even"
    ) -> None:
        if not isinstance(scheduler, PreconditionedScheduler):
            raise TypeError(
                f"scheduler is a {type(scheduler).__name__}; allowed: KarrasVeScheduler, EDMHeunScheduler, "
                "EDMAblationScheduler, EDMEulerScheduler"
            )
        super().__init__(unet, scheduler, pixel_rounding)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[ContinuousSamplingOptions],
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` images in `num_inference_steps` steps, of two evaluations each but for the last.

        generator: one generator, or one per image; every draw is taken from it. None: torch's global generator.
        output_type: "pil", "np" or "pt" for images, "latent" or "raw" for the sampler's last tensor in [-1, 1].
        return_dict: return an ImagePipelineOutput rather than a tuple.
        options: see ContinuousSamplingOptions.
        """
        return self._sample(batch_size, generator, num_inference_steps, output_type, return_dict, {}, **options)

    def _model_input(self, x: Tensor, t: Tensor) -> Tensor:
        model_input: Tensor = self.scheduler.scale_model_input(x, t, dtype=self.dtype)
        return model_input

    @property
    def _state_dtype(self) -> torch.dtype:
        return self.scheduler.state_dtype or self.dtype
