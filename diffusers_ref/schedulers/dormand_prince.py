"""The Runge–Kutta pair of order 5(4) of Dormand and Prince (1980) with the step control of `scipy.integrate.solve_ivp`
(Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section II.4), one evaluation at a time.

    code                  book
    t, y, f               x, y, f(x, y)
    h                     h, with its sign
    K                     k_1 … k_7; the last is the first of the next step
    A, B, C, E            a_ij, b_i, c_i, b_i − b̂_i
    scale                 sc_i = Atol + max(|y_0i|, |y_1i|) Rtol, eq. 4.10
    error                 err, eq. 4.11

Everything is NumPy in float64, in scipy's order of operations, so that steps and states are scipy's bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SAFETY = 0.9
MIN_FACTOR, MAX_FACTOR = 0.2, 10
ERROR_EXPONENT = -1 / 5

C = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1])
A = np.array([
    [0, 0, 0, 0, 0],
    [1 / 5, 0, 0, 0, 0],
    [3 / 40, 9 / 40, 0, 0, 0],
    [44 / 45, -56 / 15, 32 / 9, 0, 0],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
])  # fmt: skip
B = np.array([35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84])
E = np.array([-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40])


@dataclass
class DormandPrince:
    """The integration of y' = f(t, y) from `t` to `end`.

    `point` says where f is asked for; `answer` takes it. Two evaluations choose the first step, then every trial takes
    six. Where the step becomes too short to move on, the integration ends before `end`, as scipy's does.

    y: (n,) float64, the state of the last accepted step. accepted, rejected: trials so far.
    """

    t: float
    y: np.ndarray
    end: float
    rtol: float
    atol: float
    accepted: int = 0
    rejected: int = 0
    point: tuple[float, np.ndarray] | None = field(init=False)
    """(time, state) of the next evaluation; None at the end."""

    def __post_init__(self) -> None:
        self._direction = np.sign(self.end - self.t) if self.end != self.t else 1
        self._stage = -2
        self._trial_rejected = False
        self._slopes = np.empty((len(C) + 1, self.y.size))
        self.point = (self.t, self.y)

    def answer(self, f: np.ndarray) -> None:
        """Take f, (n,) float64, at `point`, and move on to the next."""
        if self._stage == -2:
            self._f = f
            self._probe()
        elif self._stage == -1:
            self._choose_first_step(f)
            self._begin_step()
        elif self._stage < len(C):
            self._slopes[self._stage] = f
            self._next_stage()
        else:
            self._slopes[-1] = f
            self._judge()

    # --- the first step ----------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """An Euler step of a first guess, book p. 169."""
        interval = abs(self.end - self.t)
        if interval == 0.0:
            self.point = None
            return
        self._scale = self.atol + np.abs(self.y) * self.rtol
        d0, self._d1 = _norm(self.y / self._scale), _norm(self._f / self._scale)
        guess = 1e-6 if d0 < 1e-5 or self._d1 < 1e-5 else 0.01 * d0 / self._d1
        self._guess = min(guess, interval)
        self._stage = -1
        self.point = (self.t + self._guess * self._direction, self.y + self._guess * self._direction * self._f)

    def _choose_first_step(self, f: np.ndarray) -> None:
        d2 = _norm((f - self._f) / self._scale) / self._guess
        if self._d1 <= 1e-15 and d2 <= 1e-15:
            h = max(1e-6, self._guess * 1e-3)
        else:
            h = (0.01 / max(self._d1, d2)) ** (1 / 5)
        self._h_abs = min(100 * self._guess, h, abs(self.end - self.t), np.inf)

    # --- a trial -----------------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        self._min_step = 10 * np.abs(np.nextafter(self.t, self._direction * np.inf) - self.t)
        self._h_abs = max(self._h_abs, self._min_step)
        self._trial_rejected = False
        self._begin_trial()

    def _begin_trial(self) -> None:
        if self._h_abs < self._min_step:
            self.point = None
            return
        t_new = self.t + self._h_abs * self._direction
        if self._direction * (t_new - self.end) > 0:
            t_new = self.end
        self._t_new, self._h = t_new, t_new - self.t
        self._h_abs = np.abs(self._h)
        self._slopes[0] = self._f
        self._stage = 0
        self._next_stage()

    def _next_stage(self) -> None:
        self._stage += 1
        stage = self._stage
        if stage < len(C):
            dy = np.dot(self._slopes[:stage].T, A[stage, :stage]) * self._h
            self.point = (self.t + C[stage] * self._h, self.y + dy)
        else:
            self._y_new = self.y + self._h * np.dot(self._slopes[:-1].T, B)
            self.point = (self.t + self._h, self._y_new)

    def _judge(self) -> None:
        """Accept or reject the trial, and choose the next step: eq. 4.13."""
        scale = self.atol + np.maximum(np.abs(self.y), np.abs(self._y_new)) * self.rtol
        error = _norm(np.dot(self._slopes.T, E) * self._h / scale)
        if not error < 1:
            self._h_abs *= max(MIN_FACTOR, SAFETY * error**ERROR_EXPONENT)
            self._trial_rejected = True
            self.rejected += 1
            self._begin_trial()
            return
        factor = MAX_FACTOR if error == 0 else min(MAX_FACTOR, SAFETY * error**ERROR_EXPONENT)
        self._h_abs *= min(1, factor) if self._trial_rejected else factor
        self.t, self.y, self._f = self._t_new, self._y_new, self._slopes[-1].copy()
        self.accepted += 1
        if self._direction * (self.t - self.end) >= 0:
            self.point = None
        else:
            self._begin_step()


def _norm(x: np.ndarray) -> np.floating:
    return np.linalg.norm(x) / x.size**0.5
