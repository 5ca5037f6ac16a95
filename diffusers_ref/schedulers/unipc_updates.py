"""The updates of UniPC (arXiv 2302.04867): predictor UniP-p (algorithm 2), corrector UniC-p (algorithm 1).

    code                  paper
    h                     h_i = λ_{t_i} − λ_{t_{i−1}}
    base                  the part of eq. 3 (noise) or 8 (data) that is known without the derivatives
    ratios                r_m = (λ_{s_m} − λ_{t_{i−1}})/h_i, the last one 1
    differences           D_m/r_m, with D_m = m(s_m) − m(t_{i−1})
    scale                 σ_{t_i} B(h_i), or α_{t_i} B(h_i) for the data
    predictor, corrector  a_p without and with the new output: R_p(h) a_p B(h) = φ_p(h), eq. 5 and 6

wl-zhao's order of operations. A prediction and its correction share `base` and `differences`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ref.schedulers.log_snr import Levels


class UniPCVariant(str, Enum):
    """B(h), or what takes its place."""

    BH1 = "bh1"
    """Published, wl-zhao: B(h) = h."""
    BH2 = "bh2"
    """Published, wl-zhao: B(h) = e^h − 1."""
    VARY_COEFF = "vary_coeff"
    """wl-zhao: UniPC_v (appendix C), coefficients that depend on the ratios only, each with its own φ_k."""


class Start(NamedTuple):
    """Where a prediction and its correction start from."""

    base: Tensor
    differences: list[Tensor]
    newest: Tensor  # m(t_{i−1})


class Update(NamedTuple):
    """The numbers of one step."""

    x: float
    m_0: float
    ratios: tuple[float, ...]  # of the earlier outputs
    predictor: tuple[tuple[float, Tensor], ...]  # sums of differences: factor, weights
    corrector: tuple[tuple[float, Tensor], ...]
    new: tuple[float, float]  # factor and weight of the new output's difference
    varies: bool = False

    def start(self, x: Tensor, outputs: Sequence[Tensor]) -> Start:
        """outputs: those of the last levels, the newest first."""
        m_0 = outputs[0]
        earlier = zip(outputs[1:], self.ratios, strict=False)
        return Start(self.x * x - self.m_0 * m_0, [(m - m_0) / r for m, r in earlier], m_0)

    def predict(self, start: Start) -> Tensor:
        """x̃_{t_i}, where the network is evaluated."""
        x_t = start.base
        for factor, weights in self.predictor:
            x_t = x_t - factor * self._sum(weights, start.differences)
        return x_t

    def correct(self, start: Start, output: Tensor) -> Tensor:
        """x̃^c_{t_i}, from the output at x̃_{t_i}."""
        factor, weight = self.new
        difference = weight * (output - start.newest)
        if self.varies:
            x_t = start.base
            for each, weights in self.corrector:
                x_t = x_t - each * self._sum(weights, start.differences)
            return x_t - factor * difference
        for _, weights in self.corrector:
            difference = self._sum(weights, start.differences) + difference
        return start.base - factor * difference

    def _sum(self, weights: Tensor, values: list[Tensor]) -> Tensor:
        if len(values) == 1:
            return weights.item() * values[0]
        # As the original calls it: einsum rounds small and large tensors differently.
        if self.varies:
            return torch.einsum("bk...,k->b...", torch.stack(values, dim=1), weights.to(values[0].device))
        return torch.einsum("k,k...->...", weights.to(values[0].device), torch.stack(values))


def make_update(
    variant: UniPCVariant, of_data: bool, levels: Levels, index: int, places: Sequence[int], order: int
) -> Update:
    """The update of `order` from evaluation `index` to the next.

    levels: (n + 1,) of every evaluation and of the end. places: those of `index` and of the earlier outputs, the newest
    first, at least `order` of them.
    """
    start, end = levels.at([index]), levels.at([index + 1])
    h = end.half_log_snr - start.half_log_snr
    if math.isinf(h.item()) and not of_data:
        # σ_t = 0: the limit of the noise's weight, of which both factors run off.
        ratio = end.alpha / start.alpha
        return Update(ratio.item(), (ratio * start.sigma).item(), (), (), (), (0.0, 0.0))
    known = tuple(((levels.half_log_snr[[place]] - start.half_log_snr) / h).item() for place in places[1:order])
    ratios = torch.tensor([*known, 1.0], dtype=h.dtype)
    hh = -h if of_data else h
    scale = end.alpha if of_data else end.sigma
    whole = end.sigma / start.sigma if of_data else torch.exp(end.log_alpha - start.log_alpha)
    x, m_0 = whole.item(), (scale * torch.expm1(hh)).item()
    if math.isinf(hh.item()):
        return Update(x, m_0, (), (), (), (0.0, 0.0))
    if variant is UniPCVariant.VARY_COEFF:
        return _varying(x, m_0, known, ratios, scale, hh)
    return _fixed(variant, x, m_0, known, ratios, scale, hh)


def _fixed(
    variant: UniPCVariant, x: float, m_0: float, known: tuple[float, ...], ratios: Tensor, scale: Tensor, hh: Tensor
) -> Update:
    order = len(ratios)
    b_h = hh if variant is UniPCVariant.BH1 else torch.expm1(hh)
    h_phi = torch.expm1(hh) / hh - 1
    factorial = 1
    rows, right = [], []
    for k in range(1, order + 1):
        rows.append(torch.pow(ratios, k - 1))
        right.append(h_phi * factorial / b_h)
        factorial *= k + 1
        h_phi = h_phi / hh - 1 / factorial
    matrix, vector = torch.stack(rows), torch.cat(right)
    half = ratios.new_tensor([0.5])
    corrector = half if order == 1 else torch.linalg.solve(matrix, vector)
    factor = (scale * b_h).item()
    if order == 1:
        return Update(x, m_0, known, (), (), (factor, corrector[-1].item()))
    predictor = half if order == 2 else torch.linalg.solve(matrix[:-1, :-1], vector[:-1])
    return Update(x, m_0, known, ((factor, predictor),), ((factor, corrector[:-1]),), (factor, corrector[-1].item()))


def _varying(x: float, m_0: float, known: tuple[float, ...], ratios: Tensor, scale: Tensor, hh: Tensor) -> Update:
    order = len(ratios)
    columns, column = [], torch.ones_like(ratios)
    for k in range(1, order + 1):
        columns.append(column)
        column = column * ratios / (k + 1)
    matrix = torch.stack(columns, dim=1)
    corrector = torch.linalg.inv(matrix)
    h_phi, factorial = torch.expm1(hh), 1
    factors = []
    for k in range(1, order + 2):
        factors.append((scale * h_phi).item())
        h_phi = h_phi / hh - 1 / factorial
        factorial *= k + 1
    # A quirk: the new output's weight is of the last row but one.
    new = (factors[order], corrector[max(order - 2, 0)][-1].item())
    if order == 1:
        return Update(x, m_0, known, (), (), new, varies=True)
    predictor = torch.linalg.inv(matrix[:-1, :-1])
    return Update(
        x,
        m_0,
        known,
        tuple(zip(factors[1:order], predictor, strict=True)),
        tuple((factor, row[:-1]) for factor, row in zip(factors[1:order], corrector, strict=False)),
        new,
        varies=True,
    )
