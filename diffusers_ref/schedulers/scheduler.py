"""What the schedulers share: files, the list of timesteps and the place in it, checks of input, the forward process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigMixin
from diffusers_ref.outputs import BaseOutput
from diffusers_ref.random import Generators, randn
from diffusers_ref.schedulers.betas import NoiseTable, make_betas
from diffusers_ref.schedulers.conventions import BetaSchedule, Coefficients, TimestepSpacing, choose
from diffusers_ref.schedulers.timesteps import make_grid

Self = TypeVar("Self", bound="SchedulerMixin")
Time = int | float
"""A time that the network is given: a training timestep, or a half-integer between two of them."""


@dataclass(eq=False)
class SchedulerOutput(BaseOutput):
    """What `step` returns.

    prev_sample: (B, C, ...) the next input of the network; after the last evaluation, the result.
    pred_original_sample: (B, C, ...) this step's prediction of x_0, after clipping; None where the original has none.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SchedulerMixin(ConfigMixin):
    """A sampler over a discrete forward process of T training timesteps.

    Use: `set_timesteps`, then `x = step(network(x, network_timestep(t)), t, x).prev_sample` for every t of `timesteps`.
    What follows t is the next entry of the scheduler's own list, whatever rule or user made it.
    """

    config_name = "scheduler_config.json"

    order: ClassVar[int] = 1
    """Entries of `timesteps` per entry of the grid; kept at 1 as in published pipelines, also where it varies."""

    init_noise_sigma: float = 1.0
    """Standard deviation of x_T."""

    timesteps: Tensor
    """(N,) the time of every network evaluation, in order: int64, or float32 where a solver visits half-integers."""

    num_inference_steps: int | None
    """Entries of the grid; None before `set_timesteps`."""

    _table: NoiseTable
    _spacing: TimestepSpacing

    # --- construction and files --------------------------------------------------------------------------------------

    def _prepare(self, default_coefficients: Coefficients) -> None:
        """Build the tables that `self.config` describes; called once, by the constructors."""
        config = self.config
        self._spacing = choose(TimestepSpacing, "timestep_spacing", config.timestep_spacing)
        schedule = choose(BetaSchedule, "beta_schedule", config.beta_schedule)
        coefficients = default_coefficients
        if config.coefficients is not None:
            coefficients = choose(Coefficients, "coefficients", config.coefficients)
        betas = make_betas(
            schedule,
            config.beta_start,
            config.beta_end,
            config.num_train_timesteps,
            trained_betas=config.trained_betas,
            rescale_zero_snr=config.get("rescale_betas_zero_snr", False),
            coefficients=coefficients,
        )
        self._table = NoiseTable.from_betas(betas, coefficients)
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)
        self.num_inference_steps = None

    @classmethod
    def from_pretrained(
        cls: type[Self], name_or_path: str | os.PathLike[str], subfolder: str | None = None, **options: Any
    ) -> Self:
        """Make a scheduler from `scheduler_config.json` of a folder or of a Hub repository.

        options: `revision`, `cache_dir`, `local_files_only` and `token` say where the file is found; every other
        keyword overrides the option of the config with that name.
        """
        from diffusers_ref.loading import resolve_folder

        where = {key: options.pop(key) for key in _FOLDER_OPTIONS if key in options}
        folder = resolve_folder(name_or_path, subfolder=subfolder, allow_patterns=[cls.config_name], **where)
        return cls.from_config(cls.load_config(folder), **options)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `scheduler_config.json` into `folder`."""
        self.save_config(folder)

    def __len__(self) -> int:
        """T, the number of training timesteps."""
        return len(self._table.exact_betas)

    @property
    def betas(self) -> Tensor:
        """(T,) beta_t, on the CPU: float64 for the coefficients "float64", else float32."""
        return self._table.betas

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) abar_t, on the CPU: float64 for the coefficients "float64", else float32."""
        return self._table.alphas_cumprod

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """() the abar that follows the last timestep of the grid: 1, or abar_0 where `set_alpha_to_one` is false."""
        first = self.alphas_cumprod[0]
        return torch.ones_like(first) if self.config.get("set_alpha_to_one", True) else first.clone()

    # --- the list of timesteps and the place in it -------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
        respacing: str | Sequence[int] | None = None,
    ) -> None:
        """Choose the grid and begin anew, as if the scheduler had just been made.

        Exactly one of these says which of the T training timesteps are visited:
        num_inference_steps: how many, 1 to T, by the rule of `timestep_spacing` (some rules visit more than asked).
        timesteps: the grid itself, in descending order.
        respacing: sections of the spacing "improved_diffusion", as "10,15,20", [10, 15, 20] or "ddim25".

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        spacing, offset = self._grid_rule()
        grid = make_grid(
            spacing,
            len(self),
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            respacing=respacing,
            steps_offset=offset,
        )
        times = self._list_evaluations(grid, explicit=timesteps is not None)
        dtype = torch.int64 if all(isinstance(time, int) for time in times) else torch.float32
        self.timesteps = torch.tensor(times, dtype=dtype, device=device)
        self.num_inference_steps = len(grid)
        self._grid, self._times = grid, times
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._coefficient_cache: dict[Any, list[Any]] = {}
        self._restart()
        self._coefficients(torch.float32)

    def _grid_rule(self) -> tuple[TimestepSpacing, int]:
        """The rule of the grid and the offset that is added to it."""
        return self._spacing, self.config.steps_offset

    def _list_evaluations(self, grid: list[int], explicit: bool) -> list[Time]:
        """The time of every evaluation of the network on `grid`; `explicit` if the user gave it."""
        return list(grid)

    def _coefficients(self, dtype: torch.dtype) -> list[Any]:
        """The coefficients of every entry of `timesteps`, for arithmetic in `dtype`."""
        raise NotImplementedError

    def _restart(self) -> None:
        """Forget what earlier steps left; a multistep method overrides it."""

    def _begins_step(self, index: int) -> bool:
        """Whether sampling can begin at entry `index` of `timesteps`; a solver with inner evaluations overrides it."""
        return True

    @property
    def step_index(self) -> int | None:
        """The entry of `timesteps` that the next `step` is expected to be for; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The entry of `timesteps` where sampling begins, if `set_begin_index` chose one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at entry `begin_index` of `timesteps`, with no history, as image-to-image pipelines do."""
        self._require_timesteps()
        if not 0 <= begin_index < len(self._times) or not self._begins_step(begin_index):
            allowed = [index for index in range(len(self._times)) if self._begins_step(index)]
            raise ValueError(f"begin_index={begin_index} does not begin a step; allowed: {_abridged(allowed)}")
        self._begin_index = self._step_index = begin_index
        self._restart()

    def _advance(self, timestep: Time | Tensor) -> int:
        """The entry that `timestep` is for, by the place in the list; moves the place on by one.

        A timestep that is not the expected one begins anew at the first entry that has its value.
        """
        self._require_timesteps()
        expected = self._step_index
        index = self._locate(timestep, expected)
        if index != expected:
            self._restart()
        self._step_index = index + 1
        return index

    def _locate(self, timestep: Time | Tensor, expected: int | None) -> int:
        if isinstance(timestep, Tensor):
            if timestep.numel() != 1:
                raise ValueError(
                    f"step takes one timestep for the whole batch, not a tensor of shape {tuple(timestep.shape)}"
                )
            if timestep.device.type != "cpu":
                index = self._entry_without_sync(timestep)
                if index is not None and (index == expected or self._begins_step(index)):
                    return index
            timestep = timestep.item()
        if expected is not None and expected < len(self._times) and self._times[expected] == timestep:
            return expected
        for index, time in enumerate(self._times):
            if time == timestep and self._begins_step(index):
                return index
        raise ValueError(
            f"timestep {timestep} does not begin a step of this scheduler; its timesteps: {_abridged(self._times)}"
        )

    def _entry_without_sync(self, timestep: Tensor) -> int | None:
        """The entry of which `timestep` is a view, found by address, as reading a device's memory would wait for it."""
        own = self.timesteps
        offset, rest = divmod(timestep.data_ptr() - own.data_ptr(), own.element_size())
        inside = timestep.device == own.device and timestep.dtype == own.dtype and rest == 0 and 0 <= offset < len(own)
        return offset if inside else None

    def _require_timesteps(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError("the scheduler has no timesteps yet: call set_timesteps before step")

    # --- the sampling loop's input -----------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Time | Tensor | None = None) -> Tensor:
        """The network's input for `sample`: the sample itself."""
        return sample

    def network_timestep(self, timestep: Time | Tensor) -> Time | Tensor:
        """What the network is given as time at the entry `timestep` of `timesteps`.

        The entry itself; with the option `rescale_timesteps` (openai), timestep · (1000/T) as a float32 tensor.
        """
        if not self.config.get("rescale_timesteps", False):
            return timestep
        return torch.as_tensor(timestep).float() * (1000.0 / len(self))

    def _check(self, model_output: Tensor, sample: Tensor, channel_factor: int = 1) -> torch.dtype:
        """Raise on input that does not fit; returns the dtype of the arithmetic: the sample's, at least float32."""
        for name, value in (("model_output", model_output), ("sample", sample)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
            if not value.is_floating_point():
                raise ValueError(f"{name} must have a floating dtype, not {value.dtype}")
        wanted = sample.shape
        if channel_factor != 1:
            if sample.ndim < 2:
                raise ValueError(f"sample must be (B, C, ...), not {tuple(wanted)}")
            wanted = torch.Size((wanted[0], channel_factor * wanted[1], *wanted[2:]))
        if model_output.shape != wanted:
            raise ValueError(
                f"model_output has the shape {tuple(model_output.shape)}; allowed for a sample of shape "
                f"{tuple(sample.shape)}: {tuple(wanted)}"
            )
        return torch.float64 if sample.dtype == torch.float64 else torch.float32

    def _noise(
        self, sample: Tensor, generator: Generators, variance_noise: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """The draw of one step: the given one, or a new one from `generator`."""
        if variance_noise is None:
            return randn(sample.shape, generator, sample.device, dtype)
        if generator is not None:
            raise ValueError("give either generator or variance_noise, not both")
        if not isinstance(variance_noise, Tensor) or variance_noise.shape != sample.shape:
            given = tuple(variance_noise.shape) if isinstance(variance_noise, Tensor) else type(variance_noise).__name__
            raise ValueError(
                f"variance_noise must be a tensor of the sample's shape {tuple(sample.shape)}, not {given}"
            )
        return variance_noise.to(sample.device, dtype)

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """Draw x_t: sqrt(abar_t) · x_0 + sqrt(1 - abar_t) · noise.

        original_samples, noise: (B, ...). timesteps: integers in [0, T-1], () or (B,). Returns (B, ...).
        """
        signal, noise_level = self._forward_coefficients(original_samples, noise, timesteps)
        return (signal * original_samples + noise_level * noise).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """v_t = sqrt(abar_t) · noise - sqrt(1 - abar_t) · x_0 (arXiv 2202.00512); shapes as in `add_noise`."""
        signal, noise_level = self._forward_coefficients(sample, noise, timesteps)
        return (signal * noise - noise_level * sample).to(sample.dtype)

    def _forward_coefficients(self, x0: Tensor, noise: Tensor, timesteps: Tensor | int) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to broadcast over `x0`, in the dtype of the arithmetic."""
        dtype = self._check(noise, x0)
        times = torch.as_tensor(timesteps).cpu()
        if times.is_floating_point() or times.is_complex() or times.dtype == torch.bool:
            raise ValueError(f"timesteps must be integers, not {times.dtype}")
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(x0))):
            raise ValueError(f"timesteps has the shape {tuple(times.shape)}; allowed: () or ({len(x0)},)")
        if times.numel() and (times.min() < 0 or times.max() >= len(self)):
            raise ValueError(f"timesteps {times.tolist()} are out of range; allowed: 0 to {len(self) - 1}")
        shape = (-1, *[1] * (x0.ndim - 1))
        signal, noise_level = self._table.forward_coefficients(times.long().reshape(-1), dtype)
        return signal.to(x0.device).view(shape), noise_level.to(x0.device).view(shape)


def by_step(*columns: Tensor) -> Iterator[tuple[float, ...]]:
    """Columns (n,) of coefficients as n rows of numbers: exact, and no device has to wait for them."""
    return zip(*(column.tolist() for column in columns), strict=True)


def _abridged(values: list[Any], most: int = 8) -> str:
    """A list for a message, cut in the middle."""
    if len(values) <= most:
        return ", ".join(map(str, values))
    return ", ".join([*map(str, values[: most - 2]), "...", *map(str, values[-1:])])


_FOLDER_OPTIONS = ("revision", "cache_dir", "local_files_only", "token")
