"""What all schedulers share: files, the list of evaluations and the place in it, checks of input, noise."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigMixin
from diffusers_ref.outputs import BaseOutput
from diffusers_ref.random import Generators, randn

Self = TypeVar("Self", bound="SchedulerMixin")
Time = int | float
"""A time of the forward process: a training timestep, a fraction between two of them, or another measure of noise."""


@dataclass(eq=False)
class SchedulerOutput(BaseOutput):
    """What `step` returns.

    prev_sample: (B, C, ...) the next input of the network; after the last evaluation, the result.
    pred_original_sample: (B, C, ...) this step's prediction of x_0, after clipping; None where the original has none.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SchedulerMixin(ConfigMixin):
    """A sampler, driven one evaluation of the network at a time.

    Use: `set_timesteps`; x = randn · `init_noise_sigma`; then for every t of `timesteps`:

        x = add_noise_to_input(x, t, generator)      (only of samplers that have this method: churn)
        output = network(scale_model_input(x, t), network_timestep(t))
        x = step(output, t, x, generator=generator).prev_sample

    What follows t is the next entry of the scheduler's own list, whatever rule or user made it.
    """

    config_name = "scheduler_config.json"

    order: int = 1
    """Entries of `timesteps` per entry of the grid; kept at 1 as in published pipelines, also where it varies."""

    init_noise_sigma: float = 1.0
    """Standard deviation of x_T."""

    timesteps: Tensor
    """(N,) one entry for every evaluation of the network, in order: int64 if all are whole; else float32, or float64
    where float32 would round an entry."""

    num_inference_steps: int | None = None
    """Entries of the grid; None before `set_timesteps`."""

    _times: list[Time]
    _network_times: Tensor | None = None

    # --- construction and files --------------------------------------------------------------------------------------

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

    # --- the list of timesteps and the place in it -------------------------------------------------------------------

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """Choose the grid and begin anew, as if the scheduler had just been made; classes take other requests, too."""
        raise NotImplementedError

    def _adopt(
        self,
        times: Sequence[Time],
        num_inference_steps: int,
        device: torch.device | str | None,
        network_times: Sequence[float] | None = None,
    ) -> None:
        """Make `times` the list of evaluations, with the place before its first entry and no history.

        network_times: what the network is given at every entry, where that is not the entry itself.
        """
        self._times = list(times)
        self._network_times = None if network_times is None else _times_tensor(network_times, device)
        self.timesteps = _times_tensor(self._times, device)
        self.num_inference_steps = num_inference_steps
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._restart()

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
        """The network's input for `sample`: the sample itself, unless a class scales it."""
        return sample

    def network_timestep(self, timestep: Time | Tensor) -> Time | Tensor:
        """What the network is given as time at the entry `timestep` of `timesteps`, which is the entry or a () tensor.

        Where entries are equal, the place in the list decides, as for `step`.
        """
        if self._network_times is None:
            return timestep
        return self._network_times[self._locate(timestep, self._step_index)]

    @property
    def network_timesteps(self) -> list[float]:
        """What the network is given as time at every entry of `timesteps`."""
        if self._network_times is not None:
            return self._network_times.tolist()
        return [float(self.network_timestep(time)) for time in self._times]

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


def _times_tensor(times: Sequence[Time], device: torch.device | str | None) -> Tensor:
    """(N,) in the smallest dtype of int64, float32 and float64 that holds every time as it is."""
    if all(isinstance(time, int) for time in times):
        return torch.tensor(times, dtype=torch.int64, device=device)
    exact = torch.tensor(times, dtype=torch.float64)
    rounded = exact.float()
    return (rounded if torch.equal(rounded.double(), exact) else exact).to(device)


def by_step(*columns: Tensor) -> Iterator[tuple[Any, ...]]:
    """Columns (n,) of coefficients as n rows of numbers: exact, and no device has to wait for them."""
    return zip(*(column.tolist() for column in columns), strict=True)


def _abridged(values: list[Any], most: int = 8) -> str:
    """A list for a message, cut in the middle."""
    if len(values) <= most:
        return ", ".join(map(str, values))
    return ", ".join([*map(str, values[: most - 2]), "...", *map(str, values[-1:])])


_FOLDER_OPTIONS = ("revision", "cache_dir", "local_files_only", "token")
