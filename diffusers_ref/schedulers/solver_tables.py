"""The forward process that the configuration of a high-order solver describes: its chain, or its continuous log-SNR."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from diffusers_ref.configuration import ConfigError
from diffusers_ref.schedulers.betas import NoiseTable, make_betas
from diffusers_ref.schedulers.conventions import BetaSchedule, Coefficients, choose
from diffusers_ref.schedulers.log_snr import CosineLogSnr, LinearLogSnr, LogSnr, LogSnrKind, discrete_log_snr
from diffusers_ref.schedulers.solver_grids import SIGMA_GRIDS


class AlphaSource(str, Enum):
    """What an original computes log α from."""

    BETAS = "betas"
    """LuChengTHU, for DDPM: ½ Σ log(1 − β)."""
    ALPHAS_CUMPROD = "alphas_cumprod"
    """LuChengTHU, for Stable Diffusion: ½ log ᾱ."""


def chain_of(config: Mapping[str, Any]) -> NoiseTable:
    """The tables of the chain. Raises ConfigError."""
    schedule = choose(BetaSchedule, "beta_schedule", config["beta_schedule"])
    coefficients = _DEFAULT_COEFFICIENTS.get(schedule, Coefficients.FLOAT32_CUMPROD)
    if config["coefficients"] is not None:
        coefficients = choose(Coefficients, "coefficients", config["coefficients"])
    rescale = config.get("rescale_betas_zero_snr", False)
    betas = make_betas(
        schedule,
        config["beta_start"],
        config["beta_end"],
        config["num_train_timesteps"],
        trained_betas=config["trained_betas"],
        rescale_zero_snr=rescale,
        coefficients=coefficients,
    )
    table = NoiseTable.from_betas(betas, coefficients)
    if not rescale:
        return table
    # Published: the noisiest level keeps a trace of signal, as σ/α would be infinite.
    abar = table.alphas_cumprod.clone()
    abar[-1] = 2.0**-24
    return dataclasses.replace(table, alphas_cumprod=abar)


def log_snr_of(
    config: Mapping[str, Any], defaults: Mapping[str, Any], chain: NoiseTable, kinds: Sequence[LogSnrKind]
) -> LogSnr | None:
    """The continuous process of the option `log_snr`, one of `kinds`; None for published grids. Raises ConfigError.

    defaults: of the options, as those that would have no effect are refused.
    """
    if config["log_snr"] is None:
        refuse(config, defaults, ("skip_type", "log_alpha_from"), "needs log_snr: published grids do not have it")
        return None
    kind = choose(LogSnrKind, "log_snr", config["log_snr"], allowed=kinds)
    refuse(config, defaults, (*SIGMA_GRIDS, *_GRID_OPTIONS), "is an option of published grids, which log_snr replaces")
    if kind is LogSnrKind.LINEAR:
        refuse(config, defaults, _CHAIN, "needs a discrete log_snr, not 'linear'")
        total = config["num_train_timesteps"]
        return LinearLogSnr(total * config["beta_start"], total * config["beta_end"])
    if kind is LogSnrKind.COSINE:
        refuse(config, defaults, (*_CHAIN, "beta_start", "beta_end"), "needs a discrete log_snr, not 'cosine'")
        return CosineLogSnr()
    source = AlphaSource.ALPHAS_CUMPROD if chain.coefficients is Coefficients.COMPVIS else AlphaSource.BETAS
    if config["log_alpha_from"] is not None:
        source = choose(AlphaSource, "log_alpha_from", config["log_alpha_from"])
    table = {source.value: getattr(chain, source.value)}
    return discrete_log_snr(**table, clipped=kind is LogSnrKind.DISCRETE_CLIPPED)


def refuse(config: Mapping[str, Any], defaults: Mapping[str, Any], names: Sequence[str], reason: str) -> None:
    """Raise ConfigError if one of these options has another value than its default."""
    for name in names:
        if name in config and config[name] != defaults[name]:
            raise ConfigError(f"{name}={config[name]!r} {reason}")


_GRID_OPTIONS = ("flow_shift", "lambda_min_clipped", "timestep_spacing", "steps_offset", "use_dynamic_shifting")
"""Further options of published grids."""

_CHAIN = ("log_alpha_from", "beta_schedule", "trained_betas", "coefficients", "rescale_betas_zero_snr")
"""Options of a chain."""

_DEFAULT_COEFFICIENTS = {
    BetaSchedule.SCALED_LINEAR: Coefficients.COMPVIS,
    BetaSchedule.SQUAREDCOS_CAP_V2: Coefficients.FLOAT64,
}
