"""What a network's output means to a solver of an ODE: the data x_0 or the noise ε of x_t = α_t x_0 + σ_t ε."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.thresholding import dynamic_threshold


class SolverPrediction(str, Enum):
    """What the network returns."""

    EPSILON = "epsilon"
    """Published; "noise" of LuChengTHU: ε."""
    SAMPLE = "sample"
    """Published; "x_start" of LuChengTHU: x_0."""
    V_PREDICTION = "v_prediction"
    """Published; "v" of LuChengTHU: α_t ε − σ_t x_0."""
    FLOW_PREDICTION = "flow_prediction"
    """Published: ε − x_0, of x_t = (1 − σ)·x_0 + σ·ε."""
    SCORE = "score"
    """LuChengTHU: −ε/σ_t."""


class OutputConversion:
    """From the network's output to what the solver integrates.

    integrates_data: the solver integrates x_0, else ε.
    through_epsilon: LuChengTHU's code: every output is turned into ε first, and x_0 into ε never back, so that
        thresholding has an effect on x_0 only.
    """

    def __init__(self, config: Mapping[str, Any], integrates_data: bool, through_epsilon: bool) -> None:
        self._prediction = choose(SolverPrediction, "prediction_type", config["prediction_type"])
        self._integrates_data, self._through_epsilon = integrates_data, through_epsilon
        self._thresholding = config["thresholding"]
        self._ratio = config["dynamic_thresholding_ratio"]
        self._least, self._most = config["sample_min_value"], config["sample_max_value"]
        if config["variance_type"] not in (None, "learned", "learned_range"):
            raise ConfigError(
                f"variance_type={config['variance_type']!r} is not known; allowed: None, 'learned', 'learned_range'"
            )
        self.channel_factor = 1 if config["variance_type"] is None else 2
        """Channels of the output per channel of the sample; the second half, a learned variance, is left unused."""
        if self._prediction is SolverPrediction.FLOW_PREDICTION and not config["use_flow_sigmas"]:
            raise ConfigError("prediction_type='flow_prediction' needs use_flow_sigmas=True")
        if not self._least > 0 or (self._most is not None and not self._least <= self._most):
            raise ConfigError(
                f"sample_min_value={self._least} and sample_max_value={self._most} are not allowed; the first must be "
                "above 0 and not above the second"
            )

    def __call__(self, output: Tensor, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor | None]:
        """What the solver integrates, and x_0 if it is known."""
        output = self._mean(output, x)
        if self._integrates_data:
            x0 = self.x0(output, x, alpha, sigma)
            return x0, x0
        epsilon = self.epsilon(output, x, alpha, sigma)
        if not self._thresholding or self._through_epsilon:
            return epsilon, None
        x0 = self._limited((x - sigma * epsilon) / alpha)
        return (x - alpha * x0) / sigma, x0

    def x0(self, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """x_0, thresholded."""
        output = self._mean(output, x)
        if not self._through_epsilon and self._prediction is not SolverPrediction.EPSILON:
            return self._limited(self._direct_x0(output, x, alpha, sigma))
        return self._limited((x - sigma * self.epsilon(output, x, alpha, sigma)) / alpha)

    def _direct_x0(self, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
        if self._prediction is SolverPrediction.SAMPLE:
            return output
        if self._prediction is SolverPrediction.V_PREDICTION:
            return alpha * x - sigma * output
        if self._prediction is SolverPrediction.FLOW_PREDICTION:
            return x - sigma * output
        return (x + sigma**2 * output) / alpha

    def epsilon(self, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """ε; of outputs without a learned variance."""
        if self._prediction is SolverPrediction.EPSILON:
            return output
        if self._prediction is SolverPrediction.SAMPLE:
            return (x - alpha * output) / sigma
        if self._prediction is SolverPrediction.V_PREDICTION:
            return alpha * output + sigma * x
        if self._prediction is SolverPrediction.FLOW_PREDICTION:
            return x + alpha * output
        return -sigma * output

    def _mean(self, output: Tensor, x: Tensor) -> Tensor:
        return output if self.channel_factor == 1 else output[:, : x.shape[1]]

    def _limited(self, x0: Tensor) -> Tensor:
        return dynamic_threshold(x0, self._ratio, self._most, self._least) if self._thresholding else x0
