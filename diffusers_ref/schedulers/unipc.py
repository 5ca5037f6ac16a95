"""UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (arXiv 2302.04867).

    code              paper
    sample            x̃_{t_i}, the prediction, at which the network is evaluated
    output            m(x̃_{t_i}, t_i): ε_θ, or x_θ with `predict_x0`
    corrected         x̃^c_{t_i}, from which the next prediction starts
    prev_sample       x̃_{t_{i+1}}
    order             p of UniP-p and UniC-p

One evaluation serves twice: it corrects the state that it was made at (algorithm 1), and predicts the next one from the
corrected state (algorithm 2). The updates are in `unipc_updates`.

wl-zhao/UniPC is reproduced bit for bit with `log_snr`; where it ends without another evaluation, with
final_sigmas_type="sigma_min"; where it thresholds, with sample_max_value=None. (Its model_wrapper turns outputs of a
network that predicts x_0 or v into ε for batches of one only.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError, register_to_config
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.log_snr import DiscreteLogSnr, Levels, LogSnrKind, SkipType
from diffusers_ref.schedulers.scheduler import SchedulerMixin, SchedulerOutput, Time
from diffusers_ref.schedulers.sigmas import sigma_table
from diffusers_ref.schedulers.solver_grids import SIGMA_GRIDS, SolverGrid, check_grid_options, solver_grid
from diffusers_ref.schedulers.solver_outputs import OutputConversion
from diffusers_ref.schedulers.solver_scheduler import SolverScheduler
from diffusers_ref.schedulers.solver_tables import chain_of, log_snr_of
from diffusers_ref.schedulers.unipc_updates import Start, UniPCVariant, Update, make_update


class _Before(NamedTuple):
    """What the last evaluation left for the correction that the next one makes."""

    update: Update
    start: Start


class UniPCMultistepScheduler(SolverScheduler):
    """Multistep prediction and correction, one evaluation a step.

    Published options, with the meaning and default that HF diffusers gives them:
        num_train_timesteps: T.
        beta_start, beta_end, beta_schedule, trained_betas: the forward variances, see `BetaSchedule`.
        solver_order: p, at least 1.
        prediction_type: what the network returns, see `solver_outputs.SolverPrediction`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x̂_0, with `predict_x0`; its
            scale is at most `sample_max_value` (None: any).
        predict_x0: x_0 is integrated, else ε.
        solver_type: see `UniPCVariant`; "midpoint", "heun" and "logrho" are "bh2".
        lower_order_final: the order falls to 1 in the last steps.
        disable_corrector: numbers of steps, from 0, whose prediction is not corrected.
        solver_p: another scheduler, on the same grid, that predicts in place of UniP.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: which σ/α are visited, each at the nearest integer
            time; from sigma_max to sigma_min, by default those of the chain.
        use_flow_sigmas: a flow, x_t = (1 − σ)·x_0 + σ·n; with use_karras_sigmas its σ follow from Karras' σ/α. Explicit
            sigmas are shifted, too.
        flow_shift, use_dynamic_shifting, time_shift_type: σ is shifted by flow_shift, or by exp(mu) of `set_timesteps`.
        shift_terminal: σ is stretched so that the last one visited is this.
        timestep_spacing, steps_offset: the grid of times where none of the above chooses levels.
        final_sigmas_type: the run ends at 0 by a step of order 1, or at the first timestep's level (where an option
            chooses levels, at the last of them, so that the last step does not move).
        rescale_betas_zero_snr: rescale the betas so that ᾱ_T is (almost) 0.
    Conventions of originals:
        coefficients: see `Coefficients`; by default the recipe of the original that such weights come from.
        log_snr: wl-zhao: continuous times from T to 1/N and what the network is given there, fractional training
            timesteps; see `LogSnrKind`. Replaces the published grids. final_sigmas_type="zero" is its denoise_to_zero:
            one more evaluation, whose x_0 is the result.
        skip_type: which continuous times are visited, see `SkipType`; by default "time_uniform".
        log_alpha_from: see `AlphaSource`; by default ᾱ for "compvis", else β.
        sample_min_value: the scale of dynamic thresholding is at least this; `thresholding_max_val` of wl-zhao.
        variance_type: "learned" and "learned_range" take outputs of 2C channels and leave the second half unused.

    The order is at most the number of outputs there are, so sampling can begin in the middle; outputs at equal levels
    count once.
    """

    convention_options = frozenset(
        {"coefficients", "log_snr", "skip_type", "log_alpha_from", "sample_min_value", "variance_type"}
    )

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float | None = 1.0,
        predict_x0: bool = True,
        solver_type: str = "bh2",
        lower_order_final: bool = True,
        disable_corrector: Sequence[int] = (),
        solver_p: SchedulerMixin | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        shift_terminal: float | None = None,
        coefficients: str | None = None,
        log_snr: str | None = None,
        skip_type: str | None = None,
        log_alpha_from: str | None = None,
        sample_min_value: float = 1.0,
        variance_type: str | None = None,
    ) -> None:
        config = self.config
        self._variant = choose(
            UniPCVariant, "solver_type", "bh2" if solver_type in ("midpoint", "heun", "logrho") else solver_type
        )
        if isinstance(solver_order, bool) or not isinstance(solver_order, int) or solver_order < 1:
            raise ConfigError(f"solver_order={solver_order!r} is not allowed; a whole number, at least 1")
        _check_options(config)
        self._table = chain_of(config)
        self._ratios = sigma_table(self._table.alphas_cumprod).numpy()
        self._log_snr = log_snr_of(config, self.config_keys(), self._table, _WL_ZHAO)
        if self._log_snr is not None:
            self._refuse(_PUBLISHED_ONLY, "is an option of published grids, which log_snr replaces")
        self._convert = OutputConversion(config, predict_x0, through_epsilon=self._log_snr is not None)
        if thresholding and not predict_x0 and not self._denoises:
            raise ConfigError("thresholding needs predict_x0=True: it has no effect on a solver of the noise")
        self._skip_type = SkipType.TIME_UNIFORM if skip_type is None else choose(SkipType, "skip_type", skip_type)
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    @property
    def log_alphas(self) -> Tensor:
        """(N,) float32, log α of the chain, which log_snr="discrete" interpolates."""
        if not isinstance(self._log_snr, DiscreteLogSnr):
            raise AttributeError("log_alphas needs log_snr='discrete'")
        return self._log_snr.log_alphas

    # --- the grid ----------------------------------------------------------------------------------------------------

    def _published_grid(
        self,
        num_inference_steps: int | None,
        timesteps: Sequence[Time] | None,
        sigmas: Sequence[float] | None,
        mu: float | None,
    ) -> SolverGrid:
        config = self.config
        if mu is not None and not config.use_dynamic_shifting:
            raise ValueError(f"mu={mu} needs use_dynamic_shifting=True")
        if config.use_dynamic_shifting and mu is None and timesteps is None:
            raise ValueError("use_dynamic_shifting=True needs mu")
        if config.use_flow_sigmas and not config.use_karras_sigmas and timesteps is None:
            return self._flow_grid(num_inference_steps, sigmas, mu)
        flow_after = config.use_flow_sigmas and config.use_karras_sigmas
        options = {**config, "use_flow_sigmas": False} if flow_after else config
        grid = solver_grid(options, self._ratios, num_inference_steps, timesteps, sigmas, mu)  # type: ignore[arg-type]
        visited = grid.sigmas[:-1].astype(np.float64)
        if flow_after:
            visited = visited / (visited + 1)
            grid = SolverGrid((visited * len(self)).astype(int).tolist(), grid.sigmas)
        final = grid.sigmas[-1:]
        if config.final_sigmas_type == "sigma_min" and any(config[name] for name in SIGMA_GRIDS if name in config):
            final = visited[-1:]
        return SolverGrid(grid.times, np.append(visited, final).astype(np.float32))

    def _flow_grid(
        self, num_inference_steps: int | None, sigmas: Sequence[float] | None, mu: float | None
    ) -> SolverGrid:
        """σ evenly from 1, or those given, shifted, stretched, and kept below 1, where nothing is left of x_0."""
        config, total = self.config, len(self)
        if sigmas is None:
            # The checks of the request are the same.
            count = len(solver_grid(config, self._ratios, num_inference_steps).times)
            visited = np.linspace(1, 1 / total, count + 1)[:-1]
        else:
            visited = solver_grid(config, self._ratios, num_inference_steps, sigmas=sigmas).sigmas[:-1].astype(float)
            if visited[0] > 1:
                raise ValueError(f"sigmas from {visited[0]:g} are not allowed; those of a flow are at most 1")
        shift = config.flow_shift if mu is None else np.exp(mu)
        visited = shift * visited / (1 + (shift - 1) * visited)
        if config.shift_terminal and visited[-1] < 1:
            visited = 1 - (1 - visited) / ((1 - visited[-1]) / (1 - config.shift_terminal))
        visited = np.minimum(visited, 1 - 1e-6)
        final = visited[-1] if config.final_sigmas_type == "sigma_min" else 0.0
        return SolverGrid((visited * total).astype(int).tolist(), np.append(visited, final).astype(np.float32))

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        if self.config.solver_p is not None:
            self.config.solver_p.set_timesteps(self.num_inference_steps)

    set_timesteps.__doc__ = SolverScheduler.set_timesteps.__doc__

    def _plan(self, times: list[Time]) -> None:
        count, lambdas = len(times), self._levels(torch.float32).half_log_snr.tolist()
        self._orders: list[int] = []
        self._before_of: list[list[int]] = []
        self._repeats: list[bool] = []
        for index in range(count):
            repeats = index > 0 and lambdas[index] == lambdas[index - 1]
            earlier = self._before_of[-1][repeats:] if index else []
            self._repeats.append(repeats)
            self._before_of.append([index, *earlier][: self.config.solver_order])
            stays = lambdas[index] == lambdas[index + 1]
            self._orders.append(0 if stays else self._planned_order(index, count, lambdas[-1]))

    def _planned_order(self, index: int, count: int, end: float) -> int:
        highest, left = self.config.solver_order, count - index
        if left == 1 and end == float("inf"):
            return 1
        if not self.config.lower_order_final or (self._log_snr is not None and index + 1 < highest):
            return highest
        return min(highest, left)

    def _restart(self) -> None:
        self._history: list[Tensor] = []
        self._last: _Before | None = None

    # --- one step ----------------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Correct the state at `timestep` with the output there, and predict the next state.

        model_output: (B, C, ...), or (B, 2C, ...) with a learned variance. sample: (B, C, ...).
        timestep: an entry of `timesteps`.
        Returns x̃_{t_{i+1}} and, with predict_x0, x̂_0, in the dtype of `sample`; the arithmetic is in that dtype, at
        least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit.
        """
        dtype = self._check(model_output, sample, channel_factor=self._convert.channel_factor)
        self._require_timesteps()
        levels: list[tuple[float, float]] = self._coefficients(dtype)
        index = self._advance(timestep)
        alpha, sigma = levels[index]
        x, output = sample.to(dtype), model_output.to(dtype)
        if index == len(self._orders):  # `_denoises`
            result = self._convert.x0(output, x, alpha, sigma)
            return self._result(result, result, sample.dtype, return_dict)

        converted, x0 = self._convert(output, x, alpha, sigma)
        if self._last is not None and index - 1 not in self.config.disable_corrector:
            x = self._last.update.correct(self._last.start, converted)  # algorithm 1
        self._history = [converted, *self._history[self._repeats[index] :]][: self.config.solver_order]
        order = min(len(self._history), self._orders[index])
        prev_sample, self._last = x, None
        if order:
            update = self._update(index, order, dtype)
            start = update.start(x, self._history)
            prev_sample = update.predict(start)  # algorithm 2
            self._last = _Before(update, start)
        if self.config.solver_p is not None:
            prev_sample = self.config.solver_p.step(model_output, timestep, x.to(sample.dtype)).prev_sample.to(dtype)
        return self._result(prev_sample, x0, sample.dtype, return_dict)

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _make_coefficients(self, dtype: torch.dtype) -> list[tuple[float, float]]:
        levels = self._level_cache(dtype)
        for index, order in enumerate(self._orders):
            if order:
                self._update(index, min(order, len(self._before_of[index])), dtype)
        return [*zip(levels.alpha[:-1].tolist(), levels.sigma[:-1].tolist(), strict=True), *self._last_level(dtype)]

    def _level_cache(self, dtype: torch.dtype) -> Levels:
        if ("levels", dtype) not in self._coefficient_cache:
            self._coefficient_cache["levels", dtype] = self._levels(dtype)
        levels: Levels = self._coefficient_cache["levels", dtype]
        return levels

    def _update(self, index: int, order: int, dtype: torch.dtype) -> Update:
        """The update after an evaluation; of a lower order than planned where sampling began shortly before."""
        key = ("update", index, order, dtype)
        if key not in self._coefficient_cache:
            self._coefficient_cache[key] = make_update(
                self._variant, self.config.predict_x0, self._level_cache(dtype), index, self._before_of[index], order
            )
        update: Update = self._coefficient_cache[key]
        return update


def _check_options(config: Mapping[str, Any]) -> None:
    check_grid_options({**config, "use_flow_sigmas": config["use_flow_sigmas"] and not config["use_karras_sigmas"]})
    for name in ("sigma_min", "sigma_max"):
        if config[name] is not None and not any(config[grid] for grid in _WITH_ENDS):
            raise ConfigError(f"{name}={config[name]} needs one of {', '.join(_WITH_ENDS)}")
        if config[name] is not None and not config[name] > 0:
            raise ConfigError(f"{name}={config[name]} is not allowed; it must be above 0")
    if config["shift_terminal"] is not None and not 0 <= config["shift_terminal"] < 1:
        raise ConfigError(f"shift_terminal={config['shift_terminal']} is not allowed; at least 0, below 1")
    if config["shift_terminal"] is not None and not config["use_flow_sigmas"]:
        raise ConfigError(f"shift_terminal={config['shift_terminal']} needs use_flow_sigmas=True")
    if config["solver_p"] is not None and config["log_snr"] is not None:
        raise ConfigError("solver_p needs published grids, which log_snr replaces")


_WL_ZHAO = (LogSnrKind.DISCRETE, LogSnrKind.LINEAR, LogSnrKind.COSINE)
_WITH_ENDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_PUBLISHED_ONLY = ("disable_corrector", "sigma_min", "sigma_max", "shift_terminal")
