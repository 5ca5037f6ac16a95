"""Running any scheduler class by a probe's choices, and keeping everything that comes out.

Nothing that goes in depends on the code under the gate: samples, noise and model outputs are closed forms or come from
a seeded stream that is the same in every precision. An exception is an outcome like any other.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any
from unittest import mock

import numpy as np
import torch

from conformance.compare import FLOAT64
from conformance.contracts.scheduler.options import parameters
from conformance.gate.tokens import TokenModel, is_token_scheduler
from conformance.network import AnalyticNetwork

SHAPE = (2, 3, 2, 2)  # (B, C, H, W)
SEED = 2
MOST_EVALUATIONS = 24  # of one run; grids with inner loops can be long
RAISES = "raises"
TABLES = ("order", "init_noise_sigma", "betas", "alphas_cumprod", "final_alpha_cumprod", "sigmas", "timesteps")

Outcome = torch.Tensor | str  # a str is the name of an exception's type
Choices = Mapping[str, Any]


def observe(cls: type, choices: Choices, dtype: torch.dtype, device: str = "cpu") -> dict[str, Outcome]:
    """Run a probe in `dtype` and, where that is another, in float64; the latter's outputs end in `.f64`."""
    found = Run(cls, choices, dtype, device).outcomes()
    if dtype != torch.float64:
        exact = Run(cls, choices, torch.float64, device).outcomes()
        found |= {name + FLOAT64: value for name, value in exact.items()}
    return found


class Run:
    """One run of one scheduler in one precision."""

    def __init__(self, cls: type, choices: Choices, dtype: torch.dtype, device: str) -> None:
        self.cls, self.dtype, self.device = cls, dtype, device
        self.choices = choices
        self.noise = NoiseStream()
        self.generator = torch.Generator("cpu").manual_seed(SEED)
        self.steps = choices.get("steps", 5)
        self.tokens = is_token_scheduler(cls)
        self.found: dict[str, Outcome] = {}

    def outcomes(self) -> dict[str, Outcome]:
        """Outputs by name, in order: tables, forward process, the run's trajectory, draws. Never raises for what the
        class does; a run that an exception ends keeps what it had and `raises`."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(SEED)  # for code that takes no generator
            with self.noise.instead_of_randn(self.generator):
                try:
                    self._run()
                except Exception as error:  # noqa: BLE001 - whatever the code under the gate raises is its outcome
                    self.found[RAISES] = type(error).__name__
        state = self.generator.get_state().to(torch.int64)
        self.found["draws"] = torch.tensor([*self.noise.log, int((state * torch.arange(len(state))).sum())])
        return self.found

    # --- phases ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        config = {name: decoded(name, value, self.choices) for name, value in self._arguments("config").items()}
        scheduler = self.cls(**config)
        self._keep_tables(scheduler, "made")
        self._set_timesteps(scheduler)
        self._keep_tables(scheduler, "table")
        if self.choices.get("again"):
            self._loop(scheduler)
            self._set_timesteps(scheduler)
        self._keep_forward(scheduler, "fresh")
        samples, x0 = self._loop(scheduler)
        self.found["sample"] = torch.stack(samples)
        if x0:
            self.found["pred_original_sample"] = torch.stack(x0)
        self._keep_forward(scheduler, "after")

    def _set_timesteps(self, scheduler: Any) -> None:
        grid = self.choices.get("grid", "steps")
        arguments = self._arguments("set")
        accepted = inspect.signature(scheduler.set_timesteps).parameters
        if "device" in accepted:
            arguments["device"] = self.device
        required = accepted["num_inference_steps"].default is inspect.Parameter.empty
        if grid == "steps" or required:
            arguments["num_inference_steps"] = self.steps
        if grid == "timesteps":
            last = int(getattr(scheduler, "config", {}).get("num_train_timesteps", 1000)) - 1
            arguments["timesteps"] = [round(last * (i + 0.6) / self.steps) for i in reversed(range(self.steps))]
        elif grid == "sigmas":
            flow = hasattr(scheduler, "scale_noise") or not hasattr(scheduler, "scale_model_input")
            levels = [(i + 0.6) / self.steps for i in reversed(range(self.steps))]
            arguments["sigmas"] = levels if flow else [12.0 * level**2 for level in levels]
        scheduler.set_timesteps(**arguments)
        if hasattr(scheduler, "set_sigmas"):
            scheduler.set_sigmas(self.steps)

    def _loop(self, scheduler: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The sampling loop; returns the sample after each evaluation, and the predictions of x_0 if all report one."""
        times: Iterable[tuple[int, Any]] = enumerate(scheduler.timesteps)
        if _lists_times(scheduler):
            listed = list(times)
            times = listed[self._start(scheduler, len(listed)) :]
        model = TokenModel(self) if self.tokens else ImageModel(self, scheduler)
        sample = model.initial(scheduler)
        samples: list[torch.Tensor] = []
        x0: list[torch.Tensor] = []
        memory: dict[str, Any] = {}
        for index, t in islice(times, MOST_EVALUATIONS):
            self.noise.evaluation = index
            if "timestep" in parameters(type(scheduler), "add_noise_to_input"):
                sample = scheduler.add_noise_to_input(sample, t, generator=self.generator)
            model_input = sample
            if hasattr(scheduler, "scale_model_input"):
                model_input = scheduler.scale_model_input(sample, t)
            output = model(model_input, t)
            if hasattr(scheduler, "step_correct") and hasattr(scheduler, "step_pred"):
                sample = scheduler.step_correct(output, sample, generator=self.generator).prev_sample
            sample, prediction = self._step(scheduler, model, output, index, t, sample, memory)
            samples.append(sample.to("cpu"))
            if isinstance(prediction, torch.Tensor):
                x0.append(prediction.to("cpu"))
        return samples, x0 if len(x0) == len(samples) else []

    def _step(
        self, scheduler: Any, model: Any, output: torch.Tensor, index: int, t: Any, sample: torch.Tensor,
        memory: dict[str, Any],
    ) -> tuple[torch.Tensor, Any]:  # fmt: skip
        step = getattr(scheduler, "step_pred", None) or scheduler.step
        accepted = inspect.signature(step).parameters
        arguments = self._arguments("step")
        if "classifier_gradient" in arguments:
            arguments["classifier_gradient"] = torch.cos(2 * sample)
        if "generator" in accepted:
            arguments["generator"] = self.generator
        if self.choices.get("noise") == "given":
            arguments["variance_noise"] = self.noise.draw(sample.shape, self.dtype)
        if self.choices.get("tuple"):
            arguments["return_dict"] = False
        times = scheduler.timesteps
        if "sigma_hat" in accepted:  # KarrasVe: sigmas instead of times
            sigma, following = scheduler.schedule[t], scheduler.schedule[t - 1] if t > 0 else 0
            hat, sigma_hat = scheduler.add_noise_to_input(sample, sigma, generator=self.generator)
            arguments |= {"sigma_hat": sigma_hat, "sigma_prev": following, "sample_hat": hat}
        else:
            arguments |= {"timestep": t, "sample": sample}
        arguments |= model.extra(scheduler, accepted, index)
        if "old_pred_original_sample" in accepted:
            arguments |= {"old_pred_original_sample": memory.get("x0"), "timestep_back": times[index - 1] if index else
                          None}  # fmt: skip
        result = step(model_output=output, **arguments)
        self.found["returns a tuple"] = torch.tensor(isinstance(result, tuple))
        if isinstance(result, tuple):
            new, x0 = result[0], (result[1] if len(result) > 1 else None)
        else:
            new, x0 = result.prev_sample, getattr(result, "pred_original_sample", None)
        memory["x0"] = x0
        return new, x0

    def _start(self, scheduler: Any, evaluations: int) -> int:
        if self.choices.get("start", "first") == "first":
            return 0
        start = min(2, evaluations - 1) * int(getattr(scheduler, "order", 1))
        start = start if start < evaluations else 0
        if self.choices["start"] == "begin_index":
            scheduler.set_begin_index(start)
        return start

    # --- what is kept beside the run ---------------------------------------------------------------------------------

    def _keep_tables(self, scheduler: Any, when: str) -> None:
        """Public attributes that hold numbers: as made, or after `set_timesteps`."""
        for name in sorted({*TABLES, *(n for n in vars(scheduler) if not n.startswith("_"))}):
            table = _as_tensor(getattr(scheduler, name, None))
            if table is not None:
                self.found[f"{when}.{name}"] = table

    def _keep_forward(self, scheduler: Any, when: str) -> None:
        """The forward process at the first and the last entry of the grid."""
        if self.tokens or not _lists_times(scheduler):
            return
        x0, noise = self.numbers(1), self.numbers(2)
        times = torch.stack([torch.as_tensor(scheduler.timesteps[0]), torch.as_tensor(scheduler.timesteps[-1])])
        calls = {
            "add_noise": (x0, noise, times),
            "get_velocity": (x0, noise, times),
            "scale_noise": (x0, times, noise),
        }
        for name, arguments in calls.items():
            if not hasattr(scheduler, name):
                continue
            try:
                self.found[f"{name}.{when}"] = getattr(scheduler, name)(*arguments).to("cpu")
            except Exception as error:  # noqa: BLE001 - an outcome
                self.found[f"{name}.{when}"] = type(error).__name__

    # --- what goes in ------------------------------------------------------------------------------------------------

    def numbers(self, seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
        """Normal numbers, the same in every precision."""
        values = torch.Generator("cpu").manual_seed(seed)
        return original_randn(shape, generator=values).to(self.device, self.dtype)

    def _arguments(self, prefix: str) -> dict[str, Any]:
        dot = f"{prefix}."
        return {name.removeprefix(dot): value for name, value in self.choices.items() if name.startswith(dot)}


class ImageModel:
    """The analytic network of `conformance.network`, whatever the scheduler calls a time or a prediction."""

    PREDICTIONS = ("epsilon", "sample", "v_prediction", "previous_sample")

    def __init__(self, run: Run, scheduler: Any) -> None:
        self.run = run
        config = getattr(scheduler, "config", {})
        kind = config.get("prediction_type", "v_prediction" if hasattr(scheduler, "scale_noise") else "epsilon")
        variance = config.get("variance_type")
        self.scheduler = scheduler
        self.training_steps = int(config.get("num_train_timesteps", 1000))
        self.network = AnalyticNetwork(
            self.training_steps,
            prediction=kind if kind in self.PREDICTIONS else "v_prediction",
            variance=variance if variance in ("learned", "learned_range") else None,
        )
        times = [abs(float(t)) for t in scheduler.timesteps] if _lists_times(scheduler) else [1000.0]
        self.continuous = max(times, default=0.0) <= 20  # log σ/4, or an angle
        self.widening = int(config.get("n_grid", 1))
        self.masked = (
            "emit_mask" in inspect.signature(scheduler.step).parameters if hasattr(scheduler, "step") else False
        )

    def __call__(self, sample: torch.Tensor, t: Any) -> torch.Tensor:
        to_network = getattr(self.scheduler, "network_timestep", None)
        time = float(t if to_network is None else to_network(t))
        if self.continuous:
            time = self.training_steps * (0.5 + 0.3 * math.tanh(time))
        shaped = sample[..., None] if sample.ndim == 3 else sample
        output = self.network(shaped, max(time, -1.0))
        return (output[..., 0] if sample.ndim == 3 else output).repeat_interleave(self.widening, dim=1)

    def initial(self, scheduler: Any) -> torch.Tensor:
        sigma = getattr(scheduler, "init_noise_sigma", 1.0)
        shape = (1, 4, 3) if self.masked else SHAPE
        return self.run.numbers(SEED, shape) * float(sigma)

    def extra(self, scheduler: Any, accepted: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Arguments of `step` that only some classes take."""
        mask = (torch.arange(4) % 3 > 0).reshape(1, 1, 2, 2)
        values = {
            "original_image": 0.4 * self.run.numbers(3),
            "mask": mask.expand(SHAPE[0], 1, 2, 2).to(self.run.device, self.run.dtype),
            "emit_mask": (torch.arange(4) % 3 > 0).reshape(1, 4),
            "cur_sampling_step": index,
            "dmd_noisy_tensor": self.run.numbers(4),
            "dmd_sigmas": getattr(scheduler, "sigmas", None),
            "dmd_timesteps": scheduler.timesteps,
            "all_timesteps": scheduler.timesteps,
        }
        return {name: value for name, value in values.items() if name in accepted}


class NoiseStream:
    """Normal numbers drawn in float32 and then widened, in the place of `torch.randn`, so that runs in different
    precisions see the same noise; and a log of who asked for how many.

    log: per draw, the evaluation, the number of elements, and 1 if the generator was the one that was handed in.
    """

    def __init__(self) -> None:
        self.log: list[int] = []
        self.evaluation = -1
        self._values = torch.Generator("cpu").manual_seed(SEED + 1)

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype | None) -> torch.Tensor:
        return original_randn(tuple(shape), generator=self._values).to(dtype or torch.float32)

    @contextmanager
    def instead_of_randn(self, handed: torch.Generator) -> Iterator[None]:
        def randn(*sizes: Any, size: Any = None, generator: Any = None, dtype: Any = None, device: Any = None, **_: Any
                  ) -> torch.Tensor:  # fmt: skip
            shape = (
                size if size is not None else sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
            )
            own = isinstance(generator, (list, tuple)) or generator is handed
            self.log += [self.evaluation, math.prod(shape), int(own)]
            return self.draw(shape, dtype).to(device or "cpu")

        def randn_like(like: torch.Tensor, dtype: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
            return randn(size=like.shape, dtype=dtype or like.dtype, device=device or like.device)

        with mock.patch.object(torch, "randn", randn), mock.patch.object(torch, "randn_like", randn_like):
            yield


original_randn = torch.randn


def _lists_times(scheduler: Any) -> bool:
    """Whether the times are known before the run; an adaptive sampler chooses them as it goes."""
    return hasattr(scheduler.timesteps, "__len__")


def decoded(name: str, value: Any, choices: Choices) -> Any:
    """The value of a constructor's option; tables are named in choices and made here."""
    if name == "trained_betas" and value == "quadratic":
        count = choices.get("config.num_train_timesteps", 1000)
        return [0.0002 + 0.015 * (i / (count - 1)) ** 2 for i in range(count)]
    return value


def _as_tensor(value: Any) -> torch.Tensor | None:
    """Numbers as a CPU tensor; None for anything else."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu")
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.copy())
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if numbers and all(isinstance(number, (int, float)) for number in numbers):
        return torch.tensor(value, dtype=torch.float64)
    return None
