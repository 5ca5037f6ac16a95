"""What samplers over noise levels share: x = x_0 + sigma · n (EDM, arXiv 2206.00364, section 2), driven by a network of
the variance-preserving chain, for which x is scaled by c_in = 1/sqrt(sigma² + 1).

    code        meaning
    sigmas      sigma_0 > ... > sigma_n, the levels of the grid
    sigma       the level that the network sees in one evaluation
    denoised    D(x; sigma) = c_skip x + c_out F(c_in x; t(sigma)), the prediction of x_0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.random import Generators
from diffusers_ref.schedulers import sigmas as grids
from diffusers_ref.schedulers import timesteps as spacings
from diffusers_ref.schedulers.betas import NoiseTable, make_betas
from diffusers_ref.schedulers.conventions import (
    BetaSchedule,
    Coefficients,
    PredictionType,
    SigmaSchedule,
    TimestepSpacing,
    choose,
)
from diffusers_ref.schedulers.scheduler import SchedulerMixin, Time, by_step
from diffusers_ref.schedulers.sigma_options import (
    CROWSONKB_GRIDS,
    PUBLISHED_RULES,
    chosen_schedule,
    count_of,
    explicit_levels,
    explicit_times,
    published_rule,
)

SIGMA_CONVENTIONS = frozenset({"coefficients", "sigma_schedule", "sigma_options", "quantize"})
"""The options of conventions that every sampler over noise levels has."""


class Evaluation(NamedTuple):
    """One evaluation of the network, as a sampler plans it.

    sigma: () the level that the network sees.
    step: a NamedTuple of what the sampler does with the output, as numbers or () tensors.
    level: the entry of `sigmas` whose time is the entry of `timesteps`; None if that is the time of `sigma`.
    begins: whether sampling can begin here.
    """

    sigma: Tensor
    step: Any
    level: int | None = None
    begins: bool = True


class At(NamedTuple):
    """The numbers of one evaluation, for arithmetic in one dtype, so that no device waits for them."""

    sigma: float
    c_in: float
    c_skip: float
    c_out: float
    step: Any


class SigmaScheduler(SchedulerMixin):
    """A sampler over noise levels. A class says in `_evaluations` which evaluations its steps consist of.

    Options that every such class has:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the chain, see `BetaSchedule`.
        prediction_type: "epsilon", "v_prediction" or "sample", what the network returns.
        coefficients: see `Coefficients`; the table of sigma is made from abar rounded to float32. By default "compvis"
            for scaled_linear, "float64" for squaredcos_cap_v2, "float32_cumprod" for the rest.
        sigma_schedule: None follows the published options; else a grid of crowsonkb's, see `SigmaSchedule`, and the
            network is given crowsonkb's time, linear in log sigma, in float32, for every level, also for inner ones.
        sigma_options: arguments of that grid: sigma_min, sigma_max (by default those of the table) and rho for "karras"
            and "polyexponential" (by default 7 and 1), sigma_min and sigma_max for "exponential", beta_d, beta_min and
            eps_s for "vp" (by default 19.9, 0.1 and 0.001).
        quantize: the network is given the nearest training timestep (crowsonkb); with sigma_schedule only.
    Published options, with the meaning that HF diffusers gives them, where the class has them:
        timestep_spacing, steps_offset: the grid of times, see `TimestepSpacing`; "linspace" visits fractions. sigma is
            linear between whole times. "leading" also makes the first level sqrt(sigma_0² + 1), see `init_noise_sigma`.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: levels between the first and the last of that grid.
        sigma_min, sigma_max: end points for these three.
        interpolation_type: "linear", or "log_linear": levels evenly in log sigma over the whole table.
        timestep_type: "discrete", or "continuous" (v_prediction only): the network is given log(sigma)/4.
        final_sigmas_type: the level after the last time is "zero", or "sigma_min", that of the table.
        rescale_betas_zero_snr: rescale the betas so that abar_T = 0, of which 2^-24 is left.
    """

    sigmas: Tensor
    """(n + 1,) float32 on the CPU, the levels of the grid and the one where sampling ends."""

    _rounds_karras_times: ClassVar[bool] = False
    """Whether the times of `use_karras_sigmas` are rounded to whole ones, as published classes of second order do."""

    # --- construction ------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Build the tables that `self.config` describes; called once, by the constructors."""
        config = self.config
        # Early published configurations of Euler's method say "original_sample".
        prediction = "sample" if config.prediction_type == "original_sample" else config.prediction_type
        self._prediction = choose(PredictionType, "prediction_type", prediction, allowed=_PREDICTION_TYPES)
        self._schedule = self._choose_schedule()
        self._spacing = choose(
            TimestepSpacing, "timestep_spacing", config.get("timestep_spacing", "linspace"), allowed=_PUBLISHED_SPACINGS
        )
        schedule = choose(BetaSchedule, "beta_schedule", config.beta_schedule)
        coefficients = _DEFAULT_COEFFICIENTS.get(schedule, Coefficients.FLOAT32_CUMPROD)
        if config.coefficients is not None:
            coefficients = choose(Coefficients, "coefficients", config.coefficients)
        zero_snr = config.get("rescale_betas_zero_snr", False)
        betas = make_betas(
            schedule,
            config.beta_start,
            config.beta_end,
            config.num_train_timesteps,
            trained_betas=config.trained_betas,
            rescale_zero_snr=zero_snr,
            coefficients=coefficients,
        )
        if len(betas) < 2:
            raise ConfigError("num_train_timesteps=1 is not allowed: levels are interpolated, which takes at least 2")
        table = NoiseTable.from_betas(betas, coefficients)
        self.betas, self.alphas_cumprod = table.betas, table.alphas_cumprod.clone()
        if zero_snr:
            self.alphas_cumprod[-1] = 2**-24
        self._sigma_table = grids.sigma_table(self.alphas_cumprod)
        if not self._sigma_table.isfinite().all():
            raise ConfigError("the betas leave nothing of x_0 at the last timestep: sigma is infinite there")
        self._log_sigma_table = self._sigma_table.log()

        self._plan: list[Evaluation] = []
        self.sigmas = torch.cat([self._sigma_table.flip(0), torch.zeros(1)])
        self.timesteps = torch.arange(len(betas) - 1, -1, -1, dtype=torch.float32)
        self.init_noise_sigma = self._first_level()

    def __len__(self) -> int:
        """T, the number of training timesteps."""
        return len(self._sigma_table)

    def _choose_schedule(self) -> SigmaSchedule | None:
        """The grid of crowsonkb's that the options choose, if any; a sampler with a grid of its own overrides it."""
        return chosen_schedule(self.config, self.config_keys())

    def _first_level(self) -> float:
        """The standard deviation of x_T: sigma_0; with the published spacing "leading" sqrt(sigma_0² + 1)."""
        largest = self.sigmas.max()
        if self._schedule is None and self._spacing is TimestepSpacing.LEADING:
            largest = (largest**2 + 1) ** 0.5
        return largest.item()

    # --- the grid ----------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Choose the grid and begin anew, as if the scheduler had just been made.

        Exactly one of these says which levels are visited:
        num_inference_steps: how many, at least 1, by the rule of the options.
        timesteps: (n,) times in [0, T-1] that do not ascend; for rules that space levels in time only.
        sigmas: (n + 1,) the levels themselves, which do not ascend; the last one, at least 0, is where sampling ends.

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        requests = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
        given = [name for name, value in requests.items() if value is not None]
        if len(given) != 1:
            what = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of num_inference_steps, timesteps and sigmas; given: {what}")
        if sigmas is not None:
            levels, times = explicit_levels(sigmas), None
        elif timesteps is not None:
            levels, times = self._levels_at(explicit_times(timesteps, len(self)))
        else:
            assert num_inference_steps is not None
            levels, times = self._levels_by_rule(count_of(num_inference_steps))
        self._adopt_levels(levels, times, device)

    def _levels_by_rule(self, count: int) -> tuple[Tensor, list[float] | None]:
        """(n + 1,) levels, and the n times that belong to them where the levels were made from these."""
        if self._schedule is not None:
            return self._crowsonkb_levels(self._schedule, count), None
        times = self._spaced_times(count)
        rule = published_rule(self.config)
        if rule is None:
            return self._levels_at(times)
        table = self._sigma_table.numpy()
        if rule == "log_linear":
            high, low = table[-1].item(), table[0].item()
        else:
            ends = grids.published_level_at_time(table, times)
            low, high = self.config.get("sigma_min"), self.config.get("sigma_max")
            low, high = ends[-1].item() if low is None else low, ends[0].item() if high is None else high
        levels = PUBLISHED_RULES[rule](count, low, high)
        found = grids.published_time_at_level(table, levels)
        if rule == "use_karras_sigmas" and self._rounds_karras_times:
            found = found.round()
        return self._with_final(levels), found.astype(np.float32).tolist()

    def _crowsonkb_levels(self, schedule: SigmaSchedule, count: int) -> Tensor:
        options = dict(self.config.sigma_options or {})
        if schedule is SigmaSchedule.DISCRETE:
            return grids.discrete(self._sigma_table, count)
        if schedule is SigmaSchedule.VP:
            return grids.vp(count, **options)
        ends = {"sigma_min": self._sigma_table[0].item(), "sigma_max": self._sigma_table[-1].item()}
        return CROWSONKB_GRIDS[schedule](count, **(ends | options))

    def _spaced_times(self, count: int) -> np.ndarray:
        """(n,) float32, the published times, descending."""
        total = len(self)
        if self._spacing is TimestepSpacing.LINSPACE:
            return np.linspace(0, total - 1, count, dtype=np.float32)[::-1]
        if count > total:
            raise ValueError(f"num_inference_steps={count} is out of range; allowed: 1 to {total}")
        if self._spacing is TimestepSpacing.TRAILING:
            return np.array(spacings.trailing(total, count)[::-1], dtype=np.float32)
        offset = self.config.steps_offset
        times = np.array(spacings.leading(total, count)[::-1], dtype=np.float32) + offset
        if times[-1] < 0 or times[0] > total - 1:
            raise ValueError(
                f"{count} steps spaced 'leading' with steps_offset={offset} visit {times[-1]:g} to {times[0]:g}; "
                f"allowed: 0 to {total - 1}; take fewer steps or another offset"
            )
        return times

    def _levels_at(self, times: np.ndarray) -> tuple[Tensor, list[float]]:
        """The levels at given times: of the published rules linear in sigma, of crowsonkb's in log sigma."""
        if self._schedule is SigmaSchedule.DISCRETE:
            levels = grids.level_at_time(self._log_sigma_table, torch.tensor(times))
            return torch.cat([levels, torch.zeros(1)]), times.tolist()
        rule = published_rule(self.config) if self._schedule is None else f"sigma_schedule={self._schedule.value!r}"
        if rule is not None:
            raise ValueError(f"timesteps are not allowed where {rule} spaces the levels; give sigmas instead")
        return self._with_final(grids.published_level_at_time(self._sigma_table.numpy(), times)), times.tolist()

    def _with_final(self, levels: np.ndarray) -> Tensor:
        """The levels, in float32, and the one where sampling ends."""
        zero = self.config.get("final_sigmas_type", "zero") == "zero"
        return torch.cat([torch.tensor(levels).float(), torch.zeros(1) if zero else self._sigma_table[:1]])

    def _adopt_levels(self, levels: Tensor, times: list[float] | None, device: torch.device | str | None) -> None:
        """Make `levels` (n + 1,) the grid. times: those of the first n, where they are not a function of the level."""
        if not (levels[:-1] > 0).all() or not levels.isfinite().all():
            raise ValueError(f"the options make levels that are not all positive and finite: {levels.tolist()}")
        plan = self._evaluations(levels)
        if times is None or self._continuous:
            times = self._times_of(levels[:-1])
        times = times + (self._times_of(levels[-1:]) if levels[-1] > 0 else [])
        own = self._times_of(torch.stack([item.sigma for item in plan]))
        entries: list[Time] = []
        network_times: list[float] = []
        for item, time in zip(plan, own, strict=True):
            entries.append(time if item.level is None else times[item.level])
            moved = item.level is not None and item.sigma != levels[item.level]
            network_times.append(time if moved or self._schedule is not None else float(entries[-1]))
        self.sigmas = levels
        self._plan = plan
        self._numbers = {torch.float32: self._as_numbers(plan)}
        self.init_noise_sigma = self._first_level()
        self._adopt(entries, len(levels) - 1, device, None if network_times == entries else network_times)

    def _evaluations(self, sigmas: Tensor) -> list[Evaluation]:
        """The evaluations of a run along the levels `sigmas` (n + 1,), in the dtype of the arithmetic."""
        raise NotImplementedError

    def _begins_step(self, index: int) -> bool:
        return self._plan[index].begins

    def _place(self, timestep: Time | Tensor) -> int:
        """The entry that `timestep` is for, by the place in the list, which stays."""
        self._require_timesteps()
        return self._locate(timestep, self._step_index)

    def _pass(self, index: int) -> None:
        """Move the place in the list on from entry `index`, beginning anew if it is not the expected one."""
        if index != self._step_index:
            self._restart()
        self._step_index = index + 1

    # --- the network's time and its preconditioning ------------------------------------------------------------------

    @property
    def _continuous(self) -> bool:
        return self.config.get("timestep_type", "discrete") == "continuous"

    def _times_of(self, levels: Tensor) -> list[float]:
        """What the network is given as time at `levels` (n,) float32: float32 numbers."""
        if self._continuous:
            return (0.25 * levels.log()).tolist()
        if self._schedule is None:
            found = grids.published_time_at_level(self._sigma_table.numpy(), levels.double().numpy())
            return found.astype(np.float32).tolist()
        return grids.time_at_level(self._log_sigma_table, levels, bool(self.config.quantize)).float().tolist()

    def _numbers_for(self, dtype: torch.dtype) -> list[At]:
        """The numbers of every entry of `timesteps`, for arithmetic in `dtype` on the same levels."""
        if dtype not in self._numbers:
            self._numbers[dtype] = self._as_numbers(self._evaluations(self.sigmas.to(dtype)))
        return self._numbers[dtype]

    def _as_numbers(self, plan: list[Evaluation]) -> list[At]:
        sigma = torch.stack([item.sigma for item in plan])
        variance = sigma**2 + 1
        c_in = 1 / variance**0.5
        if self._prediction is PredictionType.V_PREDICTION:
            c_skip, c_out = 1 / variance, -sigma / variance**0.5
        else:
            c_skip, c_out = torch.ones_like(sigma), -sigma
        rows = by_step(sigma, c_in, c_skip, c_out)
        return [
            At(level, scale, skip, out, _plain(item.step))
            for (level, scale, skip, out), item in zip(rows, plan, strict=True)
        ]

    def _denoised(self, output: Tensor, x: Tensor, at: At) -> Tensor:
        """D(x; sigma), eq. 7 of EDM with the scalings of the chain (its table 1, VP)."""
        if self._prediction is PredictionType.EPSILON:
            return x + output * at.c_out
        if self._prediction is PredictionType.V_PREDICTION:
            return output * at.c_out + x * at.c_skip
        return output

    def _noise_if(
        self, draws: bool, sample: Tensor, generator: Generators, variance_noise: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """The draw of a step that makes one; refuses noise for a step that makes none."""
        if draws:
            return self._noise(sample, generator, variance_noise, dtype)
        if variance_noise is not None:
            raise ValueError("variance_noise is not allowed: nothing is drawn after this evaluation")
        return None

    def scale_model_input(self, sample: Tensor, timestep: Time | Tensor | None = None) -> Tensor:
        """The network's input c_in · x, (B, C, ...), at an entry of `timesteps` (by default the next)."""
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        self._require_timesteps()
        try:
            index = (self._step_index or 0) if timestep is None else self._place(timestep)
        except ValueError:  # An evaluation within a step is found out of its turn, too.
            within = None if timestep is None else self._entry(float(timestep))
            if within is None:
                raise
            index = within
        return (sample.to(dtype) * self._numbers_for(dtype)[index].c_in).to(sample.dtype)

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Time | Tensor) -> Tensor:
        """Draw x = x_0 + sigma · noise.

        original_samples, noise: (B, ...). timesteps: entries of `timesteps`, or training timesteps, () or (B,).
        Returns (B, ...).
        """
        sigma, dtype = self._levels_for(original_samples, noise, timesteps)
        return (original_samples.to(dtype) + noise.to(dtype) * sigma).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Time | Tensor) -> Tensor:
        """v = (noise - sigma · x_0) / sqrt(sigma² + 1) (arXiv 2202.00512); shapes as in `add_noise`."""
        sigma, dtype = self._levels_for(sample, noise, timesteps)
        return ((noise.to(dtype) - sigma * sample.to(dtype)) / (sigma**2 + 1) ** 0.5).to(sample.dtype)

    def _levels_for(self, x0: Tensor, noise: Tensor, timesteps: Time | Tensor) -> tuple[Tensor, torch.dtype]:
        """sigma at each of `timesteps`, shaped to broadcast over `x0`, in the dtype of the arithmetic."""
        dtype = self._check(noise, x0)
        times = torch.as_tensor(timesteps).cpu()
        if times.is_complex() or times.dtype == torch.bool:
            raise ValueError(f"timesteps must be numbers, not {times.dtype}")
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(x0))):
            raise ValueError(f"timesteps has the shape {tuple(times.shape)}; allowed: () or ({len(x0)},)")
        levels = torch.stack([self._level_for(time) for time in times.reshape(-1).tolist()])
        return levels.to(x0.device, dtype).view(-1, *[1] * (x0.ndim - 1)), dtype

    def _level_for(self, time: Time) -> Tensor:
        """The level at an entry of `timesteps`, or else at a training timestep."""
        index = self._entry(time)
        if index is not None:
            item = self._plan[index]
            return item.sigma if item.level is None else self.sigmas[item.level]
        if not (0 <= time < len(self) and float(time).is_integer()):
            raise ValueError(
                f"timestep {time} is neither an entry of timesteps nor a whole number from 0 to {len(self) - 1}"
            )
        return self._sigma_table[int(time)]

    def _entry(self, time: Time) -> int | None:
        """The entry of `timesteps` that is meant by a time: the expected one, else the first that begins a step, else
        the first."""
        entries = [index for index, entry in enumerate(self._times) if entry == time] if self._plan else []
        if self._plan and self._step_index in entries:
            return self._step_index
        begins = [index for index in entries if self._plan[index].begins]
        return next(iter(begins or entries), None)


def _plain(step: Any) -> Any:
    """A NamedTuple with its () tensors as numbers."""
    return type(step)(*(value.item() if isinstance(value, Tensor) else value for value in step))


_DEFAULT_COEFFICIENTS = {
    BetaSchedule.SCALED_LINEAR: Coefficients.COMPVIS,
    BetaSchedule.SQUAREDCOS_CAP_V2: Coefficients.FLOAT64,
    BetaSchedule.EXP: Coefficients.FLOAT64,
}
_PREDICTION_TYPES = (PredictionType.EPSILON, PredictionType.V_PREDICTION, PredictionType.SAMPLE)
_PUBLISHED_SPACINGS = (TimestepSpacing.LINSPACE, TimestepSpacing.LEADING, TimestepSpacing.TRAILING)
