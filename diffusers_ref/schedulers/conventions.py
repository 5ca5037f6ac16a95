"""The named conventions in which papers, their codes and published configurations differ.

Each option of a scheduler that chooses among them takes one of these values as a plain string. "Published" marks the
values that HF diffusers configurations use, with their meaning there; the others name the original code they come from:

- hojonathanho: github.com/hojonathanho/diffusion (DDPM)
- ermongroup: github.com/ermongroup/ddim (DDIM)
- luping-liu: github.com/luping-liu/PNDM (PNDM)
- openai: github.com/openai/improved-diffusion and guided-diffusion
- CompVis: github.com/CompVis/latent-diffusion and stable-diffusion
- luosiallen: github.com/luosiallen/latent-consistency-model (LCM)
- crowsonkb: github.com/crowsonkb/k-diffusion
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, TypeVar

from diffusers_ref.configuration import ConfigError


class BetaSchedule(str, Enum):
    """How the forward variances beta_t grow with t; all are computed in float64."""

    LINEAR = "linear"
    """Published, hojonathanho, ermongroup, openai: linear from beta_start to beta_end."""
    SCALED_LINEAR = "scaled_linear"
    """Published; "quad" of hojonathanho, ermongroup, luping-liu; "linear" of CompVis: linear in sqrt(beta)."""
    SQUAREDCOS_CAP_V2 = "squaredcos_cap_v2"
    """Published; "cosine" of openai and luping-liu: abar_t ~ cos²((t/T + 0.008) / 1.008 · pi/2), beta_t up to 0.999."""
    EXP = "exp"
    """Published, for samplers in sigma: abar_t = exp(-12 t/T), beta_t up to 0.999."""
    SIGMOID = "sigmoid"
    """Published, ermongroup: sigmoid of -6 to 6, scaled to beta_start .. beta_end."""
    CONST = "const"
    """hojonathanho, ermongroup: beta_end everywhere."""
    JSD = "jsd"
    """hojonathanho, ermongroup: 1/T, 1/(T-1), ..., 1."""
    WARMUP10 = "warmup10"
    """hojonathanho: linear over the first 10 % of the steps, then beta_end."""
    WARMUP50 = "warmup50"
    """hojonathanho: linear over the first 50 % of the steps, then beta_end."""


class Coefficients(str, Enum):
    """In which precision the tables are computed, and so how the coefficients of a step are rounded."""

    FLOAT64 = "float64"
    """hojonathanho, openai: every table in NumPy float64, each coefficient rounded to float32 once, when it is used."""
    FLOAT32_CUMPROD = "float32_cumprod"
    """ermongroup, luping-liu: betas rounded to float32, the cumulative product in float32, coefficients from it."""
    COMPVIS = "compvis"
    """CompVis: the cumulative product in float64, rounded to float32 once, coefficients from the rounded table."""
    FLOAT32 = "float32"
    """luosiallen, as HF diffusers: the betas themselves in float32 arithmetic, and everything that follows."""


class TimestepSpacing(str, Enum):
    """Which n of the T training timesteps are visited."""

    LEADING = "leading"
    """Published: multiples of T//n, n of them, plus steps_offset."""
    LINSPACE = "linspace"
    """Published: n points from 0 to T-1, rounded."""
    TRAILING = "trailing"
    """Published: every T/n down from T, rounded, minus 1."""
    DDIM_UNIFORM = "ddim_uniform"
    """ermongroup, luping-liu, CompVis (with steps_offset=1): range(0, T, T//n), often more than n steps."""
    DDIM_QUAD = "ddim_quad"
    """ermongroup, CompVis (with steps_offset=1): squares up to 0.8 T, truncated; small timesteps can repeat."""
    IMPROVED_DIFFUSION = "improved_diffusion"
    """openai: evenly within each section of the chain ("10,15,20"), or the integer stride with n steps ("ddim25")."""


class PredictionType(str, Enum):
    """What the network returns."""

    EPSILON = "epsilon"
    """Published, all originals: the noise in x_t."""
    SAMPLE = "sample"
    """Published; xstart of hojonathanho and openai: x_0."""
    V_PREDICTION = "v_prediction"
    """Published: v = sqrt(abar_t) · epsilon - sqrt(1 - abar_t) · x_0."""
    PREVIOUS_SAMPLE = "previous_sample"
    """xprev of hojonathanho and openai: the mean of x_{t-1}."""


class VarianceType(str, Enum):
    """The variance of p(x_{t-1} | x_t)."""

    FIXED_SMALL = "fixed_small"
    """Published, hojonathanho, openai: the posterior variance beta~_t."""
    FIXED_SMALL_LOG = "fixed_small_log"
    """Published: the same variance; its logarithm is what all originals store."""
    FIXED_LARGE = "fixed_large"
    """Published, hojonathanho, openai: beta_t."""
    FIXED_LARGE_LOG = "fixed_large_log"
    """Published: the same variance as fixed_large."""
    LEARNED = "learned"
    """Published, hojonathanho, openai: the second half of the network's channels is the log variance."""
    LEARNED_RANGE = "learned_range"
    """Published, openai: the second half of the channels, in [-1, 1], lies between log beta~_t and log beta_t."""

    @property
    def is_learned(self) -> bool:
        return self in (VarianceType.LEARNED, VarianceType.LEARNED_RANGE)


class SigmaSchedule(str, Enum):
    """Which noise levels sigma crowsonkb's samplers visit: its functions `get_sigmas` and `get_sigmas_*`."""

    DISCRETE = "discrete"
    """crowsonkb, `DiscreteSchedule.get_sigmas`: at n times evenly from T-1 to 0, linear in log sigma between them."""
    KARRAS = "karras"
    """crowsonkb: EDM's grid (arXiv 2206.00364), eq. 5."""
    EXPONENTIAL = "exponential"
    """crowsonkb: evenly in log sigma."""
    POLYEXPONENTIAL = "polyexponential"
    """crowsonkb: polynomial in log sigma."""
    VP = "vp"
    """crowsonkb: the continuous variance-preserving process of score SDE (arXiv 2011.13456), evenly in time."""


class Solver(str, Enum):
    """Which pseudo numerical method a PNDM scheduler runs, where the published `skip_prk_steps` does not say it."""

    F_PNDM = "f_pndm"
    """luping-liu: three Runge-Kutta steps, then the fourth-order linear multistep method."""
    S_PNDM = "s_pndm"
    """luping-liu: one improved Euler step, then the second-order linear multistep method."""
    PLMS = "plms"
    """CompVis: one improved Euler step, then linear multistep methods of order 2, 3 and 4, on CompVis' own grid."""


Choice = TypeVar("Choice", bound=Enum)


def choose(kind: type[Choice], option: str, value: Any, allowed: Sequence[Choice] | None = None) -> Choice:
    """The member of `kind` (one of `allowed`, if given) that `value` names. Raises ConfigError."""
    members = list(kind) if allowed is None else allowed
    for member in members:
        if member.value == value:
            return member
    names = ", ".join(repr(member.value) for member in members)
    raise ConfigError(f"{option}={value!r} is not known here; allowed: {names}")
