"""What schedulers over a discrete chain share: tables of T timesteps, the integer grid, the forward process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusers_ref.schedulers.betas import NoiseTable, make_betas
from diffusers_ref.schedulers.conventions import BetaSchedule, Coefficients, TimestepSpacing, choose
from diffusers_ref.schedulers.scheduler import SchedulerMixin, Time
from diffusers_ref.schedulers.timesteps import make_grid


class ChainScheduler(SchedulerMixin):
    """A sampler over the variance-preserving chain of T training timesteps (DDPM, arXiv 2006.11239, eq. 2 to 4)."""

    _recipes: ClassVar[tuple[Coefficients, ...]] = (
        Coefficients.FLOAT64,
        Coefficients.FLOAT32_CUMPROD,
        Coefficients.COMPVIS,
    )
    """The recipes of the originals that a class reproduces."""

    _table: NoiseTable
    _spacing: TimestepSpacing

    # --- construction ------------------------------------------------------------------------------------------------

    def _prepare(self, default_coefficients: Coefficients) -> None:
        """Build the tables that `self.config` describes; called once, by the constructors."""
        config = self.config
        self._spacing = choose(TimestepSpacing, "timestep_spacing", config.timestep_spacing)
        schedule = choose(BetaSchedule, "beta_schedule", config.beta_schedule)
        coefficients = default_coefficients
        if config.coefficients is not None:
            coefficients = choose(Coefficients, "coefficients", config.coefficients, allowed=self._recipes)
        betas = make_betas(
            schedule,
            config.beta_start,
            config.beta_end,
            config.num_train_timesteps,
            trained_betas=config.trained_betas,
            rescale_zero_snr=config.get("rescale_betas_zero_snr", False),
            coefficients=coefficients,
        )
        self._table = NoiseTable.from_betas(betas, coefficients)
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    def __len__(self) -> int:
        """T, the number of training timesteps."""
        return len(self._table.exact_betas)

    @property
    def betas(self) -> Tensor:
        """(T,) beta_t, on the CPU: float64 for the coefficients "float64", else float32."""
        return self._table.betas

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) abar_t, on the CPU: float64 for the coefficients "float64", else float32."""
        return self._table.alphas_cumprod

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """() the abar that follows the last timestep of the grid: 1, or abar_0 where `set_alpha_to_one` is false."""
        first = self.alphas_cumprod[0]
        return torch.ones_like(first) if self.config.get("set_alpha_to_one", True) else first.clone()

    # --- the grid ----------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
        respacing: str | Sequence[int] | None = None,
    ) -> None:
        """Choose the grid and begin anew, as if the scheduler had just been made.

        Exactly one of these says which of the T training timesteps are visited:
        num_inference_steps: how many, 1 to T, by the rule of `timestep_spacing` (some rules visit more than asked).
        timesteps: the grid itself, in descending order.
        respacing: sections of the spacing "improved_diffusion", as "10,15,20", [10, 15, 20] or "ddim25".

        device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        spacing, offset = self._grid_rule()
        grid = make_grid(
            spacing,
            len(self),
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            respacing=respacing,
            steps_offset=offset,
        )
        times = self._list_evaluations(grid, explicit=timesteps is not None)
        self._grid = grid
        self._coefficient_cache: dict[Any, list[Any]] = {}
        self._adopt(times, len(grid), device)
        self._coefficients(torch.float32)

    def _grid_rule(self) -> tuple[TimestepSpacing, int]:
        """The rule of the grid and the offset that is added to it."""
        return self._spacing, self.config.steps_offset

    def _list_evaluations(self, grid: list[int], explicit: bool) -> list[Time]:
        """The time of every evaluation of the network on `grid`; `explicit` if the user gave it."""
        return list(grid)

    def _coefficients(self, dtype: torch.dtype) -> list[Any]:
        """The coefficients of every entry of `timesteps`, for arithmetic in `dtype`."""
        raise NotImplementedError

    def network_timestep(self, timestep: Time | Tensor) -> Time | Tensor:
        """What the network is given as time at the entry `timestep` of `timesteps`.

        The entry itself; with the option `rescale_timesteps` (openai), timestep · (1000/T) as a float32 tensor.
        """
        if not self.config.get("rescale_timesteps", False):
            return timestep
        return torch.as_tensor(timestep).float() * (1000.0 / len(self))

    @staticmethod
    def _gradient(gradient: Tensor, x: Tensor) -> Tensor:
        """A classifier's gradient by x, checked, in the dtype of the arithmetic, which is that of x."""
        if not isinstance(gradient, Tensor) or gradient.shape != x.shape:
            given = tuple(gradient.shape) if isinstance(gradient, Tensor) else type(gradient).__name__
            raise ValueError(
                f"classifier_gradient must be a tensor of the sample's shape {tuple(x.shape)}, not {given}"
            )
        return gradient.to(x.device, x.dtype)

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """Draw x_t: sqrt(abar_t) · x_0 + sqrt(1 - abar_t) · noise.

        original_samples, noise: (B, ...). timesteps: integers in [0, T-1], () or (B,). Returns (B, ...).
        """
        signal, noise_level = self._forward_coefficients(original_samples, noise, timesteps)
        return (signal * original_samples + noise_level * noise).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """v_t = sqrt(abar_t) · noise - sqrt(1 - abar_t) · x_0 (arXiv 2202.00512); shapes as in `add_noise`."""
        signal, noise_level = self._forward_coefficients(sample, noise, timesteps)
        return (signal * noise - noise_level * sample).to(sample.dtype)

    def _forward_coefficients(self, x0: Tensor, noise: Tensor, timesteps: Tensor | int) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to broadcast over `x0`, in the dtype of the arithmetic."""
        dtype = self._check(noise, x0)
        times = torch.as_tensor(timesteps).cpu()
        if times.is_floating_point() or times.is_complex() or times.dtype == torch.bool:
            raise ValueError(f"timesteps must be integers, not {times.dtype}")
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(x0))):
            raise ValueError(f"timesteps has the shape {tuple(times.shape)}; allowed: () or ({len(x0)},)")
        if times.numel() and (times.min() < 0 or times.max() >= len(self)):
            raise ValueError(f"timesteps {times.tolist()} are out of range; allowed: 0 to {len(self) - 1}")
        shape = (-1, *[1] * (x0.ndim - 1))
        signal, noise_level = self._table.forward_coefficients(times.long().reshape(-1), dtype)
        return signal.to(x0.device).view(shape), noise_level.to(x0.device).view(shape)
