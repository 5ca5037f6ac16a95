"""The updates of DPM-Solver (arXiv 2206.00927, algorithms 1 to 5) and DPM-Solver++ (arXiv 2211.01095, algorithms 1, 2).

Both solve the same equation exactly but for one integral: of the noise ε_θ (DPM-Solver) or of the data x_θ (++), as a
polynomial in λ of which differences of outputs m_0, m_1, m_2 give the derivatives. With h = λ_t − λ_s:

    noise    x_t = α_t/α_s · x_s − σ_t φ_1 m_0 − σ_t φ_2 D_1 − σ_t φ_3 D_2       φ_1 = e^h − 1,  φ_k+1 = φ_k/h − 1/k!
    data     x_t = σ_t/σ_s · x_s − α_t φ_1 m_0 + α_t φ_2 D_1 − α_t φ_3 D_2       φ_1 = e^−h − 1, φ_2 = φ_1/h + 1, …

    code              paper
    m_0, m_1, m_2     outputs at λ_s and at one and two other λ
    d_1, d_2          D_1, D_2
    r_0, r_1, r_2     distances of these λ in units of h

The midpoint forms replace φ_2 D_1 by its leading term ½ φ_1 D_1. The SDE forms (DPM-Solver++, appendix B, and the same
for noise) step with 2h, and draw noise. LuChengTHU/dpm-solver's order of operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.log_snr import Levels, LogSnrKind
from diffusers_ref.schedulers.scheduler import by_step


class AlgorithmType(str, Enum):
    """What is integrated, and whether along the ODE or the SDE."""

    DPM_SOLVER = "dpmsolver"
    """Published, LuChengTHU: the noise (arXiv 2206.00927)."""
    DPM_SOLVER_PP = "dpmsolver++"
    """Published, LuChengTHU: the data (arXiv 2211.01095)."""
    SDE_DPM_SOLVER = "sde-dpmsolver"
    """Published: the noise, along the SDE."""
    SDE_DPM_SOLVER_PP = "sde-dpmsolver++"
    """Published: the data, along the SDE (arXiv 2211.01095, appendix B)."""

    @property
    def is_of_data(self) -> bool:
        return self in (AlgorithmType.DPM_SOLVER_PP, AlgorithmType.SDE_DPM_SOLVER_PP)

    @property
    def is_sde(self) -> bool:
        return self in (AlgorithmType.SDE_DPM_SOLVER, AlgorithmType.SDE_DPM_SOLVER_PP)


class SolverType(str, Enum):
    """How φ_2 is taken where two outputs are known."""

    MIDPOINT = "midpoint"
    """Published; "dpmsolver" of LuChengTHU."""
    HEUN = "heun"
    """Published; "taylor" of LuChengTHU."""


def choose_algorithm(config: Mapping[str, Any], allowed: Sequence[AlgorithmType]) -> tuple[AlgorithmType, SolverType]:
    """What the options of a DPM-Solver mean together. Raises ConfigError."""
    name = "dpmsolver++" if config["algorithm_type"] == "deis" else config["algorithm_type"]
    algorithm = choose(AlgorithmType, "algorithm_type", name, allowed)
    name = "midpoint" if config["solver_type"] in ("logrho", "bh1", "bh2") else config["solver_type"]
    solver_type = choose(SolverType, "solver_type", name)
    if config["solver_order"] not in (1, 2, 3):
        raise ConfigError(f"solver_order={config['solver_order']!r} is not allowed; allowed: 1, 2, 3")
    if config["log_snr"] is None and not algorithm.is_of_data and config["final_sigmas_type"] == "zero":
        raise ConfigError(
            f"algorithm_type={algorithm.value!r} cannot end at final_sigmas_type='zero', where the weight of the noise "
            "is not finite; use 'sigma_min'"
        )
    return algorithm, solver_type


class Weights(NamedTuple):
    """Of one update, or (n,) of n of them, signs included: what x, m_0, D_1, D_2 and the noise are multiplied by."""

    x: Tensor
    m_0: Tensor
    midpoint: Tensor  # of D_1
    d_1: Tensor
    d_2: Tensor
    noise: Tensor


def weights(algorithm: AlgorithmType, start: Levels, end: Levels, h: Tensor) -> Weights:
    """The weights of updates from `start` to `end`, which are `h` apart in λ; all (n,)."""
    if algorithm.is_of_data:
        decay, scale, x = -h, end.alpha, end.sigma / start.sigma
        span = 2.0 * h if algorithm.is_sde else h
        phi_1 = torch.expm1(-span)
        phi_2 = phi_1 / span + 1.0
        if algorithm.is_sde:
            x = x * torch.exp(decay)
        noise = end.sigma * torch.sqrt(-torch.expm1(-2.0 * h))
    else:
        scale, x, span = end.sigma, torch.exp(end.log_alpha - start.log_alpha), h
        phi_1 = torch.expm1(h)
        phi_2 = phi_1 / h - 1.0
        if algorithm.is_sde:
            scale = 2.0 * scale
        noise = end.sigma * torch.sqrt(torch.expm1(2.0 * h))
    phi_3 = phi_2 / span - 0.5
    first, second, third = scale * phi_1, scale * phi_2, scale * phi_3
    return Weights(x, -first, -0.5 * first, second if algorithm.is_of_data else -second, -third, noise)


# --- multistep: m_1 and m_2 are earlier outputs -----------------------------------------------------------------------


class MultistepUpdate(NamedTuple):
    """The numbers of one update."""

    order: int
    x: float
    m_0: float
    d_1: float
    d_2: float
    noise: float
    inverse_r_0: float
    inverse_r_1: float
    mix: float  # r_0/(r_0 + r_1)
    inverse_sum: float  # 1/(r_0 + r_1)

    def __call__(self, x: Tensor, outputs: Sequence[Tensor], noise: Tensor | None) -> Tensor:
        """outputs: those of the last `order` levels, the newest first."""
        m_0 = outputs[0]
        x_t = self.x * x + self.m_0 * m_0
        if self.order > 1:
            d_1 = self.inverse_r_0 * (m_0 - outputs[1])
            if self.order > 2:
                rise = d_1 - self.inverse_r_1 * (outputs[1] - outputs[2])
                x_t = x_t + self.d_1 * (d_1 + self.mix * rise) + self.d_2 * (self.inverse_sum * rise)
            else:
                x_t = x_t + self.d_1 * d_1
        return x_t if noise is None else x_t + self.noise * noise


def multistep_updates(
    algorithm: AlgorithmType, solver_type: SolverType, levels: Levels, before: Sequence[Sequence[int]], order: int
) -> list[MultistepUpdate]:
    """The update of `order` after each evaluation.

    levels: (n + 1,) of every evaluation and of the end. before: for each evaluation the places in `levels` of itself
    and of the earlier evaluations that its update uses, the newest first; where there are fewer than `order`, the row
    is meaningless.
    """
    start, end = levels.at(slice(None, -1)), levels.at(slice(1, None))
    past = [[(*places, *[places[-1]] * order)[k] for places in before] for k in range(order)]
    lambdas = [levels.half_log_snr[places] for places in past]
    h = end.half_log_snr - start.half_log_snr
    w = weights(algorithm, start, end, h)
    unused = torch.zeros_like(h)
    d_1, d_2, extra = unused, unused, (unused,) * 4
    if order == 2:
        d_1 = w.midpoint if solver_type is SolverType.MIDPOINT else w.d_1
        extra = (1.0 / ((lambdas[0] - lambdas[1]) / h), *extra[1:])
    elif order == 3:
        d_1, d_2 = w.d_1, w.d_2
        r_0, r_1 = (lambdas[0] - lambdas[1]) / h, (lambdas[1] - lambdas[2]) / h
        extra = (1.0 / r_0, 1.0 / r_1, r_0 / (r_0 + r_1), 1.0 / (r_0 + r_1))
    return [MultistepUpdate(order, *row) for row in by_step(w.x, w.m_0, d_1, d_2, w.noise, *extra)]


# --- singlestep: m_1 and m_2 are outputs within the step --------------------------------------------------------------


class SinglestepUpdate(NamedTuple):
    """The numbers of one update, from where the step began to the next evaluation or to the step's end.

    newest: D_1 is the difference of the newest output to m_0; otherwise the polynomial goes through all three.
    """

    order: int
    newest: bool
    x: float
    m_0: float
    noise: float
    d_1: float
    d_2: float = 0.0
    r_1: float = 1.0
    r_2: float = 1.0
    inverse_r_1: float = 1.0
    inverse_r_2: float = 1.0
    gap: float = 1.0  # r_2 − r_1

    def __call__(self, x: Tensor, outputs: Sequence[Tensor], noise: Tensor | None) -> Tensor:
        """x: where the step began. outputs: those of the step, the oldest first."""
        m_0 = outputs[0]
        x_t = self.x * x + self.m_0 * m_0
        if self.order > 1:
            newest = outputs[-1] - m_0
            if self.newest:
                x_t = x_t + self.d_1 * newest
            else:
                first, second = self.inverse_r_1 * (outputs[1] - m_0), self.inverse_r_2 * newest
                d_1 = (self.r_2 * first - self.r_1 * second) / self.gap
                d_2 = 2.0 * (second - first) / self.gap
                x_t = x_t + self.d_1 * d_1 + self.d_2 * d_2
        return x_t if noise is None else x_t + self.noise * noise


def singlestep_updates(
    algorithm: AlgorithmType,
    solver_type: SolverType,
    levels: Levels,
    r: Sequence[Tensor | float],
    midpoint_within: bool,
) -> list[tuple[SinglestepUpdate, ...]]:
    """The updates of n steps of order k, which evaluate k times.

    levels: (n, k + 1) of the evaluations and of the end. r: the k − 1 distances r_1, r_2 of the later evaluations from
    the first, each (n,) or a number. midpoint_within: the update before the last one of order 3 has the form of
    `solver_type`, too. Returns for each step the updates after its evaluations.
    """
    order = len(r) + 1
    start, end = levels.at((slice(None), slice(1))), levels.at((slice(None), slice(1, None)))
    h = end.half_log_snr[:, -1] - start.half_log_snr[:, 0]
    spans = torch.stack([*(distance * h for distance in r), h], 1)
    all_weights = weights(algorithm, start, end, spans)
    midpoint = solver_type is SolverType.MIDPOINT
    updates = []
    for k in range(order):
        w = Weights(*(column[:, k] for column in all_weights))
        numbers: tuple[Tensor | float, ...] = ()
        if k == 1:
            inverse_r = (r[1] if order == 3 else 1.0) / r[0]  # r_1 in units of this update's own span
            within = order == 3 and not midpoint_within
            numbers = (0.5 * inverse_r * w.m_0,) if midpoint and not within else (inverse_r * w.d_1,)
        elif k == 2 and midpoint:
            numbers = (1.0 / r[1] * w.d_1,)
        elif k == 2:
            numbers = (w.d_1, w.d_2, r[0], r[1], 1.0 / r[0], 1.0 / r[1], r[1] - r[0])
        columns = [number.tolist() if isinstance(number, Tensor) else [number] * len(h) for number in numbers]
        rows = zip(*map(Tensor.tolist, (w.x, w.m_0, w.noise)), *(columns or [[0.0] * len(h)]), strict=True)
        updates.append([SinglestepUpdate(k + 1, k < 2 or midpoint, *row) for row in rows])
    return list(zip(*updates, strict=True))


LUCHENGTHU = (LogSnrKind.DISCRETE_CLIPPED, LogSnrKind.LINEAR)
"""The `log_snr` of LuChengTHU/dpm-solver."""
