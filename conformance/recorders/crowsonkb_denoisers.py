"""What recorders of crowsonkb/k-diffusion share: its denoisers around an analytic network, its grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.scheduler_case import Run

CHANGES = ("the package's other modules, torchdiffeq and torchvision stubbed",)
LIFTED = (
    "the levels and x_T are float32 as the original makes them, and handed to the sampler as float64",
    "DiscreteSchedule.sigma_to_t: a float64 run is given the network times of the float32 run",
)
SHAPE = (2, 1, 2, 3)
"""(B, C, H, W) of most cases, small so that every step is stored in full."""

Denoise = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Wrapped:
    """What a sampler runs around: a CompVis model, its denoiser, and a grid of `steps` levels.

    schedule: "discrete" for the denoiser's get_sigmas, or the end of a `get_sigmas_` function's name, with `options`.
    betas: kind, start, end and number of the model's forward variances; "linear" is CompVis' name for linear in sqrt.
    """

    steps: int
    schedule: str = "discrete"
    prediction: str = "epsilon"
    quantize: bool = False
    options: dict[str, float] = field(default_factory=dict)
    betas: tuple[str, float, float, int] = ("sqrt_linear", 1e-4, 0.02, 1000)

    def denoiser(self, code: SimpleNamespace, network: Callable[..., torch.Tensor]) -> Any:
        """CompVisDenoiser or CompVisVDenoiser."""
        kind = code.external.CompVisVDenoiser if self.prediction == "v_prediction" else code.external.CompVisDenoiser
        alphas = alphas_cumprod(*self.betas)
        model = SimpleNamespace(alphas_cumprod=alphas, apply_model=lambda x, t, cond: network(x, t))
        return kind(model, quantize=self.quantize)

    def sigmas(self, code: SimpleNamespace, denoiser: Any) -> torch.Tensor:
        """(steps + 1,) float32, by the original's function."""
        if self.schedule == "discrete":
            return denoiser.get_sigmas(self.steps)
        ends = {} if self.schedule == "vp" else {"sigma_min": denoiser.sigma_min.item(),
                                                "sigma_max": denoiser.sigma_max.item()}  # fmt: skip
        return getattr(code.sampling, f"get_sigmas_{self.schedule}")(self.steps, **(ends | self.options))

    def sampler(
        self, code: SimpleNamespace, sample: Callable[[Denoise, torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> Callable[..., Run]:
        """`run` of a case: `sample(model, x, sigmas)` from x = randn · sigmas[0], with the denoiser as model."""
        times: list[torch.Tensor] = []

        def run(network: Any, shape: Sequence[int], dtype: torch.dtype) -> Run:
            denoiser, model, found = self.watched(code, network, dtype, times)
            sigmas = self.sigmas(code, denoiser)
            initial = torch.randn(shape) * sigmas[0]
            final = sample(model, initial.to(dtype, copy=True), sigmas.to(dtype))
            return Run(final, found, {"sigmas": sigmas}, initial)

        return run

    def watched(
        self, code: SimpleNamespace, network: Any, dtype: torch.dtype, times: list[torch.Tensor]
    ) -> tuple[Any, Denoise, list[torch.Tensor]]:
        """The denoiser; a sampler's model around it, which tells the probe its state; what it answers.

        times: of the network, kept by a float32 run, given to others.
        """
        denoiser = self.denoiser(code, network)
        sigma_to_t = denoiser.sigma_to_t
        if dtype == torch.float32:
            times.clear()

            def kept(sigma: torch.Tensor) -> torch.Tensor:
                times.append(sigma_to_t(sigma))
                return times[-1]

            denoiser.sigma_to_t = kept
        else:
            given = iter(times)
            denoiser.sigma_to_t = lambda sigma: next(given)
        found: list[torch.Tensor] = []

        def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            network.at(x)
            found.append(denoiser(x, sigma, cond=None))
            return found[-1]

        return denoiser, model, found

    def config(self) -> dict[str, Any]:
        """The options that all classes over noise levels share."""
        kind, start, end, count = self.betas
        return {
            "num_train_timesteps": count,
            "beta_start": start,
            "beta_end": end,
            "beta_schedule": {"sqrt_linear": "linear", "linear": "scaled_linear"}[kind],
            "coefficients": "compvis",
            "prediction_type": self.prediction,
            "sigma_schedule": self.schedule,
            "sigma_options": self.options or None,
            "quantize": self.quantize,
        }

    def network(self) -> AnalyticNetwork:
        """A network of the denoiser's kind."""
        return AnalyticNetwork(self.betas[3], prediction=self.prediction)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The part of a case's name that tells these choices."""
        kind = {"epsilon": "", "v_prediction": "-v"}[self.prediction]
        options = "".join(f"-{name.replace('_', '')}{value:g}" for name, value in self.options.items())
        betas = "" if self.betas == Wrapped(1).betas else f"-{self.betas[0].replace('_', '')}{self.betas[3]}"
        return f"{self.schedule}{options}{kind}{'-quantize' if self.quantize else ''}{betas}-{self.steps}"


def alphas_cumprod(kind: str, start: float, end: float, count: int) -> torch.Tensor:
    """(T,) float32, the buffer of a CompVis model (ldm/models/diffusion/ddpm.py, register_schedule)."""
    if kind == "linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(start, end, count, dtype=torch.float64)
    return torch.tensor(np.cumprod(1.0 - betas.numpy(), axis=0), dtype=torch.float32)
