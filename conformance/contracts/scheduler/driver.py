"""Driving any scheduler class through the common API: `set_timesteps`, `scale_model_input`, `step`, `add_noise`.

A check needs networks whose answer is known. What a scheduler means by its model output follows from its forward
process and its prediction type; the forward process is read off `add_noise` (or `scale_noise`) itself, so the driver
knows nothing about any algorithm: x_t = a·x_0 + b·noise, with a and b found by adding noise to ones and to zeros.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from conformance.contracts.result import NotApplicable
from conformance.contracts.scheduler.options import (
    SCORES,
    UNUSUAL,
    VELOCITIES,
    option_values,
    parameters,
    required,
    samples_tokens,
)

SHAPE = (2, 3, 4, 2)  # (B, C, H, W): no two sizes alike but the batch and the width, so that a wrong axis shows
CORE = ("model_output", "timestep", "sample")
LEARNED = ("learned", "learned_range")
SLOW = 0.05  # seconds

DataPrediction = Callable[[torch.Tensor, float, float], torch.Tensor]
"""x0(x, a, b): what the network believes x_0 to be, given x = a·x_0 + b·noise."""


@dataclass
class Trajectory:
    """A run: x before each evaluation (and before churn), the network's output there, and what `step` returned.

    samples[k] is x after evaluation k; x0[k] the scheduler's own prediction of x_0, if it reports one.
    """

    times: list[float] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    samples: list[torch.Tensor] = field(default_factory=list)
    x0: list[torch.Tensor | None] = field(default_factory=list)

    @property
    def final(self) -> torch.Tensor:
        return self.samples[-1]


class SchedulerUnderTest:
    """A scheduler class, or an instance whose configuration every check starts from.

    Attributes:
        name: of the class.
        cls: the class.
        base: options that were given explicitly (those of the instance's config; empty for a class).
        options: option -> values to try, the default (or the instance's value) first.
        outcomes: what became of configurations that were tried, so that each is tried once.
        results: of runs that several checks look at.
        measured: what contracts measured that others look at, too.
    """

    def __init__(self, subject: Any) -> None:
        self.cls: type = subject if isinstance(subject, type) else type(subject)
        self.name = self.cls.__name__
        missing = [name for name in ("set_timesteps", "step") if not callable(getattr(self.cls, name, None))]
        if missing:
            raise TypeError(f"{self.name} is no scheduler: it has no {' and no '.join(missing)}")
        if isinstance(subject, type) and required(self.cls):
            raise TypeError(f"{self.name} needs {', '.join(required(self.cls))} to be made: give an instance to check")
        self.base: dict[str, Any] = {}
        if not isinstance(subject, type):
            allowed = parameters(self.cls, "__init__")
            if not hasattr(subject, "config"):
                raise TypeError(f"a {self.name} without `config` cannot be made anew: give the class to check")
            self.base = {name: value for name, value in config_of(subject).items() if name in allowed}
        self._slow_to_make: dict[str, Any] = {}
        self.outcomes: dict[str, str] = {}
        self.results: dict[str, torch.Tensor] = {}
        self.measured: dict[str, Any] = {}
        values = option_values(self.cls)
        self.options = {
            name: (self.base[name], *(v for v in tried if v != self.base[name])) if name in self.base else tried
            for name, tried in values.items()
        }

    # --- making ------------------------------------------------------------------------------------------------------

    def make(self, **config: Any) -> Any:
        """A fresh scheduler with the base configuration and these options.

        A class that is slow to make is made once a configuration, and copied.
        """
        key = repr(sorted(config.items()))
        if key in self._slow_to_make:
            return copy.deepcopy(self._slow_to_make[key])
        start = time.process_time()
        scheduler = self.cls(**{**self.base, **config})
        if time.process_time() - start > SLOW:
            self._slow_to_make[key] = copy.deepcopy(scheduler)
        return scheduler

    def prepared(self, steps: int, **config: Any) -> Any:
        """A fresh scheduler after `set_timesteps(steps)`.

        Raises NotApplicable for one that chooses its times as it goes.
        """
        scheduler = self.make(**config)
        scheduler.set_timesteps(steps)
        if not hasattr(scheduler.timesteps, "__len__"):
            raise NotApplicable(f"{self.name} chooses its times as it goes")
        return scheduler

    def require_common_step(self) -> None:
        """Raises NotApplicable if `step` needs more than a model output, a timestep and a sample of numbers."""
        if samples_tokens(self.cls):
            raise NotApplicable(f"{self.name} samples tokens, not numbers")
        if self.name in UNUSUAL:
            raise NotApplicable(UNUSUAL[self.name])
        takes = parameters(self.cls, "step")
        needed = [name for name, p in takes.items() if p.default is p.empty]
        if any(name not in CORE for name in needed) or any(name not in takes for name in CORE):
            raise NotApplicable(f"step({', '.join(needed)}) is not the common step(model_output, timestep, sample)")

    def takes(self, method: str, argument: str) -> bool:
        """Whether a method has an argument of this name."""
        return argument in parameters(self.cls, method)

    # --- the forward process -----------------------------------------------------------------------------------------

    def levels(self, scheduler: Any, timestep: Any) -> tuple[float, float]:
        """(a, b) of x_t = a·x_0 + b·noise at an entry of `timesteps`, as the scheduler's own forward process has it.

        Raises NotApplicable for a scheduler without one.
        """
        one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        return (
            float(self.add_noise(scheduler, one, zero, timestep)),
            float(self.add_noise(scheduler, zero, one, timestep)),
        )

    def add_noise(self, scheduler: Any, x0: torch.Tensor, noise: torch.Tensor, timestep: Any) -> torch.Tensor:
        """x_t at one entry of `timesteps`, for the whole batch. Raises NotApplicable for a scheduler without one."""
        times = torch.as_tensor(timestep).reshape(1).expand(len(x0)).clone()
        if hasattr(scheduler, "add_noise"):
            return scheduler.add_noise(x0, noise, times)
        if hasattr(scheduler, "scale_noise"):
            try:
                return scheduler.scale_noise(x0, times, noise)
            except RuntimeError:  # one timestep for the whole batch
                return scheduler.scale_noise(x0, torch.as_tensor(timestep), noise)
        raise NotApplicable(f"{self.name} has neither add_noise nor scale_noise")

    def churned(self, scheduler: Any, x: torch.Tensor, timestep: Any, **draws: Any) -> torch.Tensor:
        """x with the noise that a sampler with churn adds before the network is asked at an entry of `timesteps`.

        draws: `generator` or `variance_noise`. A class without churn leaves x as it is.
        """
        if not self.takes("add_noise_to_input", "timestep"):
            return x
        noisier: torch.Tensor = scheduler.add_noise_to_input(x, timestep, **draws)
        return noisier

    def asked(self, scheduler: Any, timestep: Any) -> tuple[float, float]:
        """(a, b) at which the network is asked: `levels`, but for the noise of churn (of standard deviation `s_noise`
        times what raises the level)."""
        a, b = self.levels(scheduler, timestep)
        config = config_of(scheduler)
        if not (config.get("s_churn") and config.get("s_noise") and self.takes("add_noise_to_input", "variance_noise")):
            return a, b
        one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        probe = copy.deepcopy(scheduler)
        try:
            kept = float(probe.add_noise_to_input(one, timestep, variance_noise=zero))
        except ValueError:  # within a step, where nothing is drawn
            return a, b
        added = float(probe.add_noise_to_input(zero, timestep, variance_noise=one)) / config["s_noise"]
        return kept * a, math.hypot(kept * b, added)

    # --- networks with a known answer --------------------------------------------------------------------------------

    def output_for(self, scheduler: Any, x: torch.Tensor, x0: torch.Tensor, timestep: Any) -> torch.Tensor:
        """The network output by which the scheduler must understand that x_0 is `x0`, at x, the sample that the network
        is asked about, and an entry of `timesteps`.

        Raises NotApplicable for a prediction type that the driver does not know.
        """
        a, b = self.asked(scheduler, timestep)
        noise = (x - a * x0) / b
        config = config_of(scheduler)
        kind = config.get("prediction_type", None)
        if hasattr(scheduler, "precondition_outputs"):
            output = self._before_preconditioning(scheduler, x / a, x0, b / a)
        elif kind is None and hasattr(scheduler, "get_scalings_for_boundary_condition"):
            skip, out = scheduler.get_scalings_for_boundary_condition(torch.tensor(b, dtype=x.dtype))
            output = (x0 - skip * x) / out  # consistency models: skip·x + out·F = x_0
        elif kind == "flow_prediction" or (kind is None and hasattr(scheduler, "scale_noise")):
            output = (noise - x0) * self._time_direction(scheduler)
        elif kind is None and self.name in SCORES:
            output = -noise / b
        elif kind == "v_prediction" or (kind is None and self.name in VELOCITIES):
            scale = (a * a + b * b) ** 0.5  # 1 for variance-preserving processes; σ-space samples are scaled to that
            output = (a * noise - b * x0) / scale
        elif kind in (None, "epsilon"):
            output = noise
        elif kind == "sample":
            output = x0
        elif kind == "previous_sample":
            output = self._posterior_mean(scheduler, x, x0, timestep)
        else:
            raise NotApplicable(f"no network with a known answer for prediction_type={kind!r}")
        if config.get("variance_type") in LEARNED:
            output = torch.cat(
                [output, 0.3 * torch.sin(3 * x + a) - (2.0 if config["variance_type"] == "learned" else 0)], 1
            )
        return output

    def some_output(self, scheduler: Any, x: torch.Tensor, timestep: Any) -> torch.Tensor:
        """The output of a network without a meaning: within ±1, a live function of x and of time, pixel by pixel."""
        wave = torch.arange(x[0].numel(), dtype=x.dtype, device=x.device).reshape(x[0].shape)
        output = torch.sin(3 * x / (1 + x.abs()) + 1.7 * wave.remainder(7) + float(timestep) / len(scheduler.timesteps))
        learned = config_of(scheduler).get("variance_type") in LEARNED
        return torch.cat([output, 0.5 * torch.cos(3 * output)], 1) if learned else output

    def _posterior_mean(self, scheduler: Any, x: torch.Tensor, x0: torch.Tensor, timestep: Any) -> torch.Tensor:
        """The mean of q(x_{t-1} | x_t, x_0) (DDPM, eq. 7), where t-1 is the next of `timesteps`; x_0 at the end."""
        times = torch.as_tensor(scheduler.timesteps)
        after = int((times == torch.as_tensor(timestep).to(times)).nonzero()[-1]) + 1
        (a, b), end = self.levels(scheduler, timestep), (1.0, 0.0)
        a_end, b_end = self.levels(scheduler, times[after]) if after < len(times) else end
        # beta · a_end², from the smaller levels, whose rounding matters less
        fresh = b * b - b_end * b_end if b_end < a_end else a_end * a_end - a * a
        return (fresh / a_end * x0 + b_end * b_end * a / a_end * x) / (b * b)

    def _time_direction(self, scheduler: Any) -> float:
        """1 where the noise grows with the timestep, else -1: a velocity is the derivative by time."""
        first, last = scheduler.timesteps[0], scheduler.timesteps[-1]
        (_, b_first), (_, b_last) = self.levels(scheduler, first), self.levels(scheduler, last)
        return -1.0 if (b_first - b_last) * float(first - last) < 0 else 1.0

    def _before_preconditioning(self, scheduler: Any, x: torch.Tensor, x0: torch.Tensor, sigma: float) -> torch.Tensor:
        """EDM: the network's raw output F with c_skip·x + c_out·F = x_0, by solving the affine map for F."""
        level = torch.tensor(sigma, dtype=x.dtype)
        at_zero = scheduler.precondition_outputs(x, torch.zeros_like(x), level)
        slope = scheduler.precondition_outputs(x, torch.ones_like(x), level) - at_zero
        return (x0 - at_zero) / slope

    # --- running -----------------------------------------------------------------------------------------------------

    def run(
        self,
        scheduler: Any,
        x: torch.Tensor,
        prediction: DataPrediction | None,
        *,
        generator: Any = None,
        begin: int = 0,
        stop: int | None = None,
        step_options: dict[str, Any] | None = None,
        after: Callable[[int, torch.Tensor], None] = lambda index, sample: None,
    ) -> Trajectory:
        """The sampling loop from entry `begin` of `timesteps` to before `stop`.

        Args:
            prediction: what the network believes x_0 to be; None for a network without a meaning, which is cheaper and
                needs no forward process.
            x: (B, C, H, W) the sample at entry `begin`, in the scheduler's own scaling.
            generator: handed to `step` where it takes one.
            after: called with the index and the new sample after each evaluation.
        """
        self.require_common_step()
        options = dict(step_options or {})
        draws = {"generator": generator} if generator is not None else {}
        if self.takes("step", "generator"):
            options |= draws
        trajectory = Trajectory()
        for index, t in list(enumerate(scheduler.timesteps))[begin:stop]:
            trajectory.inputs.append(x)
            x = self.churned(scheduler, x, t, **draws)
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            if prediction is None:
                output = self.some_output(scheduler, x, t)
            else:
                a, b = self.asked(scheduler, t)
                output = self.output_for(scheduler, x, prediction(x, a, b), t).to(x.dtype)
            if self.takes("step", "prev_timestep"):
                options["prev_timestep"] = (
                    scheduler.timesteps[index + 1] if index + 1 < len(scheduler.timesteps) else None
                )
            result = scheduler.step(output, t, x, **options)
            trajectory.times.append(float(t))
            trajectory.outputs.append(output)
            x = result[0] if isinstance(result, tuple) else result.prev_sample
            trajectory.samples.append(x)
            trajectory.x0.append(getattr(result, "pred_original_sample", None))
            after(index, x)
        return trajectory

    def start(
        self, scheduler: Any, seed: int, shape: Sequence[int] = SHAPE, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """x_T: init_noise_sigma times standard normal numbers, the same in every dtype but for rounding."""
        noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (noise * float(getattr(scheduler, "init_noise_sigma", 1.0))).to(dtype)


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """The options that a scheduler was made with, as it tells them: a mapping or a record; none if it does not."""
    config = getattr(scheduler, "config", {})
    return config if isinstance(config, Mapping) else vars(config)


def always(x0: torch.Tensor) -> DataPrediction:
    """A network that knows x_0."""
    return lambda x, a, b: x0.to(x.dtype)


def mixture(seed: int = 0, std: float = 0.25) -> DataPrediction:
    """A live nonlinear network: E[x_0 | x] for data ±μ + std·n per pixel, with a pattern μ that `seed` chooses.

    x_0 stays within about ±1.
    """

    def predict(x: torch.Tensor, a: float, b: float) -> torch.Tensor:
        count = x[0].numel()
        wave = torch.arange(count, dtype=torch.float64) * 1.7 + 0.3 + seed
        mu = ((0.65 + 0.3 * torch.sin(wave)) * torch.where(torch.arange(count) % 3 < 2, 1.0, -1.0)).reshape(x[0].shape)
        mu = mu.to(x)
        spread = a * a * std * std + b * b
        return (a * std * std * x + b * b * mu * torch.tanh(a * mu * x / spread)) / spread

    return predict


def generators(seed: int, count: int | None = None) -> Any:
    """One CPU generator, or `count` of them with seeds seed, seed + 1, …"""
    if count is None:
        return torch.Generator("cpu").manual_seed(seed)
    return [torch.Generator("cpu").manual_seed(seed + index) for index in range(count)]
