"""A small pipeline that has everything a contract looks at, and one broken on purpose for every contract."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusers_ref import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers_ref.images import check_output_type, postprocess
from diffusers_ref.outputs import ImagePipelineOutput
from diffusers_ref.pipeline import DiffusionPipeline
from diffusers_ref.random import randn

TINY: dict[str, Any] = {
    "sample_size": 4,
    "block_out_channels": (4,),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "mid_block_type": None,
}


def tiny_unet() -> UNet2DModel:
    """A network of one level, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(**TINY).eval()


class SoundPipeline(DiffusionPipeline):
    """Any scheduler around a network; `extra` is a component that it can do without."""

    def __init__(self, unet: Any, scheduler: Any, extra: Any = None) -> None:
        self.register_modules(unet=unet, scheduler=scheduler, extra=extra)

    @classmethod
    def tiny(cls) -> SoundPipeline:
        return cls(tiny_unet(), DDPMScheduler(), DDIMScheduler())

    def __call__(
        self,
        batch_size: int = 1,
        generator: Any = None,
        num_inference_steps: int = 4,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
    ) -> Any:
        self.check(batch_size, output_type)
        with self.gradients():
            self.prepare(num_inference_steps)
            x = self.begin(batch_size, generator, latents)
            for index, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
                if hasattr(self.scheduler, "add_noise_to_input"):
                    x = self.scheduler.add_noise_to_input(x, t, generator=generator)
                output = self.predict(x, t)
                x = self.step(output, t, x, generator, callback_on_step_end, index)
        return self.finish(x, output_type, return_dict)

    def check(self, batch_size: Any, output_type: str) -> None:
        check_output_type(output_type)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}")

    def gradients(self) -> Any:
        return torch.no_grad()

    def prepare(self, steps: int) -> None:
        self.scheduler.set_timesteps(steps)

    def begin(self, batch: int, generator: Any, latents: Tensor | None) -> Tensor:
        shape = (batch, 3, 4, 4)
        if latents is None:
            return randn(shape, generator, self.device, self.dtype) * self.scheduler.init_noise_sigma
        if not isinstance(latents, Tensor) or latents.shape != shape:
            raise ValueError(f"latents must be a tensor of the shape {shape}")
        return latents.to(self.dtype) * self.scheduler.init_noise_sigma

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        return self.unet(self.scheduler.scale_model_input(x, t), t).sample

    def step(self, output: Tensor, t: Tensor, x: Tensor, generator: Any, callback: Any, index: int) -> Tensor:
        takes = inspect.signature(self.scheduler.step).parameters
        draws = {"generator": generator} if "generator" in takes else {}
        x = self.scheduler.step(output, t, x, **draws).prev_sample
        return x if callback is None else callback(self, index, t, {"latents": x}).get("latents", x)

    def finish(self, x: Tensor, output_type: str, return_dict: bool) -> Any:
        images = postprocess(x, output_type, "half_even")
        return ImagePipelineOutput(images=images) if return_dict else (images,)


# --- one broken on purpose for every contract ------------------------------------------------------------------------


class Crashes(SoundPipeline):
    def predict(self, x, t):
        raise KeyError("down_block_res_samples")


class IgnoresTheGenerator(SoundPipeline):
    def begin(self, batch, generator, latents):
        return super().begin(batch, None, latents)


class DrawsGlobally(SoundPipeline):
    def predict(self, x, t):
        torch.rand(())
        return super().predict(x, t)


class FirstGeneratorForAll(SoundPipeline):
    def begin(self, batch, generator, latents):
        return super().begin(batch, generator[0] if isinstance(generator, list) else generator, latents)


class RemembersCalls(SoundPipeline):
    calls = 0

    def begin(self, batch, generator, latents):
        self.calls += 1
        return super().begin(batch, generator, latents) * (0.9 + 0.1 * self.calls)


class LeavesTrainingMode(SoundPipeline):
    def predict(self, x, t):
        self.unet.train()
        return super().predict(x, t)


class KeepsTheGraph(SoundPipeline):
    def gradients(self):
        return torch.enable_grad()

    def finish(self, x, output_type, return_dict):
        return super().finish(x.detach(), output_type, return_dict)


class OtherTuple(SoundPipeline):
    def finish(self, x, output_type, return_dict):
        return super().finish(x if return_dict else x / 2, output_type, return_dict)


class BlueFirst(SoundPipeline):
    def finish(self, x, output_type, return_dict):
        return super().finish(x.flip(1) if output_type == "pil" else x, output_type, return_dict)


class ChannelsFirstArray(SoundPipeline):
    def finish(self, x, output_type, return_dict):
        output = super().finish(x, output_type, True)
        if output_type == "np":
            output.images = output.images.transpose(0, 3, 1, 2)
        return output


class FixedSteps(SoundPipeline):
    def prepare(self, steps):
        super().prepare(4)


class TimesInTheDtypeOfImages(SoundPipeline):
    def predict(self, x, t):
        return super().predict(x, t.to(x.dtype))


class OverflowsInHalf(SoundPipeline):
    def predict(self, x, t):
        return super().predict(1e6 * x / 1e6, t)


class NoInputScaling(SoundPipeline):
    def predict(self, x, t):
        return self.unet(x, t).sample


class NoInitialScaling(SoundPipeline):
    def begin(self, batch, generator, latents):
        return super().begin(batch, generator, latents) / self.scheduler.init_noise_sigma


class AlwaysEta(SoundPipeline):
    @classmethod
    def tiny(cls):
        return cls(tiny_unet(), DDIMScheduler(), None)

    def step(self, output, t, x, generator, callback, index):
        return self.scheduler.step(output, t, x, generator=generator, eta=0.0).prev_sample


class IgnoresLatents(SoundPipeline):
    def begin(self, batch, generator, latents):
        return super().begin(batch, generator, None)


class CallsBackBeforeTheStep(SoundPipeline):
    def step(self, output, t, x, generator, callback, index):
        if callback is not None:
            callback(self, index, t, {"latents": x})
        return super().step(output, t, x, generator, None, index)


class CountsCallbacksFromOne(SoundPipeline):
    def step(self, output, t, x, generator, callback, index):
        return super().step(output, t, x, generator, callback, index + 1)


class CallbackForNothing(SoundPipeline):
    def step(self, output, t, x, generator, callback, index):
        x = super().step(output, t, x, generator, None, index)
        if callback is not None:
            callback(self, index, t, {"latents": x})
        return x


class OptionNotSaved(SoundPipeline):
    gain = 1.0

    @classmethod
    def tiny(cls):
        pipeline = super().tiny()
        pipeline.gain = 0.5
        return pipeline

    def finish(self, x, output_type, return_dict):
        return super().finish(self.gain * x, output_type, return_dict)


class IncompleteIndex(SoundPipeline):
    def save_pretrained(self, folder, **options):
        super().save_pretrained(folder, **options)
        file = Path(folder) / "model_index.json"
        index = json.loads(file.read_text())
        index["scheduler"] = index["scheduler"][1]
        file.write_text(json.dumps(index))


class StaysBehind(SoundPipeline):
    def to(self, *args, **kwargs):
        return self


class HiddenNetwork(SoundPipeline):
    def __init__(self, unet: Any, scheduler: Any, extra: Any = None) -> None:
        super().__init__(unet, scheduler, extra)
        self.helper = torch.nn.Linear(2, 2)


class SpoilsTheScheduler(SoundPipeline):
    def __init__(self, unet: Any, scheduler: Any, extra: Any = None) -> None:
        super().__init__(unet, scheduler, extra)
        scheduler.config = type(scheduler.config)({**scheduler.config, "clip_sample_range": 2.0})


class NeedsTheExtra(SoundPipeline):
    def finish(self, x, output_type, return_dict):
        return super().finish(x * self.extra.init_noise_sigma, output_type, return_dict)


class Prints(SoundPipeline):
    def predict(self, x, t):
        print("step", int(t))
        return super().predict(x, t)


class AlwaysABar(SoundPipeline):
    def progress_bar(self, steps, total=None):
        from tqdm import tqdm

        return tqdm(steps)


class RunsWhatItFinds(SoundPipeline):
    @classmethod
    def from_pretrained(cls, folder, **options):
        for file in sorted(Path(folder).glob("*.py")):
            exec(file.read_text())
        return super().from_pretrained(folder, **options)


class UncheckedCounts(SoundPipeline):
    def check(self, batch_size, output_type):
        check_output_type(output_type)

    def prepare(self, steps):
        super().prepare(max(int(steps), 1))


class AnyGenerator(SoundPipeline):
    def begin(self, batch, generator, latents):
        return super().begin(batch, generator[:batch] if isinstance(generator, list) else generator, latents)


class ChecksLatentsTooLate(SoundPipeline):
    def begin(self, batch, generator, latents):
        x = super().begin(batch, generator, None)
        return x if latents is None else super().begin(batch, generator, x)

    def finish(self, x, output_type, return_dict):
        raise ValueError("latents have a wrong shape")


class AnyOutputType(SoundPipeline):
    def check(self, batch_size, output_type):
        pass

    def finish(self, x, output_type, return_dict):
        return super().finish(x, output_type if output_type in ("np", "pt", "pil", "latent") else "np", return_dict)


class AnyKeyword(SoundPipeline):
    def __call__(self, batch_size=1, generator=None, num_inference_steps=4, output_type="pil", **anything):
        with contextlib.suppress(KeyError):
            del anything["num_inference_stepz"]
        return super().__call__(batch_size, generator, num_inference_steps, None, output_type)


BROKEN: dict[str, list[tuple[type[SoundPipeline], str]]] = {
    "call_works": [(Crashes, "KeyError: 'down_block_res_samples'")],
    "generator_decides_the_result": [(IgnoresTheGenerator, "the images of the same seed")],
    "global_random_state_stays": [(DrawsGlobally, "from torch's global one")],
    "batch_equals_singles": [(FirstGeneratorForAll, "image 0 of a batch of 2")],
    "second_call_equals_first": [(RemembersCalls, "the second call")],
    "call_leaves_the_networks_alone": [(LeavesTrainingMode, "training mode")],
    "results_carry_no_graph": [(KeepsTheGraph, "runs with gradients")],
    "tuple_and_record_agree": [(OtherTuple, "the images in the tuple")],
    "output_types_agree": [(BlueFirst, '"pil" is up to'), (ChannelsFirstArray, r"instead of \(2, 3, 4, 4\)")],
    "steps_are_honoured": [(FixedSteps, "num_inference_steps=6: 4 timesteps")],
    "network_times_are_not_rounded": [(TimesInTheDtypeOfImages, "in torch.bfloat16 network call")],
    "half_precision_is_finite": [(OverflowsInHalf, "the images of a torch.float16 pipeline")],
    "scheduler_scales_the_network_input": [
        (NoInputScaling, "halved by scale_model_input"),
        (NoInitialScaling, "made thrice as large by init_noise_sigma"),
    ],
    "compatible_schedulers_run": [(AlwaysEta, " fail: .*DDPMScheduler: TypeError")],
    "given_latents_are_used": [(IgnoresLatents, "for the same latents and another seed")],
    "callbacks_see_every_step": [
        (CallsBackBeforeTheStep, "what the next step starts from"),
        (CountsCallbacksFromOne, r"\[\(1, 750.0\), .* instead of \[\(0, 750.0\)"),
    ],
    "callbacks_can_replace_the_sample": [(CallbackForNothing, "replaced the sample by zeros")],
    "save_and_load_give_equal_images": [(OptionNotSaved, "the images of the loaded pipeline")],
    "model_index_names_every_component": [(IncompleteIndex, "says 'DDPMScheduler' of scheduler")],
    "to_moves_every_network": [(StaysBehind, "is not float64")],
    "components_rebuild_the_pipeline": [(HiddenNetwork, "components lacks helper")],
    "shared_scheduler_is_not_spoilt": [(SpoilsTheScheduler, "that was passed: clip_sample_range from 1.0 to 2.0")],
    "optional_components_can_be_absent": [(NeedsTheExtra, "NoneType")],
    "progress_bar_can_be_off": [(Prints, "the standard output: 'step"), (AlwaysABar, "with the progress bar off")],
    "foreign_code_needs_consent": [(RunsWhatItFinds, "ran the code of a pipeline class")],
    "wrong_counts_raise": [(UncheckedCounts, "batch_size=0.*num_inference_steps=-1 is accepted")],
    "wrong_generators_raise": [(AnyGenerator, "3 generators for 2 images: ValueError only after 1")],
    "wrong_latents_raise": [(IgnoresLatents, "channel too many is accepted")],
    "unknown_output_type_raises": [(AnyOutputType, "output_type='jpeg' is accepted")],
    "unknown_keywords_raise": [(AnyKeyword, "num_inference_stepz=4 is accepted")],
}
"""Contract -> pipelines that break it, each with what the reason must say."""
