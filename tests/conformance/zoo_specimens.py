"""Specimens of the bug zoo: classes of HF diffusers and of ours, with a fault planted that a public thread reports.

A planted fault is one replacement in the source of the class's module (it is refused if its place is gone), or a
subclass where the fault is a line that is missing.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import diffusers
import torch
from broken_networks import MaskDropped, MaskOnTheTokens
from broken_pipelines import RunsWhatItFinds, SoundPipeline, TimesInTheDtypeOfImages
from diffusers.schedulers import (
    scheduling_dpmsolver_multistep,
    scheduling_euler_discrete,
    scheduling_flow_match_euler_discrete,
    scheduling_heun_discrete,
    scheduling_k_dpm_2_ancestral_discrete,
)
from planted import WithScheduler, planted

import diffusers_ref
import diffusers_ref.schedulers.ddpm
from conformance.implementations.subjects import image_subjects

diffusers.utils.logging.set_verbosity_error()


def faulty(module: ModuleType, name: str, old: str, new: str) -> type:
    """Class `name` of `module` with one replacement in the module's source."""
    found: type = getattr(planted(module, old, new), name)
    return found


# --- HF diffusers with a fault that it once had ----------------------------------------------------------------------


def heun_with_the_first_sigma_in_both_stages() -> type:
    return faulty(
        scheduling_heun_discrete,
        "HeunDiscreteScheduler",
        """elif self.config.prediction_type == "v_prediction":
            sigma_input = sigma_hat if self.state_in_first_order else sigma_next""",
        """elif self.config.prediction_type == "v_prediction":
            sigma_input = sigma_hat""",
    )


def dpm_solver_that_keeps_its_history() -> type:
    return faulty(
        scheduling_dpmsolver_multistep,
        "DPMSolverMultistepScheduler",
        """        self.model_outputs = [
            None,
        ] * self.config.solver_order
        self.lower_order_nums = 0
""",
        "",
    )


def flow_matching_that_ignores_the_generator() -> Any:
    cls = faulty(
        scheduling_flow_match_euler_discrete,
        "FlowMatchEulerDiscreteScheduler",
        "noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)",
        "noise = torch.randn_like(sample)",
    )
    return cls(stochastic_sampling=True)


def euler_that_adds_noise_by_training_timestep() -> type:
    return faulty(
        scheduling_euler_discrete,
        "EulerDiscreteScheduler",
        """        if self.begin_index is None:
            step_indices = [self.index_for_timestep(t, schedule_timesteps) for t in timesteps]
        elif""",
        """        if self.begin_index is None:
            step_indices = [int(t) % len(self.timesteps) for t in timesteps]
        elif""",
    )


class DpmSolverWithARepeatedLastSigma(diffusers.DPMSolverMultistepScheduler):
    """The last sigma is repeated in the place of 0: the last step does nothing."""

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        self.sigmas[-1] = self.sigmas[-2]


class DdpmThatDropsCustomTimesteps(diffusers.DDPMScheduler):
    """Custom timesteps are counted and forgotten."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: list[int] | None = None
    ) -> None:
        super().set_timesteps(num_inference_steps or len(timesteps or ()), device)


class OneGeneratorForTheWholeBatch(diffusers_ref.DDPMScheduler):
    """A list of generators is reduced to its first."""

    def step(self, model_output: Any, timestep: Any, sample: Any, generator: Any = None) -> Any:
        one = generator[0] if isinstance(generator, list) else generator
        return super().step(model_output, timestep, sample, generator=one)


# --- our schedulers with a fault that others had ---------------------------------------------------------------------


class TablesCastForGood(diffusers_ref.DDIMScheduler):
    """`add_noise` leaves its tables in the dtype of the sample."""

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        result = super().add_noise(original_samples, noise, timesteps)
        self._cast = self.alphas_cumprod.to(original_samples.dtype)
        return result

    @property
    def alphas_cumprod(self) -> Any:
        return self.__dict__.get("_cast", self._table.alphas_cumprod)


class KarrasVe:
    """Stochastic sampling of Karras et al. without churn, in the common API: σ_i² falls geometrically.

    squared: False leaves a square out of the schedule, as a port once did.
    """

    order = 1

    def __init__(self, squared: bool = True, sigma_min: float = 0.02, sigma_max: float = 100.0) -> None:
        self.config = {"squared": squared, "sigma_min": sigma_min, "sigma_max": sigma_max}
        self.init_noise_sigma = sigma_max

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        high, low = self.config["sigma_max"] ** 2, self.config["sigma_min"] ** 2
        start = high if self.config["squared"] else self.config["sigma_max"]
        index = torch.arange(num_inference_steps, dtype=torch.float64)
        variance = start * (low / high) ** (index / max(num_inference_steps - 1, 1))
        self.sigmas = torch.cat([variance.sqrt(), torch.zeros(1, dtype=torch.float64)])
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1)

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        level = self.sigmas[[len(self.timesteps) - 1 - int(t) for t in timesteps]].to(original_samples.dtype)
        return original_samples + level.reshape(-1, *[1] * (original_samples.ndim - 1)) * noise

    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        return sample

    def step(self, model_output: Any, timestep: Any, sample: Any) -> tuple[Any]:
        index = len(self.timesteps) - 1 - int(timestep)
        return (sample + (self.sigmas[index + 1] - self.sigmas[index]).to(sample.dtype) * model_output,)


def tiny_hf_unet() -> Any:
    return image_subjects(diffusers)["UNet2DModel"]()


def draws_per_evaluation(cls: type, steps: int) -> list[int]:
    """How many tensors of noise `step` takes from its generator after each evaluation."""
    scheduler: Any = cls()
    scheduler.set_timesteps(steps)
    sample, generator, counts = torch.ones(1, 1, 2, 2), torch.Generator().manual_seed(0), []
    for t in scheduler.timesteps:
        before = generator.get_state()
        sample = scheduler.step(sample * 0.1, t, sample, generator=generator).prev_sample
        shadow = torch.Generator()
        shadow.set_state(before)
        count = 0
        while not torch.equal(shadow.get_state(), generator.get_state()):
            torch.randn(1, 1, 2, 2, generator=shadow)
            count += 1
        counts.append(count)
    return counts


def kdpm2_ancestral_that_draws_in_both_stages() -> type:
    return faulty(
        scheduling_k_dpm_2_ancestral_discrete,
        "KDPM2AncestralDiscreteScheduler",
        "            self.sample = sample\n            self.dt = dt\n",
        "            self.sample = sample\n            self.dt = dt\n"
        "            randn_tensor(model_output.shape, dtype=model_output.dtype, generator=generator)\n",
    )


__all__ = ["MaskDropped", "MaskOnTheTokens", "RunsWhatItFinds", "SoundPipeline", "TimesInTheDtypeOfImages",
           "WithScheduler", "planted"]  # fmt: skip
