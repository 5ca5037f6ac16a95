"""The sampling loop that the pixel-space pipelines share: x_T, then network and scheduler in turn, then images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.images import check_output_type, check_pixel_rounding, postprocess
from diffusers_ref.outputs import ImagePipelineOutput
from diffusers_ref.pipeline import DiffusionPipeline, StepCallback
from diffusers_ref.random import Generators, randn
from diffusers_ref.schedulers.scheduler import SchedulerMixin
from diffusers_ref.sources import PathOrName

if TYPE_CHECKING:
    from typing_extensions import Self

    from diffusers_ref.models.ncsnpp import NCSNppModel
    from diffusers_ref.models.unet_2d import UNet2DModel

LEARNED_VARIANCES = ("learned", "learned_range")


class ContinuousSamplingOptions(TypedDict, total=False):
    """Keywords that every pixel-space pipeline takes besides its own."""

    sample: Tensor | None
    """(B, C, H, W) x_T; drawn if None. Brought to the network's device and dtype; `batch_size` may be left out."""
    latents: Tensor | None
    """The same, under the name of HF diffusers."""
    class_labels: Tensor | Sequence[int] | int | None
    """() or (B,) classes, for a class-conditional network."""
    callback_on_step_end: StepCallback | None
    """Called after every step as f(pipeline, index, timestep, {"sample": x}); a dict it returns replaces x."""


class SamplingOptions(ContinuousSamplingOptions, total=False):
    """Those of a sampler of discrete timesteps."""

    timesteps: Sequence[int] | None
    """The timesteps themselves, descending, in place of `num_inference_steps`."""
    respacing: str | Sequence[int] | None
    """Steps per section ("10,15,20", "ddim25") in place of `num_inference_steps`, for a scheduler that knows it."""


class UnconditionalImagePipeline(DiffusionPipeline):
    """Images out of noise, by a network in pixel space.

    unet: the network; it predicts what the scheduler's `prediction_type` says.
    scheduler: the sampler.
    pixel_rounding: how real numbers become the integers of PIL images, a `PixelRounding`.
    """

    convention_options: ClassVar[frozenset[str]] = frozenset({"pixel_rounding", "centered"})

    centered: bool = True
    """Whether the sampler's images are in [-1, 1], as nearly all are, or in [0, 1]; an option of some classes."""

    scheduler_class: ClassVar[type[SchedulerMixin]]
    """The scheduler that `from_single_file` makes."""

    unet: UNet2DModel | NCSNppModel
    scheduler: Any

    def __init__(
        self, unet: UNet2DModel | NCSNppModel, scheduler: SchedulerMixin, pixel_rounding: str = "half_even"
    ) -> None:
        if not isinstance(unet, torch.nn.Module):
            raise TypeError(f"unet must be a network, not {type(unet).__name__}")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.pixel_rounding = check_pixel_rounding(pixel_rounding)

    @classmethod
    def from_single_file(
        cls,
        checkpoint: PathOrName,
        original_config: Any = None,
        *,
        original_format: str | None = None,
        use_ema: bool = True,
        torch_dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> Self:
        """Make a pipeline from a checkpoint and a configuration of the paper's own code.

        checkpoint: the original file (.pt, .ckpt, .pth, .npz, ...). Nothing in it is executed.
        original_config: the original's configuration, a file or a mapping.
        original_format: name of the original repository, for example "ermongroup/ddim"; recognised if None.
        use_ema: load the averaged weights where the checkpoint has both.
        torch_dtype: dtype of the network.
        overrides: components and options in place of the original's, for example scheduler=...

        The scheduler and the rounding of pixels follow the original's conventions. Raises WeightsError, ValueError.
        """
        from diffusers_ref.original import load_single_file

        cls._raise_unknown([key for key in overrides if key not in cls.config_keys()])
        path = Path(checkpoint).expanduser()
        single = load_single_file(path, original_config, original_format=original_format, use_ema=use_ema)
        arguments: dict[str, Any] = {"unet": single.unet, "pixel_rounding": single.pixel_rounding} | overrides
        if "centered" in cls.config_keys():  # Images in [0, 1] are centred by the network itself.
            arguments.setdefault("centered", not single.unet.config.center_input_sample)
        if torch_dtype is not None and "unet" not in overrides:
            arguments["unet"] = single.unet.to(torch_dtype)
        if "scheduler" not in overrides:
            scheduler_class = cls._scheduler_class(single.scheduler_configs)
            wanted = scheduler_class.__name__
            if wanted not in single.scheduler_configs:
                raise ConfigError(
                    f"{single.format} has no {wanted}, only {', '.join(sorted(single.scheduler_configs))}; "
                    "use the pipeline of one of these, or pass scheduler=..."
                )
            arguments["scheduler"] = scheduler_class.from_config(single.scheduler_configs[wanted])
        return cls(**arguments)

    @classmethod
    def _scheduler_class(cls, scheduler_configs: Mapping[str, Any]) -> type[SchedulerMixin]:
        """Which scheduler a checkpoint with these samplers gets."""
        return cls.scheduler_class

    def _sample(
        self,
        batch_size: int,
        generator: Generators,
        num_inference_steps: int,
        output_type: str,
        return_dict: bool,
        step_options: dict[str, Any],
        *,
        sample: Tensor | None = None,
        latents: Tensor | None = None,
        class_labels: Tensor | Sequence[int] | int | None = None,
        timesteps: Sequence[int] | None = None,
        respacing: str | Sequence[int] | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        check_output_type(output_type)
        if sample is not None and latents is not None:
            raise ValueError("give x_T either as sample or as latents, not both")
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(f"callback_on_step_end must be callable, not {type(callback_on_step_end).__name__}")
        scheduler, unet = self.scheduler, self.unet

        steps = num_inference_steps if timesteps is None and respacing is None else None
        grids = {"timesteps": timesteps, "respacing": respacing}
        scheduler.set_timesteps(steps, **{name: grid for name, grid in grids.items() if grid is not None})

        # x_T
        x = self._first_sample(batch_size, generator, sample if latents is None else latents)
        labels = self._labels(class_labels, x)
        channels = x.shape[1]
        keeps_variance = scheduler.config.get("variance_type") in LEARNED_VARIANCES
        add_noise_to_input = getattr(scheduler, "add_noise_to_input", None)

        total = len(scheduler.timesteps) if hasattr(scheduler.timesteps, "__len__") else None  # None: adaptive
        if "generator" in inspect.signature(type(scheduler).step).parameters:  # Some samplers draw nothing.
            step_options = {**step_options, "generator": generator}

        for index, t in enumerate(self.progress_bar(scheduler.timesteps, total=total)):
            if add_noise_to_input is not None:
                x = add_noise_to_input(x, t, generator=generator)

            # Network output: epsilon, x_0, v, or x_{t-1}
            model_input = self._model_input(x, t)
            output = unet(model_input, scheduler.network_timestep(t), class_labels=labels).sample
            if output.shape[1] == 2 * channels and not keeps_variance:
                output = output[:, :channels]  # A network that learned variances, in a sampler that has its own.

            # x_t -> x_{t-1}
            x = scheduler.step(output, t, x, **step_options).prev_sample
            if callback_on_step_end is not None:
                x = _replaced(x, callback_on_step_end(self, index, t, {"sample": x}))

        images = postprocess(x, output_type, self.pixel_rounding, centered=self.centered)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _model_input(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network is given for x: (B, C, H, W)."""
        model_input: Tensor = self.scheduler.scale_model_input(x, t)
        return model_input

    @property
    def _state_dtype(self) -> torch.dtype:
        """Of x."""
        return self.dtype

    def _first_sample(self, batch_size: int, generator: Generators, given: Tensor | None) -> Tensor:
        """x_T: (B, C, H, W), standard normal numbers or the given tensor."""
        if given is None:
            if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
                raise ValueError(f"batch_size is {batch_size!r}; allowed: integers from 1")
            size = self.unet.config.sample_size
            if size is None:
                raise ValueError("the network's config names no sample_size; give x_T as sample=, or load it with one")
            height, width = (size, size) if isinstance(size, int) else size
            shape = (batch_size, self.unet.config.in_channels, height, width)
            return self.scheduler.init_noise_sigma * randn(shape, generator, self.device, self._state_dtype)
        if not isinstance(given, Tensor):
            raise TypeError(f"x_T must be a tensor, not {type(given).__name__}")
        if given.ndim != 4 or given.shape[1] != self.unet.config.in_channels or batch_size not in (1, given.shape[0]):
            wanted = f"(B, {self.unet.config.in_channels}, H, W)" + (
                f" with B = {batch_size}" if batch_size != 1 else ""
            )
            raise ValueError(f"x_T has the shape {tuple(given.shape)}; allowed: {wanted}")
        return given.to(self.device, self._state_dtype)

    def _labels(self, class_labels: Tensor | Sequence[int] | int | None, x: Tensor) -> Tensor | None:
        """(B,) class labels on the device of `x`."""
        if class_labels is None:
            return None
        labels = torch.as_tensor(class_labels, device=x.device)
        if labels.ndim > 1 or (labels.ndim == 1 and len(labels) != len(x)):
            raise ValueError(f"class_labels has the shape {tuple(labels.shape)}; allowed: () or ({len(x)},)")
        return labels.expand(len(x))


def _replaced(x: Tensor, returned: dict[str, Any] | None) -> Tensor:
    """What the callback makes of x."""
    if returned is None:
        return x
    unknown = set(returned) - {"sample"}
    if unknown:
        raise ValueError(f"callback_on_step_end returned {', '.join(sorted(unknown))}; allowed: sample")
    replacement: Tensor = returned.get("sample", x)
    if replacement.shape != x.shape:
        raise ValueError(
            f"callback_on_step_end returned a sample of shape {tuple(replacement.shape)}, not {tuple(x.shape)}"
        )
    return replacement


def converted(scheduler: Any, scheduler_class: type[SchedulerMixin]) -> SchedulerMixin:
    """The scheduler itself if it is of the class, else one of the class with its options; TypeError if it has none."""
    if isinstance(scheduler, scheduler_class):
        return scheduler
    config = getattr(scheduler, "config", None)
    if config is None:
        raise TypeError(
            f"scheduler must be a {scheduler_class.__name__} or have a config, not {type(scheduler).__name__}"
        )
    return scheduler_class.from_config(config)
