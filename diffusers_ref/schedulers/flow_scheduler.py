"""Flow matching along straight paths (arXiv 2210.02747, 2209.03003): what its samplers share.

    code          symbol
    sigma         σ in [0, 1], the share of noise: 1 is noise, 0 is data
    sample        x_σ = (1 − σ) x_0 + σ n                      Stable Diffusion 3 (arXiv 2403.03206), eq. 13
    model_output  v_θ(x_σ, σ), the velocity dx/dσ = n − x_0
    shift         α of σ' = α σ / (1 + (α − 1) σ)              eq. 23
    mu            μ of σ' = e^μ / (e^μ + 1/σ − 1), the same map with α = e^μ (Flux)

Levels are float32, as in all originals; arithmetic on them is in the dtype of the sample. The published grid is made in
NumPy float64 (float32 where `sigmas` are given) and rounded once; those of the originals in torch, float32 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.requests import levels_at, listed, positive, whole
from diffusers_ref.schedulers.scheduler import SchedulerMixin
from diffusers_ref.schedulers.sigmas import published_beta, published_exponential, published_karras


class FlowGrid(str, Enum):
    """Which levels a number of steps visits."""

    PUBLISHED = "published"
    """Published: evenly from the first to the last level of training, then shifted. A static shift is in these levels
    already, and so acts twice on the last one, as in sd3.5."""
    SHIFTED_ONCE = "shifted_once"
    """No original's: evenly from 1 to 1/T, then shifted, so that T steps visit the levels of training."""
    SD35 = "sd3.5"
    """Stability-AI/sd3.5: the published grid, made in float32."""
    FLUX = "flux"
    """black-forest-labs/flux: evenly from 1 to 1/n, shifted by μ, or not at all (schnell: a shift of 1); float32."""


class TimeShift(str, Enum):
    """How μ shifts a level."""

    EXPONENTIAL = "exponential"
    """Published, flux: α = e^μ."""
    LINEAR = "linear"
    """Published: α = μ."""


class NetworkTime(str, Enum):
    """What the network is given as time."""

    TIMESTEP = "timestep"
    """Published, sd3.5: T·σ, the entry of `timesteps`."""
    SIGMA = "sigma"
    """flux: σ itself."""


class TimeDtype(str, Enum):
    """The dtype of the original's latents, in which σ reaches its network."""

    FLOAT32 = "float32"
    """Published, and the originals with float32 latents."""
    FLOAT16 = "float16"
    """sd3.5 as its script runs it: σ, and T·σ again, rounded to float16."""
    BFLOAT16 = "bfloat16"
    """flux as its scripts run it: σ rounded to bfloat16."""


class FlowScheduler(SchedulerMixin):
    """A sampler along straight paths from noise to data. Its classes share the options of the levels.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T; entries of `timesteps` are T·σ.
        shift: α, the static shift; without effect where μ shifts.
        use_dynamic_shifting, time_shift_type: shift by μ, which `set_timesteps` is given; see `TimeShift`.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: the line on which μ lies, see `mu_of`.
        invert_sigmas: levels, and so times, count the share of data instead: from 0 to 1, and so does the velocity.
        shift_terminal: stretch the shifted levels so that the last one is this, in (0, 1); None or 0 does not.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: other levels between the first and the last.
    Conventions of originals:
        flow_grid: see `FlowGrid`. With every grid, levels are shifted, stretched and converted as other options say.
        network_time: see `NetworkTime`.
        time_dtype: see `TimeDtype`.
    """

    sigmas: Tensor
    """(n + 1,) float32 on the CPU: the levels of the grid, and the one where the last step ends. Before
    `set_timesteps`: the (T,) levels of training."""

    # --- construction ------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Check `self.config` and list the levels of training; called once, by the constructors."""
        config = self.config
        count = whole("num_train_timesteps", config.num_train_timesteps, least=1)
        terminal = config.shift_terminal
        if terminal is not None and not 0 <= terminal < 1:
            raise ConfigError(f"shift_terminal={terminal} is not allowed; allowed: None, or from 0 to below 1")
        self._grid = choose(FlowGrid, "flow_grid", config.flow_grid)
        self._time_shift = choose(TimeShift, "time_shift_type", config.time_shift_type)
        self._network_time = choose(NetworkTime, "network_time", config.network_time)
        self._time_dtype = getattr(torch, choose(TimeDtype, "time_dtype", config.time_dtype).value)
        if sum(bool(config[name]) for name in _CONVERSIONS) > 1:
            raise ConfigError(f"{', '.join(_CONVERSIONS)} exclude each other; set one of them")
        self.set_shift(config.shift)

        unshifted = torch.arange(count, 0, -1, dtype=torch.float32) / count
        self.sigmas = unshifted if config.use_dynamic_shifting else self._statically_shifted(unshifted)
        self._ends = (unshifted if self._grid is FlowGrid.SHIFTED_ONCE else self.sigmas)[[0, -1]]
        self.timesteps = self.sigmas * count
        self._levels = self._noise_levels(self.sigmas)

    def __len__(self) -> int:
        """T, the number of training timesteps."""
        return self.config.num_train_timesteps

    @property
    def _inverted(self) -> bool:
        return bool(self.config.get("invert_sigmas"))

    @property
    def shift(self) -> float:
        """α of the static shift, which the next `set_timesteps` uses."""
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Choose another static shift than the option `shift`, above 0, for the next `set_timesteps`."""
        self._shift = positive("shift", shift)

    # --- the levels --------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
        image_seq_len: int | None = None,
        strength: float = 1.0,
    ) -> None:
        """Choose the levels and begin anew, as if the scheduler had just been made.

        num_inference_steps: n, at least 1; may be left out where a list says it.
        sigmas: the n levels before they are shifted, in (0, 1], not ascending.
        timesteps: the n times that are visited; with no `sigmas`, the levels are σ = t/T as they are, not shifted.
        mu, image_seq_len: μ of dynamic shifting, or the number of image tokens from which it follows, see `mu_of`;
            without effect where `use_dynamic_shifting` is off, as published pipelines always hand it over.
        strength: in (0, 1]: visit the levels from int(n · (1 − strength)) on, for image-to-image (sd3.5, flux).
        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        count = self._count(num_inference_steps, sigmas, timesteps)
        if self.config.use_dynamic_shifting and mu is None:
            if image_seq_len is None:
                raise ValueError("use_dynamic_shifting needs mu or image_seq_len: give set_timesteps one of them")
            mu = self.mu_of(image_seq_len)
        begin = int(count * (1 - strength))
        if not 0 < strength <= 1 or begin == count:
            raise ValueError(f"strength={strength} leaves none of {count} steps; allowed: above 0, at most 1")

        given = None if timesteps is None else _numbers("timesteps", timesteps).astype(np.float32)
        if given is not None and sigmas is None:
            levels = torch.from_numpy(given / len(self))
            self._require_levels(self._noise_levels(levels))
        else:
            levels = self._noise_levels(self._make_levels(count, sigmas, mu))
        end = 1.0 if self._inverted else 0.0
        times = levels * len(self) if given is None else torch.from_numpy(given)

        times, levels = times[begin:], levels[begin:]
        self.sigmas = torch.cat([levels, torch.tensor([end])])
        self._coefficient_cache: dict[torch.dtype, list[Any]] = {}
        times, levels = self._at_evaluations(times), self._at_evaluations(levels)
        self._levels = self._noise_levels(levels)
        self._adopt(times.tolist(), count - begin, device, self._times_of_network(levels))

    def mu_of(self, image_seq_len: int) -> float:
        """μ for a number of image tokens: on the line from (base_image_seq_len, base_shift) to (max_…, max_shift)."""
        config = self.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return slope * image_seq_len + (config.base_shift - slope * config.base_image_seq_len)

    def _count(
        self, num_inference_steps: int | None, sigmas: Sequence[float] | None, timesteps: Sequence[float] | None
    ) -> int:
        lengths = (len(values) for values in (sigmas, timesteps) if values is not None)
        counts = {num_inference_steps, *lengths} - {None}
        if len(counts) != 1:
            what = ", ".join(map(str, counts)) or "none"
            raise ValueError(f"give num_inference_steps, sigmas or timesteps, if several, of one length; given: {what}")
        return whole("num_inference_steps", counts.pop(), least=1)

    def _require_levels(self, levels: Tensor) -> None:
        if not ((levels > 0) & (levels <= 1)).all() or (levels.diff() > 0).any():
            shown = ", ".join(f"{level:g}" for level in levels.tolist()[:8])
            raise ValueError(
                f"the shares of noise that are visited must be above 0, at most 1, and not ascend; they are {shown}"
            )

    def _noise_levels(self, sigmas: Tensor) -> Tensor:
        """The share of noise at levels as this scheduler counts them, or such levels where the noise has a share."""
        return 1.0 - sigmas if self._inverted else sigmas

    def _make_levels(self, count: int, sigmas: Sequence[float] | None, mu: float | None) -> Tensor:
        """(n,) float32 shares of noise, shifted."""
        if sigmas is None:
            exact = self._evenly(count)
        else:
            exact = _numbers("sigmas", sigmas).astype(np.float32)
            self._require_levels(torch.from_numpy(exact))
        if self.config.use_dynamic_shifting:
            exact = self._dynamically_shifted(exact, mu)
        else:
            exact = self._statically_shifted(exact)
        exact = self._stretched(np.asarray(exact))
        for name, convert in _CONVERSIONS.items():
            if self.config[name]:
                exact = convert(count, float(exact[-1]), float(exact[0]))
        return torch.from_numpy(exact.astype(np.float32))

    def _evenly(self, count: int) -> Any:
        """(n,) the levels of the grid before they are shifted, with the operations of `FlowGrid`."""
        if self._grid is FlowGrid.FLUX:
            return torch.linspace(1, 0, count + 1)[:-1]
        if self._grid is FlowGrid.SD35:
            first, last = (self._ends * len(self)).tolist()
            return torch.linspace(first, last, count) / len(self)
        first, last = self._ends.tolist()
        return np.linspace(first * len(self), last * len(self), count) / len(self)

    def _statically_shifted(self, levels: Any) -> Any:
        return self._shift * levels / (1 + (self._shift - 1) * levels)

    def _dynamically_shifted(self, levels: Any, mu: float | None) -> Any:
        if mu is None or (self._time_shift is TimeShift.LINEAR and not mu > 0):
            raise ValueError(f"mu={mu} is not allowed; time_shift_type={self._time_shift.value!r} needs it above 0")
        alpha = math.exp(mu) if self._time_shift is TimeShift.EXPONENTIAL else mu
        return alpha / (alpha + (1 / levels - 1))

    def _stretched(self, levels: np.ndarray) -> np.ndarray:
        """Stretched so that the last level is `shift_terminal`; a first level of pure noise stays."""
        terminal = self.config.shift_terminal
        if not terminal or levels[-1] == 1:
            return levels
        signal = 1 - levels
        return 1 - signal / (signal[-1] / (1 - terminal))

    def _at_evaluations(self, values: Tensor) -> Tensor:
        """Values at the levels of the grid (n,) at every evaluation of the network (N,)."""
        return values

    def _times_of_network(self, levels: Tensor) -> list[float] | None:
        if self._network_time is NetworkTime.SIGMA:
            return levels.to(self._time_dtype).tolist()
        if self._time_dtype is torch.float32:
            return None
        return (levels.to(self._time_dtype) * len(self)).tolist()

    def _coefficients(self, dtype: torch.dtype) -> list[Any]:
        """The coefficients of every entry of `timesteps`, for arithmetic in `dtype`."""
        self._require_timesteps()
        if dtype not in self._coefficient_cache:
            self._coefficient_cache[dtype] = self._make_coefficients(self.sigmas.to(dtype))
        return self._coefficient_cache[dtype]

    def _make_coefficients(self, sigmas: Tensor) -> list[Any]:
        raise NotImplementedError

    # --- the forward process -----------------------------------------------------------------------------------------

    def scale_noise(self, sample: Tensor, timestep: Tensor | Sequence[float] | float, noise: Tensor) -> Tensor:
        """Draw x_σ = σ · noise + (1 − σ) · x_0.

        sample, noise: (B, ...) x_0 and n. timestep: entries of `timesteps`, () or (B,). Returns (B, ...).
        """
        dtype = self._check(noise, sample)
        sigma = levels_at(timestep, self.timesteps.tolist(), self._levels.tolist(), sample, dtype)
        return (sigma * noise + (1.0 - sigma) * sample).to(sample.dtype)


def _numbers(name: str, values: Any) -> np.ndarray:
    """A list, array or tensor (n,) as float64. Raises ValueError."""
    numbers = np.asarray(listed(values), dtype=np.float64)
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be a list of numbers, not {values!r}")
    return numbers


_CONVERSIONS = {
    "use_karras_sigmas": published_karras,
    "use_exponential_sigmas": published_exponential,
    "use_beta_sigmas": published_beta,
}
