"""The analytic network that scheduler fixtures are run with: a noise predictor in closed form, cheap and live.

Data is a two-component mixture per pixel, x0 = ±μ + s·n with a fixed pattern μ, diffused by ᾱ(u) = exp(−0.1u − 9.95u²),
u = (t + 1.5) / T, the continuous form of the linear schedule. Its exact E[x0 | x_t] is a tanh; a small term that
couples neighbouring pixels and depends on t is added, so that a wrong time, axis or sign shows. It accepts any real t
≥ −1, keeps x0 inside the data's range (so that clipping is sometimes active and mostly not) and never divides by zero.

Originals with other measures of noise are served by other `schedule`s of the same mixture, x_t = a·x0 + b·noise, in a
form that divides by neither a nor b, so that it is accurate from pure noise to the last level.

Recorders run the original with it and replays run the implementation with it; it belongs to neither.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch

COMPONENT_STD = 0.25


@dataclass(frozen=True)
class AnalyticNetwork:
    """`network(x, t)`: x (B, C, H, W) floating, t (B,) or scalar; returns (B, C, H, W), with `variance` (B, 2C, H, W).

    Args:
        num_train_timesteps: T of the schedule that it is made for.
        prediction: what the first C channels predict.
        variance: what the other C channels hold: nothing, log σ² ("learned") or v in about [-1, 1] ("learned_range").
        time_scale: what the original multiplies t by before it reaches the network (rescaled timesteps).
        schedule: what t / time_scale says of x_t = a·x0 + b·noise:
            "vp": a training timestep of T, as above;
            "sigma": σ, with a = 1 and b = σ;
            "edm": log(σ)/4, and the network's input is x_t / √(σ² + sigma_data²) (EDM, arXiv 2206.00364, table 1);
            "ve_edm": log(σ/2), a = 1 and b = σ (the column VE of the same table);
            "flow": b, with a = 1 - b (rectified flow);
            "angle": a = cos(πt/2), b = sin(πt/2) (arXiv 2202.00512).
        sigma_data: of "edm".
        classifier_scale: of the gradient that guides the sampler (of "vp"); 0 where nothing does.
    """

    num_train_timesteps: int = 1000
    prediction: Literal[
        "epsilon", "sample", "v_prediction", "previous_sample", "score", "edm", "flow", "negative_epsilon"
    ] = "epsilon"
    variance: Literal["learned", "learned_range"] | None = None
    time_scale: float = 1.0
    schedule: Literal["vp", "sigma", "edm", "ve_edm", "flow", "angle"] = "vp"
    sigma_data: float = 0.5
    classifier_scale: float = 0.0

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AnalyticNetwork:
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value != _LATER[name]}

    def later(self, t: torch.Tensor) -> torch.Tensor:
        """t moved by about a thousandth of the way from clean to noisy: what a small error of time looks like."""
        if self.schedule == "vp":
            return t.double() + self.time_scale
        if self.schedule == "sigma":
            return t.double() * 1.005
        return t.double() + (0.005 if self.schedule == "ve_edm" else 0.001) * self.time_scale

    def __call__(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        times = tuple(t.to(torch.float64).reshape(-1).tolist()) if torch.is_tensor(t) else (float(t),)
        if self.schedule != "vp":
            return self._elsewhere(x, times)
        at = _at(times, self.num_train_timesteps, self.time_scale, tuple(x.shape[1:]), x.dtype, x.device)
        mean_x0 = (at.a_variance * x + at.b2_mu * torch.tanh(at.a_mu * x / at.spread)) / at.spread
        epsilon = (x - at.a * mean_x0) / at.b
        epsilon = epsilon + 0.05 * torch.sin(2.0 * x.roll(1, dims=-1) + at.ten_u)
        if self.prediction == "epsilon":
            output = epsilon
        elif self.prediction == "sample":
            output = (x - at.b * epsilon) / at.a
        elif self.prediction == "v_prediction":
            output = at.a * epsilon - at.b * (x - at.b * epsilon) / at.a
        elif self.prediction == "score":
            output = -epsilon / at.b
        elif self.prediction != "previous_sample":
            raise ValueError(f"the schedule 'vp' has no prediction {self.prediction!r}")
        else:  # x_{t-1}: a small step against the noise
            output = x - (10.0 / self.num_train_timesteps) * (at.u.to(x.dtype) + 0.05) * epsilon
        if self.variance is None:
            return output
        wave = torch.sin(3.0 * x + (7.0 * at.u).to(x.dtype))
        if self.variance == "learned":
            wave = torch.log((20.0 / self.num_train_timesteps) * (at.u + 0.005)).to(x.dtype) + 0.3 * wave
        return torch.cat([output, wave], dim=1)

    def gradient(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        """∇_x log p(y | x_t) · classifier_scale, where y says that every pixel of x0 is of the component +μ; shapes as
        of the network itself."""
        times = tuple(t.to(torch.float64).reshape(-1).tolist()) if torch.is_tensor(t) else (float(t),)
        at = _at(times, self.num_train_timesteps, self.time_scale, tuple(x.shape[1:]), x.dtype, x.device)
        slope = at.a_mu / at.spread
        return self.classifier_scale * slope * (1 - torch.tanh(slope * x))

    def _elsewhere(self, x: torch.Tensor, times: tuple[float, ...]) -> torch.Tensor:
        """The output under the other schedules."""
        at = _levels(self.schedule, times, self.time_scale, self.sigma_data, x.dtype, x.device)
        mu = _pattern(tuple(x.shape[1:]), x.dtype, x.device)
        if self.schedule == "edm":
            x = x * at.scale
        spread = at.a * at.a * COMPONENT_STD**2 + at.b * at.b
        tanh = torch.tanh(at.a * mu * x / spread)
        coupling = 0.05 * torch.sin(2.0 * x.roll(1, dims=-1) / (at.a * at.a + at.b * at.b).sqrt() + at.ten_u)
        epsilon = at.b * (x - at.a * mu * tanh) / spread + at.a * coupling
        x0 = (at.a * COMPONENT_STD**2 * x + at.b * at.b * mu * tanh) / spread - at.b * coupling
        if self.prediction == "epsilon":
            return epsilon
        if self.prediction == "negative_epsilon":
            return -epsilon
        if self.prediction == "sample":
            return x0
        if self.prediction == "v_prediction":
            return at.a * epsilon - at.b * x0
        if self.prediction == "flow":
            return epsilon - x0
        if self.prediction == "score":
            return -epsilon / at.b
        if self.prediction == "edm":  # F of D = c_skip·x + c_out·F
            return (at.b / (at.scale * at.scale) * x - epsilon) * (at.scale / self.sigma_data)
        raise ValueError(f"the schedule {self.schedule!r} has no prediction {self.prediction!r}")


_LATER = {"schedule": "vp", "sigma_data": 0.5, "classifier_scale": 0.0}  # left out of manifests where they say nothing


class _Levels(NamedTuple):
    """What depends on the time only, each (B or 1, 1, 1, 1)."""

    a: torch.Tensor
    b: torch.Tensor
    ten_u: torch.Tensor
    scale: torch.Tensor  # √(b² + sigma_data²)


@lru_cache(maxsize=8192)
def _levels(
    schedule: str, times: tuple[float, ...], time_scale: float, sigma_data: float, dtype: torch.dtype, device: Any
) -> _Levels:
    time = torch.tensor(times, dtype=torch.float64, device=device).reshape(-1, 1, 1, 1) / time_scale
    if schedule == "flow":
        a, b, u = 1 - time, time, time
    elif schedule == "angle":
        a, b, u = torch.cos(time * math.pi / 2), torch.sin(time * math.pi / 2), time
    else:
        b = {"sigma": time, "edm": torch.exp(4 * time), "ve_edm": 2 * torch.exp(time)}[schedule]
        a, u = torch.ones_like(b), torch.log1p(b) / 5
    return _Levels(*(value.to(dtype) for value in (a, b, 10 * u, (b * b + sigma_data**2).sqrt())))


class _At(NamedTuple):
    """What depends on the time only, each (B or 1, 1, 1, 1) or with the pattern μ (B or 1, C, H, W)."""

    u: torch.Tensor  # float64
    ten_u: torch.Tensor
    a: torch.Tensor  # √ᾱ
    b: torch.Tensor  # √(1 − ᾱ)
    spread: torch.Tensor  # ᾱ s² + 1 − ᾱ
    a_variance: torch.Tensor
    b2_mu: torch.Tensor
    a_mu: torch.Tensor


@lru_cache(maxsize=8192)
def _at(
    times: tuple[float, ...],
    num_train_timesteps: int,
    time_scale: float,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> _At:
    time = torch.tensor(times, dtype=torch.float64, device=device).reshape(-1, 1, 1, 1) / time_scale
    u = (time + 1.5) / num_train_timesteps
    alpha_bar = torch.exp(-0.1 * u - 9.95 * u * u)
    a, b = (value.to(dtype) for value in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
    mu = _pattern(shape, dtype, device)
    spread = a * a * COMPONENT_STD**2 + b * b
    return _At(u, (10.0 * u).to(dtype), a, b, spread, a * COMPONENT_STD**2, b * b * mu, a * mu)


@lru_cache(maxsize=64)
def _pattern(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """μ, (1, C, H, W): a fixed smooth pattern with values in ±[0.35, 0.95]."""
    index = torch.arange(math.prod(shape), dtype=torch.float64, device=device)
    wave = 0.65 + 0.3 * torch.sin(1.7 * index + 0.3)
    return (wave * torch.where(index % 3 < 2, 1.0, -1.0)).to(dtype).reshape(1, *shape)
