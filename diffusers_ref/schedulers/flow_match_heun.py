"""Heun's method for flow matching: EDM's algorithm 1 (arXiv 2206.00364) on the straight paths of arXiv 2403.03206.

    code              symbol
    sample            x_σ; at the second evaluation of a step, the point that Euler's method reaches
    base              x_σ where the step began
    slope             v_θ(x_σ, σ) there
    prev_sample       x_σ', at the next level σ'

A step evaluates the network at σ and at σ'; the last one, which ends in data, at σ only. `timesteps` lists the
evaluations in order, so n steps are 2n − 1 entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusers_ref.configuration import register_to_config
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.flow_scheduler import FlowScheduler
from diffusers_ref.schedulers.scheduler import SchedulerOutput, Time


class FlowMatchHeunDiscreteScheduler(FlowScheduler):
    """x' = x + (σ' − σ) (v(x, σ) + v(x_Euler, σ')) / 2.

    Published options: num_train_timesteps and shift; here it has all options of the levels, see `FlowScheduler`.
    The step never draws: no original adds noise to a flow before the network.
    """

    order = 2
    convention_options = frozenset(
        {
            "use_dynamic_shifting",
            "base_shift",
            "max_shift",
            "base_image_seq_len",
            "max_image_seq_len",
            "invert_sigmas",
            "shift_terminal",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "time_shift_type",
            "flow_grid",
            "network_time",
            "time_dtype",
        }
    )

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        flow_grid: str = "published",
        network_time: str = "timestep",
        time_dtype: str = "float32",
    ) -> None:
        self._prepare()

    def _at_evaluations(self, values: Tensor) -> Tensor:
        return torch.cat([values[:1], values[1:].repeat_interleave(2)])

    def _begins_step(self, index: int) -> bool:
        return index % 2 == 0

    def _restart(self) -> None:
        self._base: Tensor | None = None
        self._slope: Tensor | None = None

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take the output of one evaluation; return the input of the next.

        model_output: (B, C, ...) the velocity. timestep: an entry of `timesteps`. sample: (B, C, ...).
        generator: taken as by other samplers; nothing is drawn.
        Returns the next input in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list or begins no step, and for
        shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        coefficients = self._coefficients(dtype)
        index = self._advance(timestep)
        move = coefficients[index // 2]
        x, velocity = sample.to(dtype), model_output.to(dtype)

        if self._slope is None or self._base is None:
            self._base, self._slope = x, velocity
            prev_sample = x + move * velocity
        else:
            prev_sample = self._base + move * (0.5 * (self._slope + velocity))
            self._base = self._slope = None

        result = SchedulerOutput(prev_sample.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _make_coefficients(self, sigmas: Tensor) -> list[float]:
        """σ' − σ of every step."""
        return sigmas.diff().tolist()
