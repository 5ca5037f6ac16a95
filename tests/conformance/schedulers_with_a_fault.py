"""Schedulers with one fault each: for every contract of mathematics and configuration, what it must see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffusers_ref import (
    DDIMScheduler,
    DDPMScheduler,
    DPMPP2MSDEScheduler,
    EDMAblationScheduler,
    EDMEulerScheduler,
    PNDMScheduler,
    ScoreSdeOdeScheduler,
)
from diffusers_ref.schedulers.scheduler import SchedulerOutput

# Schedulers of this module lend each other their configurations, as those of a library do.
__all__ = ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"]


class LouderNoise(DDIMScheduler):
    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        return super().add_noise(original_samples, 1.01 * noise, timesteps)


class OneTimestepForAll(DDIMScheduler):
    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        return super().add_noise(original_samples, noise, torch.as_tensor(timesteps).reshape(-1)[:1])


class FoldedProcess(DDIMScheduler):
    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        return super().add_noise(original_samples, noise, (torch.as_tensor(timesteps) - 400).abs())


class NegativeVelocity(DDIMScheduler):
    def get_velocity(self, sample: Any, noise: Any, timesteps: Any) -> Any:
        return -super().get_velocity(sample, noise, timesteps)


class ScaledInput(DDIMScheduler):
    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        return sample / 2


class LoudStart(DDIMScheduler):
    init_noise_sigma = 1.01


class LargerBetas(DDIMScheduler):
    @property
    def betas(self) -> torch.Tensor:
        return 1.0001 * super().betas


class SomeSignalLeft(DDIMScheduler):
    @property
    def alphas_cumprod(self) -> torch.Tensor:
        return super().alphas_cumprod.clamp(min=1e-4)


class GridOffByOne(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: Any = None, **options: Any) -> None:
        super().set_timesteps(num_inference_steps, **options)
        if self.timesteps[0] < len(self) - 1:
            super().set_timesteps(timesteps=[t + 1 for t in self.timesteps.tolist()])


class PreviousTimestepByDivision(DDIMScheduler):
    """The previous timestep is t - T // n, whatever the list says."""

    def _coefficients(self, dtype: torch.dtype, eta: float = 0.0) -> list[Any]:
        grid = self._grid
        stride = len(self) // len(grid)
        previous = [max(t - stride, 0) for t in grid]
        steps = []
        for t, t_prev in zip(grid, previous, strict=True):
            self._grid = [t, t_prev] if t_prev < t else [t]
            steps.append(self._make_coefficients(dtype, eta)[0])
        self._grid = grid
        return steps


class _Ending(DDIMScheduler):
    """Changes the result of the last step, or of all."""

    def _change(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        result = super().step(model_output, timestep, sample, **options)
        if timestep == self.timesteps[-1]:
            result = SchedulerOutput(self._change(result.prev_sample, sample), result.pred_original_sample)
        return result


class NoiseLeft(_Ending):
    def _change(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * (before - x)


class BentPath(_Ending):
    def _change(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return x + 0.01 * x.square()


class BeyondTheLimit(_Ending):
    def _change(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return torch.where(x.abs() > 0.6, 1.05 * x, x)


class Stagnating(_Ending):
    def _change(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return x + 0.2


class LouderDraws(DDPMScheduler):
    def _noise(self, *arguments: Any) -> torch.Tensor:
        return 1.01 * super()._noise(*arguments)


class SquaredEta(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0, **options: Any) -> Any:
        return super().step(model_output, timestep, sample, eta**2, **options)


class WrongVelocity(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        factor = 0.99 if self.config.prediction_type == "v_prediction" else 1.0
        return super().step(factor * model_output, timestep, sample, **options)


class OtherReport(DDIMScheduler):
    def step(self, *arguments: Any, **options: Any) -> Any:
        result = super().step(*arguments, **options)
        return SchedulerOutput(result.prev_sample, 1.01 * result.pred_original_sample)


class ThresholdingMakesNaN(DDIMScheduler):
    def __init__(self, set_alpha_to_one: bool = True, thresholding: bool = False, clip_sample: bool = True) -> None:
        super().__init__(set_alpha_to_one=set_alpha_to_one, thresholding=thresholding, clip_sample=clip_sample)

    def step(self, *arguments: Any, **options: Any) -> Any:
        result = super().step(*arguments, **options)
        broken = self.config.thresholding and not self.config.set_alpha_to_one
        return SchedulerOutput(result.prev_sample * (torch.nan if broken else 1.0), result.pred_original_sample)


class DeafToAlpha(DDIMScheduler):
    """Accepts set_alpha_to_one, and ignores it."""

    def __init__(self, set_alpha_to_one: bool = True, clip_sample: bool = True) -> None:
        super().__init__(set_alpha_to_one=set_alpha_to_one, clip_sample=clip_sample)

    @property
    def final_alpha_cumprod(self) -> torch.Tensor:
        return torch.ones_like(self.alphas_cumprod[0])


class Lenient(DDIMScheduler):
    def __init__(self, timestep_spacing: str = "leading") -> None:
        known = timestep_spacing in ("leading", "linspace", "trailing")
        super().__init__(timestep_spacing=timestep_spacing if known else "leading")


class AnythingGoes(DDIMScheduler):
    def __init__(self, **options: Any) -> None:
        super().__init__()


class Forgetful(DDIMScheduler):
    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Any:
        return super().from_config({key: value for key, value in config.items() if key != "clip_sample"}, **overrides)


class Stubborn(DDIMScheduler):
    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Any:
        return super().from_config(config)


class Borrower(DDIMScheduler):
    """Takes the defaults of another class for choices."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Any:
        return cls(**{key: value for key, value in config.items() if key in cls.config_keys()})


class OtherDefault(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.1, **options: Any) -> Any:
        return super().step(model_output, timestep, sample, eta, **options)


class AnyCount(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: Any = None, **options: Any) -> None:
        super().set_timesteps(max(1, int(num_inference_steps)), **options)


class AnyLength(DDIMScheduler):
    def __init__(self, num_train_timesteps: Any = 1000) -> None:
        super().__init__(num_train_timesteps=max(2, int(num_train_timesteps)))


class NearestTime(DDIMScheduler):
    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        return super().add_noise(original_samples, noise, torch.as_tensor(timesteps).clamp(0, 999))


class ScalesIfTold(DDIMScheduler):
    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        return sample if timestep is None else 1.1 * sample


class Broadcasting(DDIMScheduler):
    def _check(self, model_output: Any, sample: Any, channel_factor: int = 1) -> torch.dtype:
        return torch.float32


class AnyTimestep(DDIMScheduler):
    def _advance(self, timestep: Any) -> int:
        try:
            return super()._advance(timestep)
        except (ValueError, TypeError):
            return 0


class AnyGenerator(DDPMScheduler):
    def _noise(self, sample: Any, generator: Any, variance_noise: Any, dtype: torch.dtype) -> torch.Tensor:
        known = isinstance(generator, (torch.Generator, list))
        return super()._noise(sample, generator if known else None, variance_noise, dtype)


class WritesEverything(DDIMScheduler):
    convention_options = frozenset()


class MidpointsElsewhere(PNDMScheduler):
    def _make_plan(self, grid: Any, half_stride: Any) -> Any:
        return super()._make_plan(grid, None if half_stride is None else half_stride + 1)


class LouderHistory(PNDMScheduler):
    def _multistep(self) -> torch.Tensor:
        return super()._multistep() + 1e-9 * self._history[-1]


class KeepsHistory(PNDMScheduler):
    def set_begin_index(self, begin_index: int = 0) -> None:
        history = self._history
        super().set_begin_index(begin_index)
        self._history = history


class ReportFirst(DDIMScheduler):
    def step(self, *arguments: Any, return_dict: bool = True, **options: Any) -> Any:
        result = super().step(*arguments, **options)
        return result if return_dict else (result.pred_original_sample, result.prev_sample)


class WideReport(DDIMScheduler):
    def step(self, *arguments: Any, **options: Any) -> Any:
        result = super().step(*arguments, **options)
        return SchedulerOutput(result.prev_sample, result.pred_original_sample.float())


class RoundsOutputs(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        return super().step(model_output.to(sample.dtype), timestep, sample, **options)


class OnePrecision(DDIMScheduler):
    def __init__(self, beta_schedule: str = "linear", coefficients: str | None = None) -> None:
        super().__init__(beta_schedule=beta_schedule, coefficients=coefficients or "float64")


class NeedsSignal(DDIMScheduler):
    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        if self.alphas_cumprod[self._grid[0]] == 0:
            raise ValueError("the first level has no signal")


class LouderThanItsLevel(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0, **options: Any) -> Any:
        result = super().step(model_output, timestep, sample, min(eta, 1.0), **options)
        return SchedulerOutput(max(eta, 1.0) * result.prev_sample, result.pred_original_sample)


class EmptySections(DDPMScheduler):
    def set_timesteps(self, num_inference_steps: Any = None, respacing: Any = None, **options: Any) -> None:
        if isinstance(respacing, str):
            respacing = respacing.replace("0,", "")
        super().set_timesteps(num_inference_steps, respacing=respacing, **options)


class SignOfVelocities(EDMEulerScheduler):
    def precondition_outputs(self, sample: Any, model_output: Any, sigma: Any) -> Any:
        velocity = self.config.prediction_type == "v_prediction"
        return super().precondition_outputs(sample, -model_output if velocity else model_output, sigma)


class OtherTrainingList(EDMEulerScheduler):
    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        self.init_noise_sigma = 1.0


class IgnoresRho(EDMAblationScheduler):
    def _refuse(self, names: Any, where: str) -> None:
        super()._refuse([name for name in names if name != "rho"], where)


class KarrasOnly(EDMEulerScheduler):
    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        if self.config.sigma_schedule != "karras":
            raise ValueError(f"sigma_schedule={self.config.sigma_schedule!r} is not known")
        super().set_timesteps(*arguments, **options)


class AnyEta(DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0, **options: Any) -> Any:
        return super().step(model_output, timestep, sample, abs(eta), **options)


class AgainstTheClassifier(DDIMScheduler):
    def step(self, *args: Any, classifier_gradient: Any = None, **options: Any) -> Any:
        gradient = None if classifier_gradient is None else -classifier_gradient
        return super().step(*args, classifier_gradient=gradient, **options)


class AnyGradient(DDPMScheduler):
    def step(
        self, model_output: Any, timestep: Any, sample: Any, classifier_gradient: Any = None, **options: Any
    ) -> Any:
        if classifier_gradient is not None:
            options["classifier_gradient"] = torch.as_tensor(classifier_gradient).expand_as(sample)
        return super().step(model_output, timestep, sample, **options)


class NewPathEachStep(DPMPP2MSDEScheduler):
    def _path(self, sample: Any, dtype: Any) -> Any:
        self._tree = None
        generator = torch.Generator().manual_seed(len(str(self.config.noise_sampler_seed)))
        return lambda sigma, sigma_next: torch.randn(sample.shape, generator=generator, dtype=dtype)


class KeepsItsPath(DPMPP2MSDEScheduler):
    def _restart(self) -> None:
        tree = getattr(self, "_tree", None)
        super()._restart()
        self._tree = tree


class DeafToNoiseSamplers(DPMPP2MSDEScheduler):
    def step(self, *arguments: Any, noise_sampler: Any = None, **options: Any) -> Any:
        return super().step(*arguments, **options)


class KeepsItsSolver(ScoreSdeOdeScheduler):
    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        solver = getattr(self, "_solver", None)
        super().set_timesteps(*arguments, **options)
        self._solver = solver


class AnyTime(ScoreSdeOdeScheduler):
    def _expect(self, timestep: Any) -> None:
        super()._expect(timestep if self.next_time is None else self.next_time)


FAULTS: dict[str, tuple[type, str]] = {
    "noise_is_added_linearly": (LouderNoise, "no published process"),
    "noise_is_added_per_sample": (OneTimestepForAll, "the batch"),
    "levels_are_ordered": (FoldedProcess, "against the direction"),
    "velocity_matches_the_levels": (NegativeVelocity, "the velocity at"),
    "inputs_have_unit_variance": (ScaledInput, "the network's input"),
    "starts_on_the_first_level": (LoudStart, "init_noise_sigma is 1.01"),
    "betas_follow_their_schedule": (LargerBetas, "betas["),
    "zero_snr_leaves_no_signal": (SomeSignalLeft, "instead of 0"),
    "timesteps_follow_the_spacing": (GridOffByOne, "begin with"),
    "sections_are_respaced": (EmptySections, "respacing='0,5' is accepted"),
    "steps_land_on_their_levels": (PreviousTimestepByDivision, "but the next timestep has"),
    "runs_end_at_the_data": (NoiseLeft, "can be left"),
    "constant_output_moves_straight": (BentPath, "the end of the path"),
    "variance_types_are_the_published": (LouderDraws, "adds noise of standard deviation"),
    "eta_goes_from_ode_to_posterior": (SquaredEta, "adds noise of standard deviation"),
    "prediction_types_agree": (WrongVelocity, "'v_prediction'"),
    "reported_x0_is_the_belief": (OtherReport, "the reported x_0"),
    "limits_hold_in_the_result": (BeyondTheLimit, "the result"),
    "seeded_noise_is_one_path": (NewPathEachStep, "that a finer grid makes in two"),
    "paths_last_for_a_run": (KeepsItsPath, "the noise sampler returned"),
    "noise_samplers_are_asked": (DeafToNoiseSamplers, "steps with a noise sampler"),
    "adaptive_runs_repeat": (KeepsItsSolver, "a second run"),
    "adaptive_runs_go_in_order": (AnyTime, "a step at another time is accepted"),
    "gradients_move_the_mean_or_epsilon": (AgainstTheClassifier, "the guided sample"),
    "unusable_gradients_are_refused": (AnyGradient, "that is a number is accepted"),
    "error_falls_with_the_steps": (Stagnating, "the error falls from"),
    "evaluations_are_those_of_the_method": (MidpointsElsewhere, "99, 75, 75, 49, 49 instead of 99, 74, 74, 49, 49"),
    "outputs_combine_as_the_equations_say": (LouderHistory, "the sample: "),
    "sampling_begins_anywhere": (KeepsHistory, "the sample: "),
    "option_pairs_run_or_are_refused": (ThresholdingMakesNaN, "set_alpha_to_one=False, thresholding=True with"),
    "options_have_an_effect": (DeafToAlpha, "set_alpha_to_one (True, False)"),
    "unknown_values_are_refused": (Lenient, "timestep_spacing='no-such-value' is accepted"),
    "unknown_options_are_refused": (AnythingGoes, "no_such_option"),
    "config_round_trips": (Forgetful, "clip_sample is True instead of False"),
    "overrides_win": (Stubborn, "instead of"),
    "borrowed_config_brings_only_choices": (Borrower, "made from the configuration of"),
    "defaults_are_the_published": (OtherDefault, "the default of step: eta is 0.1 instead of 0.0"),
    "further_options_are_saved_if_chosen": (WritesEverything, "coefficients=None, which was not chosen"),
    "unusable_step_counts_are_refused": (AnyCount, "set_timesteps(0) is accepted"),
    "unusable_outputs_are_refused": (Broadcasting, "a batch of one is accepted"),
    "unusable_timesteps_are_refused_by_step": (AnyTimestep, "far above is accepted"),
    "unusable_generators_are_refused": (AnyGenerator, "a number is accepted"),
    "unusable_noise_settings_are_refused": (AnyEta, "eta=-0.5 is accepted"),
    "unusable_numbers_are_refused": (AnyLength, "num_train_timesteps=0 is accepted"),
    "noise_is_refused_at_unknown_times": (NearestTime, "far above training: accepted"),
    "inputs_are_scaled_for_the_expected_entry": (ScalesIfTold, "without the timestep"),
    "preconditioning_is_the_published": (SignOfVelocities, "D at σ=80"),
    "training_list_is_that_of_a_run": (OtherTrainingList, "init_noise_sigma before set_timesteps"),
    "idle_numbers_are_refused": (IgnoresRho, "discretization='vp', rho=10.5"),
    "published_values_are_taken": (KarrasOnly, "sigma_schedule='exponential' does not run"),
    "precision_follows_the_schedule": (OnePrecision, "instead of 'float32_cumprod'"),
    "runs_begin_without_signal": (NeedsSignal, "the first level has no signal"),
    "noise_fits_its_level": (LouderThanItsLevel, "after step 0 the noise is"),
    "tuples_hold_the_same": (ReportFirst, "the first of the tuple"),
    "reported_x0_has_the_form_of_the_sample": (WideReport, "the dtype torch.float32, the sample torch.float64"),
    "low_precision_is_widened_throughout": (RoundsOutputs, "the sample: "),
}
"""Contract -> a scheduler that breaks it, and what the reason says."""
