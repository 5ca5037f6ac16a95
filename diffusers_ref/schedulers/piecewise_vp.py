"""DEIS' continuous process through a discrete chain (arXiv 2204.13902, section 3), as its code computes it.

    code                paper
    abar(t)             alpha_t: the chain's abar, piecewise linear in t; t = 0 is the first training timestep
    rho(t)              rho_t = sqrt(1/abar_t - 1), eq. 16; the noise level of x/sqrt(abar)
    time(rho)           t(rho), the inverse
    times(...)          t_N > ... > t_0, the grid of times
    adams_bashforth_…   C_ij, eq. 15 (over t) and eq. 18 (over rho)

The original (qsh-zh/deis) makes these numbers with jax in float32. So does this, with NumPy: every operation of its
source is rounded by itself, in its order, which is jax without its compiler (`jax.disable_jit`); powers, exponentials,
logarithms and the sums of 10,000 terms, whose rounding depends on jax's version and on the machine, are correctly
rounded. What jax makes of it differs by an ulp or two.

In float32 the inverse t(rho) is coarse at the noisy end, as it looks abar up as 2 - abar: there t(rho(t)) is off by up
to a tenth of a timestep. It is a quirk of the original, and part of its times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from itertools import pairwise

import numpy as np
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.schedulers.conventions import choose

POINTS = 10_000
"""Points of the Riemann sums."""

_ONE = np.float32(1.0)


class TimePhase(str, Enum):
    """In which variable the grid of times is even."""

    T = "t"
    """In t^(1/ts_order)."""
    LOG = "log"
    """In log rho."""
    RHO = "rho"
    """In rho^(1/ts_order), as in EDM (arXiv 2206.00364)."""


class PiecewiseVP:
    """The variance preserving process with abar_t linear between the timesteps of a chain; all float32.

    alphas_cumprod: (T,), T >= 2, falling.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        if len(alphas_cumprod) < 2:
            raise ConfigError("num_train_timesteps=1 is not allowed: abar is interpolated, which takes at least 2")
        self._abar = alphas_cumprod.float().numpy()
        self._steps = np.arange(len(self._abar), dtype=np.float32)
        self._rising = np.float32(2.0) - self._abar

    def __len__(self) -> int:
        """T, the number of training timesteps."""
        return len(self._abar)

    @staticmethod
    def grid_options(ts_phase: str | None, ts_order: float | None) -> tuple[TimePhase, float]:
        """The options of `times`, checked; by default "t" of order 2, which the original's examples use.

        "rho" has order 7 by default, "log" none. Raises ConfigError.
        """
        phase = TimePhase.T if ts_phase is None else choose(TimePhase, "ts_phase", ts_phase)
        if ts_order is None:
            return phase, 7.0 if phase is TimePhase.RHO else 2.0
        if phase is TimePhase.LOG:
            raise ConfigError(f"ts_order={ts_order} has no effect with ts_phase='log'")
        if not ts_order > 0:
            raise ConfigError(f"ts_order={ts_order} is not allowed; it must be above 0")
        return phase, float(ts_order)

    # --- the process -------------------------------------------------------------------------------------------------

    def abar(self, t: np.ndarray) -> np.ndarray:
        """abar_t, (...), kept off 0 and 1; the outermost pieces go on beyond the chain."""
        value = _interpolate(t, _piece_of_time(t, len(self._abar)), self._steps, self._abar)
        return np.clip(value, np.float32(1e-7), np.float32(1.0 - 1e-7))

    def rho(self, t: np.ndarray) -> np.ndarray:
        """rho_t, (...)."""
        abar = self.abar(t)
        return np.sqrt(_ONE / abar * (_ONE - abar))

    def time(self, rho: np.ndarray) -> np.ndarray:
        """The t of each rho, (...), within [0, T - 1]."""
        abar = _ONE / (rho * rho + _ONE)
        x = np.float32(2.0) - abar
        piece = np.clip(np.searchsorted(self._rising, x, side="right"), 1, len(self._rising) - 1)
        value = _interpolate(x, piece, self._rising, self._steps)
        return np.clip(value, self._steps[0], self._steps[-1])

    def exact_time(self, rho: np.ndarray, noisy: float, clean: float) -> float:
        """The t of one rho between the times `noisy` and `clean`, in float64."""
        abar = 1.0 / (float(rho) ** 2 + 1.0)
        time = float(np.interp(-abar, -self._abar.astype(np.float64), self._steps))
        return min(max(time, clean), noisy)

    def transition(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Psi(end, start) = sqrt(abar_end / abar_start)."""
        return np.sqrt(self.abar(end) / self.abar(start))

    def unit_scale(self, t: np.ndarray) -> np.ndarray:
        """1/sqrt(abar_t): from x to x/sqrt(abar)."""
        return np.sqrt(_ONE / self.abar(t))

    def _epsilon_weight(self, t: np.ndarray) -> np.ndarray:
        """1/2 G_t² / sqrt(1 - abar_t), the factor of epsilon in the probability flow; G_t² = -d log abar_t / dt."""
        piece = _piece_of_time(t, len(self._abar))
        abar = self.abar(t)
        slope = (_ONE / abar) * (self._abar[piece] - self._abar[piece - 1])
        return np.float32(-0.5) * slope / np.sqrt(_ONE - abar)

    # --- grids -------------------------------------------------------------------------------------------------------

    def times(self, phase: TimePhase, order: float, count: int) -> np.ndarray:
        """(count + 1,) times from T - 1 down to 0, float32; int32 where that many do not fit between whole timesteps.

        If truncation makes any two times equal, the grid becomes the truncated times without repeats, and is filled up
        with the lowest timesteps that it lacks. Otherwise the times keep their fractions.
        """
        first, last = self._steps[-1], self._steps[0]
        if phase is TimePhase.T:
            times = _power(_linspace(_power(first, 1.0 / order), _power(last, 1.0 / order), count + 1), order)
        else:
            noisy, clean = self.rho(first), self.rho(last)
            if phase is TimePhase.LOG:
                rhos = _rounded(np.exp, _linspace(_rounded(np.log, noisy), _rounded(np.log, clean), count + 1))
            else:
                high, low = _power(noisy, 1.0 / order), _power(clean, 1.0 / order)
                steps = _linspace(np.float32(0), np.float32(count), count + 1) / np.float32(count)
                rhos = _power(high + steps * (low - high), order)
            times = self.time(rhos)
        whole = np.unique(times.astype(np.int32))[::-1]
        missing = count + 1 - len(whole)
        if missing == 0:
            return times
        unused = [step for step in range(int(first), int(last), -1) if step not in whole]
        return np.sort(np.concatenate([whole, np.array(unused[-missing:], dtype=np.int32)]))[::-1]

    # --- coefficients ------------------------------------------------------------------------------------------------

    def adams_bashforth_in_time(self, end: np.ndarray, known: np.ndarray) -> list[float]:
        """C_ij of tAB-DEIS (eq. 15) for the step from known[0] to `end`.

        known: (k,) the times of the last k outputs, newest first. Returns what each of these is multiplied by.
        """

        def integrand(points: np.ndarray) -> np.ndarray:
            return self.transition(points, end) * self._epsilon_weight(points)

        return _adams_bashforth(integrand, end, known)


def adams_bashforth_in_rho(end: np.ndarray, known: np.ndarray) -> list[float]:
    """C_ij of rhoAB-DEIS (eq. 18), as `adams_bashforth_in_time` with every time replaced by its rho."""
    return _adams_bashforth(np.ones_like, end, known)


def _adams_bashforth(integrand: Callable[[np.ndarray], np.ndarray], end: np.ndarray, known: np.ndarray) -> list[float]:
    """Left Riemann sums of integrand · Lagrange polynomial."""
    start, stop = np.float32(known[0]), np.float32(end)
    width = (stop - start) / np.float32(POINTS)
    points = _linspace(start, stop, POINTS, endpoint=False)
    weights = integrand(points)
    sums = [(weights * _lagrange(points, known, index)).sum(dtype=np.float64) for index in range(len(known))]
    return [float(np.float32(total) * width) for total in sums]


def _lagrange(points: np.ndarray, nodes: np.ndarray, index: int) -> np.ndarray:
    """The polynomial that is 1 at nodes[index] and 0 at the other nodes, at `points`; factors from the oldest node."""
    above, below = np.ones_like(points), nodes.dtype.type(1)
    for other in reversed(range(len(nodes))):
        if other != index:
            above = above * (points - np.float32(nodes[other]))
            below = below * (nodes[index] - nodes[other])
    return above / np.float32(below)


# --- float32 as jax has it -------------------------------------------------------------------------------------------


def _linspace(start: np.ndarray, stop: np.ndarray, count: int, endpoint: bool = True) -> np.ndarray:
    """(count,) points: start (1 - u) + stop u."""
    parts = count - 1 if endpoint else count
    u = np.arange(parts, dtype=np.float32) / np.float32(parts)
    points = start * (_ONE - u) + stop * u
    return np.append(points, stop) if endpoint else points


def _piece_of_time(t: np.ndarray, count: int) -> np.ndarray:
    """Index of the timestep that ends the piece in which t lies; a timestep begins a piece."""
    return np.clip(np.floor(t).astype(np.int64) + 1, 1, count - 1)


def _interpolate(x: np.ndarray, piece: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    rise, run, along = ys[piece] - ys[piece - 1], xs[piece] - xs[piece - 1], x.astype(np.float32) - xs[piece - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(run == 0, ys[piece], ys[piece - 1] + (along / run) * rise)


def _power(base: np.ndarray, exponent: float) -> np.ndarray:
    return np.power(base.astype(np.float64), np.float64(np.float32(exponent))).astype(np.float32)


def _rounded(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    return function(x.astype(np.float64)).astype(np.float32)


# --- requests ---------------------------------------------------------------------------------------------------------


def requested_times(
    process: PiecewiseVP, phase: TimePhase, order: float, count: int | None, timesteps: Sequence[float] | None
) -> np.ndarray:
    """(n + 1,) the times of a run, 0 included, from exactly one of `count` (n) and `timesteps` (the first n)."""
    if (count is None) == (timesteps is None):
        raise ValueError("give exactly one of num_inference_steps and timesteps")
    last = len(process) - 1
    if timesteps is not None:
        times = [float(time) for time in timesteps]
        falling = all(earlier >= later for earlier, later in pairwise(times))
        if not times or not falling or not 0 <= times[-1] <= times[0] <= last:
            raise ValueError(f"timesteps {times} are not allowed; at least one, none above the one before, 0 to {last}")
        return np.array([*times, 0.0], dtype=np.float32)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= last:
        raise ValueError(f"num_inference_steps={count!r} is not allowed; a whole number, 1 to {last}")
    return process.times(phase, order, count)
