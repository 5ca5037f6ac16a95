"""Pseudo numerical methods, computed again: what every evaluation of the network is for, and what it makes of a sample.

Formulas of arXiv 2202.09778 ("Pseudo Numerical Methods for Diffusion Models on Manifolds"), of the code of its authors,
and of PLMS in the code of latent diffusion, which leaves the Runge–Kutta steps out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

END = -1
"""The time after the last timestep of a grid."""

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights by order, from the newest output to the oldest."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the network: the sample given to evaluation `base` goes from the level at `start` to that at
    `end`, with the noise that the weighted outputs make.

    Attributes:
        time: at which the network is evaluated.
        weights: evaluation -> weight of the noise that it predicted.
    """

    time: float
    base: int
    start: float
    end: float
    weights: dict[int, float]


def evaluations(grid: list[int], method: str, half_stride: int | None) -> list[Evaluation]:
    """The evaluations on a grid, which is given from noisy to clean.

    Args:
        method: "prk" starts with three Runge–Kutta steps between whole timesteps; "plms" with one improved Euler step,
            if there is a next timestep. "f_pndm" and "s_pndm" are the authors' own: three Runge–Kutta steps with
            midpoints that need not be whole, or one improved Euler step, also to the end. "compvis" is "plms" that
            evaluates the last timestep twice if it is the only one.
        half_stride: from the next timestep to the midpoint of "prk"; None for half of this step, rounded down.
    """
    found: list[Evaluation] = []
    history: list[int] = []  # evaluations at the beginning of a step, newest first
    for index, (t, end) in enumerate(zip(grid, [*grid[1:], END], strict=True)):
        base, last = len(found), index == len(grid) - 1
        history = [base, *history][: 2 if method == "s_pndm" else 4]
        if index < 3 and (method == "f_pndm" or (method == "prk" and not last)):
            half = (t - end) // 2 if half_stride is None else half_stride
            middle = (t + end) / 2 if method == "f_pndm" else end + half
            third = {base: 1 / 6, base + 1: 1 / 3, base + 2: 1 / 3, base + 3: 1 / 6}
            found += [
                Evaluation(t, base, t, middle, {base: 1.0}),
                Evaluation(middle, base, t, middle, {base + 1: 1.0}),
                Evaluation(middle, base, t, end, {base + 2: 1.0}),
                Evaluation(end, base, t, end, third),
            ]
        elif index == 0 and (method in ("s_pndm", "compvis") or (method == "plms" and not last)):
            second = t if last and method == "compvis" else end
            mean = {base: 1 / 2, base + 1: 1 / 2}
            found += [Evaluation(t, base, t, end, {base: 1.0}), Evaluation(second, base, t, end, mean)]
        else:
            weights = ADAMS_BASHFORTH[len(history) - 1]
            found.append(Evaluation(t, base, t, end, dict(zip(history, weights, strict=True))))
    return found


@dataclass(frozen=True)
class Process:
    """The levels that a method reads, and how exactly it takes their coefficients.

    Attributes:
        abar: (T,) float64, the table's own numbers.
        final: abar after the last timestep.
        shifted: whether times read one entry later, and half-integers the entry that truncation finds.
        through_x0: whether a step goes through x_0 (PLMS), rather than by eq. 9.
        precision: "single" if each coefficient is rounded to float32; "root" if only the tabulated root of PLMS is.
    """

    abar: np.ndarray
    final: float
    shifted: bool = False
    through_x0: bool = False
    precision: str = "double"

    def level(self, time: float) -> float:
        """abar at a time of the method."""
        if self.shifted:
            return float(self.abar[int(time) + 1])
        return self.final if time == END else float(self.abar[int(time)])

    def noise(self, output: torch.Tensor, x: torch.Tensor, time: float, prediction: str) -> torch.Tensor:
        """What a network says about the noise in x at its own time."""
        if prediction == "epsilon":
            return output
        a = self.level(time)
        return self._coefficient(a**0.5) * output + self._coefficient((1 - a) ** 0.5) * x

    def move(
        self, x: torch.Tensor, noises: list[tuple[float, torch.Tensor]], start: float, end: float
    ) -> tuple[torch.Tensor, torch.Tensor | None, float]:
        """The sample at `end`, the x_0 on the way if there is one, and the size of the terms that were added up.

        noises: with their weights.
        """
        a, b = self.level(start), self.level(end)
        noise = torch.stack([weight * one for weight, one in noises]).sum(0)
        largest = float(x.abs().max())
        loudest = sum(abs(weight) * float(one.abs().max()) for weight, one in noises)
        if self.through_x0:
            root = (1 - a) ** 0.5 if self.precision != "root" else float(np.sqrt(np.float32(1) - np.float32(a)))
            signal, level, next_signal, next_level = map(self._coefficient, (a**0.5, root, b**0.5, (1 - b) ** 0.5))
            x0 = (x - level * noise) / signal
            size = next_signal * (largest + level * loudest) / signal + next_level * loudest
            return next_signal * x0 + next_level * noise, x0, size
        of_sample = 1 / (a**0.5 * (a**0.5 + b**0.5))
        of_noise = 1 / (a**0.5 * (((1 - b) * a) ** 0.5 + ((1 - a) * b) ** 0.5))
        gap, of_sample, of_noise = map(self._coefficient, (b - a, of_sample, of_noise))
        size = largest + abs(gap) * (of_sample * largest + of_noise * loudest)
        return x + gap * (of_sample * x - of_noise * noise), None, size

    def _coefficient(self, value: float) -> float:
        return float(np.float32(value)) if self.precision == "single" else value


def process_of(scheduler: Any, *, shifted: bool, through_x0: bool) -> Process:
    """The process that a scheduler's tables describe, in the precision that its option `coefficients` names."""
    abar = scheduler.alphas_cumprod.double().cpu().numpy()
    final = 1.0 if scheduler.config.get("set_alpha_to_one") else float(abar[0])
    recipe = scheduler.config.get("coefficients")
    if recipe is None and scheduler.config.get("beta_schedule") == "scaled_linear":
        recipe = "compvis"
    precision = {"float64": "single", "compvis": "root"}.get(recipe, "double")
    return Process(abar, final, shifted, through_x0, precision)
