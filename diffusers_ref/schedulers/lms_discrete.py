"""Linear multistep sampling along noise levels of dx/dσ = (x − D(x; σ)) / σ (EDM, arXiv 2206.00364, eq. 3): the
Adams–Bashforth method for uneven steps, crowsonkb's `sample_lms`.

    code                  meaning
    sigmas                σ_0 > ... > σ_n
    at.sigma              σ_i
    derivative            d_i = (x_i − D(x_i; σ_i)) / σ_i
    history               d_i, d_{i−1}, ..., newest first
    weights               ∫ from σ_i to σ_{i+1} of the Lagrange polynomial l_j(σ) over the levels of the history
    prev_sample           x_{i+1} = x_i + Σ_j weights_j d_{i−j}

The integrals of these polynomials are exact under the 21-point Gauss–Kronrod rule that the original's QUADPACK begins
with, and ends with. Its integrand is float32 where the levels are, and that is reproduced, as its rounding is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time
from diffusers_ref.schedulers.sigma_scheduler import SIGMA_CONVENTIONS, Evaluation, SigmaScheduler


class _Step(NamedTuple):
    level: int  # i


class LMSDiscreteScheduler(SigmaScheduler):
    """Adams–Bashforth along noise levels; the published options are those of `SigmaScheduler`.

    The method takes as many past outputs as there are, up to the order that `step` is given: it can start in the
    middle, too. Nothing is drawn. Levels must descend strictly.
    """

    convention_options = SIGMA_CONVENTIONS

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        coefficients: str | None = None,
        sigma_schedule: str | None = None,
        sigma_options: Mapping[str, Any] | None = None,
        quantize: bool = False,
    ) -> None:
        self._prepare()

    def _evaluations(self, sigmas: Tensor) -> list[Evaluation]:
        if not (sigmas[1:] < sigmas[:-1]).all():
            raise ValueError(f"sigmas must descend strictly for a multistep method, not {sigmas.tolist()}")
        self._weights: dict[tuple[torch.dtype, int], list[list[float]]] = {}
        return [Evaluation(sigma, _Step(i), level=i) for i, sigma in enumerate(sigmas[:-1])]

    def _restart(self) -> None:
        self._history: list[Tensor] = []

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """One step of the method.

        model_output, sample: (B, C, ...), the network's output and the state that it saw, before scaling.
        timestep: an entry of `timesteps`. order: how many outputs the step combines at most, at least 1.
        Returns the next state and D in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit,
        and for an order below 1.
        """
        dtype = self._check(model_output, sample)
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise ValueError(f"order={order!r} is not allowed; it must be a whole number of at least 1")
        index = self._place(timestep)
        at = self._numbers_for(dtype)[index]
        self._pass(index)
        x = sample.to(dtype)

        denoised = self._denoised(model_output.to(dtype), x, at)
        derivative = (x - denoised) / at.sigma
        self._history = [derivative, *self._history[: order - 1]]
        weights = self._weights_of(dtype, len(self._history))[index]
        total = weights[0] * derivative
        for weight, past in zip(weights[1:], self._history[1:], strict=True):
            total = total + weight * past
        prev_sample = x + total

        result = SchedulerOutput(prev_sample.to(sample.dtype), denoised.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _weights_of(self, dtype: torch.dtype, order: int) -> list[list[float]]:
        """The weights of `order` outputs at every entry that has that many before it; none at earlier ones."""
        if (dtype, order) not in self._weights:
            levels = self.sigmas.to(dtype).numpy()
            columns = [_integrals(levels, order, j).tolist() for j in range(order)]
            self._weights[dtype, order] = [[]] * (order - 1) + [list(row) for row in zip(*columns, strict=True)]
        return self._weights[dtype, order]


def _integrals(levels: np.ndarray, order: int, j: int) -> np.ndarray:
    """∫ l_j from σ_i to σ_{i+1} for every i >= order − 1: float64, of an integrand in the precision of `levels`."""
    count = len(levels) - 1
    past = [levels[order - 1 - k : count - k] for k in range(order)]  # σ_{i−k} for these i
    start, end = past[0].astype(np.float64), levels[order:].astype(np.float64)
    center, half = 0.5 * (start + end), 0.5 * (end - start)

    def polynomial(nodes: np.ndarray) -> np.ndarray:
        tau = nodes.astype(levels.dtype)
        product = np.ones_like(tau)
        for k in range(order):
            if k != j:
                product = product * ((tau - past[k]) / (past[j] - past[k]))
        return product.astype(np.float64)

    total = _CENTER_WEIGHT * polynomial(center)
    for node, weight in _KRONROD:
        total = total + weight * (polynomial(center - half * node) + polynomial(center + half * node))
    return total * half


_CENTER_WEIGHT = 0.149445554002916905664936468389821
_KRONROD = (
    (0.973906528517171720077964012084452, 0.032558162307964727478818972459390),
    (0.865063366688984510732096688423493, 0.075039674810919952767043140916190),
    (0.679409568299024406234327365114874, 0.109387158802297641899210590325805),
    (0.433395394129247190799265943165784, 0.134709217311473325928054001771707),
    (0.148874338981631210884826001129720, 0.147739104901338491374841515972068),
    (0.995657163025808080735527280689003, 0.011694638867371874278064396062192),
    (0.930157491355708226001207180059508, 0.054755896574351996031381300244580),
    (0.780817726586416897063717578345042, 0.093125454583697605535065465083366),
    (0.562757134668604683339000099272694, 0.123491976262065851077958109585166),
    (0.294392862701460198131126603103866, 0.142775938577060080797094273138717),
)
"""Nodes in (0, 1) and weights of the 21-point rule, in QUADPACK's order of summation: Gauss' nodes first."""
