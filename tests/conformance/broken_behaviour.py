"""Schedulers that are each broken in one way, named after the contract that must see it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from diffusers_ref import DDIMScheduler, DDPMScheduler, PNDMScheduler
from diffusers_ref.schedulers.scheduler import SchedulerOutput


class FlowScheduler:
    """A small, right scheduler of another family and code base: Euler steps of x_σ = (1 − σ)·x_0 + σ·noise."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, num_train_timesteps: int = 100, shift: float = 1.0) -> None:
        self.config = {"num_train_timesteps": num_train_timesteps, "shift": shift}
        self.trained = self.shifted(torch.linspace(1, 1 / num_train_timesteps, num_train_timesteps))
        self.timesteps = self.trained * num_train_timesteps
        self.sigmas = torch.cat([self.trained, torch.zeros(1)])

    def shifted(self, sigmas: torch.Tensor) -> torch.Tensor:
        shift = self.config["shift"]
        return shift * sigmas / (1 + (shift - 1) * sigmas)

    def set_timesteps(self, num_inference_steps: int | None = None, sigmas: list[float] | None = None) -> None:
        count = self.config["num_train_timesteps"]
        if sigmas is None:
            if not num_inference_steps or not 1 <= num_inference_steps <= count:
                raise ValueError(f"{num_inference_steps} steps are not possible; allowed: 1 to {count}")
            levels = self.shifted(torch.linspace(1, 1 / count, num_inference_steps))
        else:
            levels = torch.tensor(sigmas)
        self.timesteps, self.sigmas = levels * count, torch.cat([levels, torch.zeros(1)])

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> tuple[torch.Tensor]:
        index = int((self.timesteps - timestep).abs().argmin())
        wide = torch.float64 if sample.dtype is torch.float64 else torch.float32
        move = (self.sigmas[index + 1] - self.sigmas[index]).to(wide)
        return ((sample.to(wide) + move * model_output.to(wide)).to(sample.dtype),)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        sigma = (timestep.float() / self.config["num_train_timesteps"]).reshape(-1, *[1] * (sample.ndim - 1))
        return ((1 - sigma) * sample.float() + sigma * noise.float()).to(sample.dtype)


# --- life -----------------------------------------------------------------------------------------------------------


class EndsInNaN(DDIMScheduler):
    def step(self, *args: Any, **options: Any) -> SchedulerOutput:
        result = super().step(*args, **options)
        return SchedulerOutput(result.prev_sample / (0.0 if self._step_index == len(self.timesteps) else 1.0))


class KeepsItsHistory(PNDMScheduler):
    def _restart(self) -> None:
        if not hasattr(self, "_history"):
            super()._restart()


class StepsWithoutTimesteps(DDIMScheduler):
    def _require_timesteps(self) -> None:
        pass


class RoundsItsTable(DDIMScheduler):
    rounded: torch.Tensor | None = None

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        return super().alphas_cumprod if self.rounded is None else self.rounded

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        self.rounded = self.alphas_cumprod.to(original_samples.dtype)
        return super().add_noise(original_samples, noise, timesteps)


class ForgetsOnAddNoise(PNDMScheduler):
    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        self._history = []
        return super().add_noise(original_samples, noise, timesteps)


class SharesWithItsCopy(DDIMScheduler):
    def __deepcopy__(self, memo: dict[int, Any]) -> SharesWithItsCopy:
        return copy.copy(self)

    def set_timesteps(self, num_inference_steps: int | None = None, **options: Any) -> None:
        super().set_timesteps(num_inference_steps, **options)
        self.drift = getattr(self, "drift", [0.0])
        self.drift[0] = 0.01 * (num_inference_steps or 0)

    def step(self, *args: Any, **options: Any) -> SchedulerOutput:
        return SchedulerOutput(super().step(*args, **options).prev_sample + self.drift[0])


class RemembersTheLastGrid(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, **options: Any) -> None:
        self.slope = 1.0 if getattr(self, "num_inference_steps", None) in (None, num_inference_steps) else 1.01
        super().set_timesteps(num_inference_steps, **options)

    def step(self, *args: Any, **options: Any) -> SchedulerOutput:
        return SchedulerOutput(super().step(*args, **options).prev_sample * self.slope)


# --- grid -----------------------------------------------------------------------------------------------------------


class TurnsBack(DDIMScheduler):
    def _list_evaluations(self, grid: list[int], explicit: bool) -> list[Any]:
        return [*grid[1:2], *grid[:1], *grid[2:]]


class RepeatsATimestep(DDIMScheduler):
    def _list_evaluations(self, grid: list[int], explicit: bool) -> list[Any]:
        return [*grid[:1], *grid[:-1]]


class DividesByZero(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, **options: Any) -> None:
        self.stride = None if num_inference_steps is None else 1 / (num_inference_steps - 1)
        super().set_timesteps(num_inference_steps, **options)


class MumblesAboutOneStep(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, **options: Any) -> None:
        if num_inference_steps == 1:
            raise ValueError("operands could not be broadcast together")
        super().set_timesteps(num_inference_steps, **options)


class OverrunsItsTable(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, **options: Any) -> None:
        super().set_timesteps(num_inference_steps, **options)
        self._table.betas[len(self) if num_inference_steps == len(self) else 0]


class ShiftsTwice(FlowScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, sigmas: list[float] | None = None) -> None:
        super().set_timesteps(num_inference_steps, sigmas)
        if sigmas is None:
            last = float(self.trained[-1])
            levels = self.shifted(torch.linspace(1, last, num_inference_steps or 1))
            count = self.config["num_train_timesteps"]
            self.timesteps, self.sigmas = levels * count, torch.cat([levels, torch.zeros(1)])


class DropsTimesteps(DDPMScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, timesteps: Any = None) -> None:
        super().set_timesteps(num_inference_steps or len(timesteps))


class DropsSigmas(FlowScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, sigmas: list[float] | None = None) -> None:
        super().set_timesteps(num_inference_steps or len(sigmas or ()))


class SortsTimesteps(DDPMScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, timesteps: Any = None) -> None:
        super().set_timesteps(num_inference_steps, timesteps=timesteps and sorted(timesteps, reverse=True))


class ForgetsTheEnds(DDPMScheduler):
    """Explicit timesteps outside of training are left out without a word, and the number of steps is not looked at."""

    def set_timesteps(self, num_inference_steps: int | None = None, timesteps: Any = None) -> None:
        if timesteps:
            num_inference_steps = None
            timesteps = [t for t in timesteps if t >= 0]
        super().set_timesteps(num_inference_steps, timesteps=timesteps)


class TakesZeroForTheLastVariance(DDPMScheduler):
    """The last logarithm of a variance is that of almost 0, of which a large weight makes infinity times no noise."""

    def _coefficients(self, dtype: torch.dtype) -> list[Any]:
        *steps, last = super()._coefficients(dtype)
        return [*steps, last._replace(min_log=-46.0)]


class RefusesTheCleanEnd(DDPMScheduler):
    """Timestep 0 cannot be given."""

    def set_timesteps(self, num_inference_steps: int | None = None, timesteps: Any = None) -> None:
        if timesteps and 0 in timesteps:
            raise ValueError("timesteps must be above 0")
        super().set_timesteps(num_inference_steps, timesteps=timesteps)


# --- starts ---------------------------------------------------------------------------------------------------------


class StartsOneLate(DDIMScheduler):
    def _locate(self, timestep: Any, expected: int | None) -> int:
        found = super()._locate(timestep, expected)
        return min(found + (expected is None and found > 0), len(self._times) - 1)


class BeginsOneLate(DDIMScheduler):
    def set_begin_index(self, begin_index: int = 0) -> None:
        super().set_begin_index(min(begin_index + 1, len(self._times) - 1))

    def _locate(self, timestep: Any, expected: int | None) -> int:
        return super()._locate(timestep, expected) if expected is None else min(expected, len(self._times) - 1)


class SlidesToTheNextStep(PNDMScheduler):
    def set_begin_index(self, begin_index: int = 0) -> None:
        while not self._begins_step(begin_index):
            begin_index += 1
        super().set_begin_index(begin_index)

    def _locate(self, timestep: Any, expected: int | None) -> int:
        return super()._locate(timestep, expected) if expected is None else min(expected, len(self._times) - 1)


# --- tensors --------------------------------------------------------------------------------------------------------


class AlwaysFloat32(DDIMScheduler):
    def step(self, *args: Any, **options: Any) -> SchedulerOutput:
        return SchedulerOutput(super().step(*args, **options).prev_sample.float())


class StaysOnTheHost(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **options: Any) -> None:
        super().set_timesteps(num_inference_steps, **options)


class WritesIntoTheSample(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: torch.Tensor, **options: Any) -> SchedulerOutput:
        return super().step(model_output, timestep, sample.clamp_(-1, 1), **options)


class DrawsFromTheFirstGenerator(DDPMScheduler):
    def step(self, *args: Any, generator: Any = None, **options: Any) -> SchedulerOutput:
        return super().step(*args, generator=generator[0] if isinstance(generator, list) else generator, **options)


class DependsOnThePlace(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: torch.Tensor, **options: Any) -> SchedulerOutput:
        result = super().step(model_output, timestep, sample, **options).prev_sample
        place = torch.arange(len(result)).reshape(-1, *[1] * (result.ndim - 1))
        return SchedulerOutput((result * (1 + 0.1 * place)).to(result.dtype))


class KnowsImagesOnly(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: torch.Tensor, **options: Any) -> SchedulerOutput:
        _b, _c, _h, _w = sample.shape
        return super().step(model_output, timestep, sample, **options)


class NeedsContiguousMemory(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: torch.Tensor, **options: Any) -> SchedulerOutput:
        flat = sample.view(-1)
        return super().step(model_output, timestep, flat.view(sample.shape), **options)


class TakesNumbersForIndices(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: torch.Tensor, **options: Any) -> SchedulerOutput:
        timestep = timestep if isinstance(timestep, torch.Tensor) else self.timesteps[timestep % 3 + 1]
        return super().step(model_output, timestep, sample, **options)


class RoundsHalfTypesTwice(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: torch.Tensor, **options: Any) -> SchedulerOutput:
        if sample.element_size() == 2:
            sample = (sample * 16).round() / 16
        return super().step(model_output, timestep, sample, **options)


class RoundsAlphasFirst(DDIMScheduler):
    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        abar = self.alphas_cumprod.to(original_samples.dtype)[timesteps].reshape(-1, 1, 1, 1)
        return abar.sqrt() * original_samples + (1 - abar).sqrt() * noise


class ComputesInFloat32(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: torch.Tensor, **options: Any) -> SchedulerOutput:
        result = super().step(model_output.float(), timestep, sample.float(), **options)
        return SchedulerOutput(result.prev_sample.to(sample.dtype))


# --- randomness -----------------------------------------------------------------------------------------------------


class IgnoresTheGenerator(DDPMScheduler):
    def step(self, *args: Any, generator: Any = None, **options: Any) -> SchedulerOutput:
        return super().step(*args, **options)


class IgnoresEta(DDIMScheduler):
    def step(self, *args: Any, eta: float = 0.0, **options: Any) -> SchedulerOutput:
        return super().step(*args, **options)


class SeedsGlobally(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, **options: Any) -> None:
        torch.manual_seed(0)
        super().set_timesteps(num_inference_steps, **options)


class DrawsOnlyIfNeeded(DDIMScheduler):
    def step(self, *args: Any, eta: float = 0.0, generator: Any = None, **options: Any) -> SchedulerOutput:
        return super().step(*args, eta=eta, generator=generator if eta else None, **options)


class DropsTheGivenNoise(DDIMScheduler):
    def step(self, *args: Any, eta: float = 0.0, variance_noise: Any = None, **options: Any) -> SchedulerOutput:
        return super().step(*args, eta=0.0 if variance_noise is not None else eta, **options)


class CutsTheGenerators(DDPMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: Any, generator: Any = None) -> SchedulerOutput:
        if isinstance(generator, list):
            generator = (len(sample) * generator)[: len(sample)]
        return super().step(model_output, timestep, sample, generator)


class DrawsInTheSamplesPrecision(DDPMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: torch.Tensor, generator: Any = None) -> SchedulerOutput:
        if not isinstance(generator, torch.Generator):
            return super().step(model_output, timestep, sample, generator)
        drawn = torch.randn(sample.shape, generator=generator, dtype=sample.dtype)
        return super().step(model_output, timestep, sample, variance_noise=drawn)


BROKEN: dict[str, list[tuple[Any, type, str]]] = {
    "runs_as_it_is": [(EndsInNaN, DDIMScheduler, "NaN or infinite")],
    "second_run_equals_first": [
        (KeepsItsHistory(skip_prk_steps=True), PNDMScheduler, "the second run: "),
        (RemembersTheLastGrid, DDIMScheduler, "the second run: "),
    ],
    "early_step_is_refused": [(StepsWithoutTimesteps, DDIMScheduler, "wanted a ValueError")],
    "tables_are_constant": [(RoundsItsTable, DDIMScheduler, "`alphas_cumprod` after a run")],
    "life_cycle": [
        (RemembersTheLastGrid, DDIMScheduler, "set_timesteps("),
        (SharesWithItsCopy, DDIMScheduler, "deepcopy"),
    ],
    "interruptions_leave_no_trace": [
        (ForgetsOnAddNoise, PNDMScheduler, "`add_noise` before every step"),
        (SharesWithItsCopy, DDIMScheduler, "copy` before every step"),
    ],
    "timesteps_descend_within_training": [(TurnsBack, DDIMScheduler, "turns back")],
    "each_step_is_one_evaluation": [(PNDMScheduler, DDIMScheduler, "4 steps of order 1 are 13 evaluations")],
    "timesteps_differ": [(RepeatsATimestep, DDIMScheduler, "is visited twice")],
    "any_step_count_runs_or_is_refused": [
        (DividesByZero, DDIMScheduler, "ZeroDivisionError"),
        (MumblesAboutOneStep, DDIMScheduler, "does not say what is wrong"),
    ],
    "longest_runs_end": [(OverrunsItsTable, DDIMScheduler, "IndexError")],
    "full_grid_is_that_of_training": [(ShiftsTwice, FlowScheduler, "100 steps pass the training timestep")],
    "variance_types_are_the_published": [(TakesZeroForTheLastVariance, DDPMScheduler, "NaN")],
    "explicit_timesteps_are_honoured": [
        (DropsTimesteps, DDPMScheduler, "the list given"),
        (RefusesTheCleanEnd, DDPMScheduler, "but not all of it"),
    ],
    "explicit_sigmas_are_honoured": [(DropsSigmas, FlowScheduler, "the list of sigmas")],
    "unusable_timesteps_are_refused": [
        (SortsTimesteps, DDPMScheduler, "timesteps that ascend are accepted"),
        (ForgetsTheEnds, DDPMScheduler, "timesteps that lie below training are accepted"),
    ],
    "start_is_found_by_its_timestep": [(StartsOneLate, DDIMScheduler, "beginning by the timestep")],
    "start_is_found_by_its_index": [(BeginsOneLate, DDIMScheduler, "after set_begin_index")],
    "start_within_a_step_is_refused_or_right": [(SlidesToTheNextStep, PNDMScheduler, "the result of beginning at")],
    "shape_dtype_and_device_are_kept": [(AlwaysFloat32, DDIMScheduler, "the dtype torch.float32 instead of")],
    "timesteps_lie_on_the_device": [(StaysOnTheHost, DDIMScheduler, "on the device meta are on cpu")],
    "inputs_are_left_alone": [(WritesIntoTheSample, DDIMScheduler, "the sample that was given to step")],
    "batch_equals_singles": [(DrawsFromTheFirstGenerator, DDPMScheduler, "sample 0 of a batch of 3")],
    "permuting_the_batch_permutes_the_result": [(DependsOnThePlace, DDIMScheduler, "the permuted batch")],
    "any_shape_gives_the_same_numbers": [(KnowsImagesOnly, DDIMScheduler, "ValueError: not enough values to unpack")],
    "memory_layout_does_not_matter": [(NeedsContiguousMemory, DDIMScheduler, "RuntimeError")],
    "any_form_of_timestep_will_do": [(TakesNumbersForIndices, DDIMScheduler, "the step at a Python number")],
    "half_precision_is_close": [(RoundsHalfTypesTwice, DDIMScheduler, "the step in torch.")],
    "half_precision_keeps_the_levels": [(RoundsAlphasFirst, DDIMScheduler, "at timestep")],
    "float64_is_not_narrowed": [(ComputesInFloat32, DDIMScheduler, "it is rounded to float32")],
    "same_seed_gives_the_same_result": [(IgnoresTheGenerator, DDPMScheduler, "another global random state")],
    "noise_options_make_noise": [(IgnoresEta, DDIMScheduler, "eta=1, but another seed gives the same result")],
    "global_random_state_is_untouched": [
        (SeedsGlobally, DDIMScheduler, "set_timesteps changes the global random state of torch"),
        (IgnoresTheGenerator, DDPMScheduler, "step with a generator changes the global random state of torch"),
    ],
    "draws_do_not_depend_on_options": [(DrawsOnlyIfNeeded, DDIMScheduler, "another amount of noise for eta=0")],
    "noise_can_be_given": [(DropsTheGivenNoise, DDIMScheduler, "the noise given instead of drawn")],
    "generators_are_counted": [(CutsTheGenerators, DDPMScheduler, "2 generators for a batch of 3 are accepted")],
    "draws_do_not_depend_on_precision": [(DrawsInTheSamplesPrecision, DDPMScheduler, "the noise drawn in")],
}
"""Contract -> (broken class or object, good class, what the reason says)."""
