"""Brownian motion as a source of noise: one path over the noise levels, whatever grid visits it.

A stochastic sampler needs, from σ to σ' < σ, an increment of a Wiener process over [σ', σ], scaled to unit variance.
Taken from one path, increments of overlapping intervals are correlated as they must be, and a finer grid refines the
same image instead of making another one. k-diffusion keeps the path as a virtual Brownian tree (arXiv 2001.01328,
algorithm 3), which needs no memory: the tree of a seed is a function of time.

    code                  meaning
    W                     the Wiener process, one number per pixel
    increment             (W(σ') − W(σ)) / √|σ' − σ|
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusers_ref.random import Generators
from diffusers_ref.schedulers.sigma_scheduler import SigmaScheduler

NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""noise(σ, σ'): the increment on the way from σ to σ', with the sample's shape; σ and σ' are () tensors on the CPU."""

Seed = int | Sequence[int] | None


class BrownianTreeNoiseSampler:
    """The increments of Brownian trees, as k-diffusion takes them from torchsde's.

    sample: (B, C, ...) whose shape and dtype the increments have; the tree is computed on the CPU, so that a seed gives
        the same path on every device, and increments are moved to the sample's device.
    sigma_min, sigma_max: the ends of the path, as () tensors or numbers; noise(σ, σ') needs both within.
    seed: of the tree, or one for each sample of the batch; None draws one from torch's global CPU generator.

    Raises ImportError without torchsde, and ValueError for another number of seeds than samples.
    """

    def __init__(self, sample: Tensor, sigma_min: Tensor | float, sigma_max: Tensor | float, seed: Seed = None) -> None:
        tree = _torchsde().BrownianTree
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, []))
        self._batched = not isinstance(seed, int)
        seeds = [seed] if isinstance(seed, int) else list(seed)
        if self._batched and len(seeds) != len(sample):
            raise ValueError(f"{len(seeds)} seeds are given for a batch of {len(sample)}: give one, or one per sample")
        start = torch.zeros_like(sample[0] if self._batched else sample, device="cpu")
        low, high = torch.as_tensor(sigma_min, device="cpu"), torch.as_tensor(sigma_max, device="cpu")
        self._device = sample.device
        self._trees = [tree(low, start, high, entropy=entropy) for entropy in seeds]

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """(B, C, ...) the increment from σ to σ', which changes its sign with their order."""
        start, end = torch.as_tensor(sigma, device="cpu"), torch.as_tensor(sigma_next, device="cpu")
        low, high, sign = (start, end, 1) if start < end else (end, start, -1)
        # The path runs from σ_min to σ_max, so the sampler's way down is against it.
        paths = torch.stack([tree(low, high) for tree in self._trees]) * sign
        length = (end - start).abs()
        increment = paths if self._batched else paths[0]
        return (increment / length.sqrt() if length else increment).to(self._device)

    def __deepcopy__(self, memo: dict[int, Any]) -> BrownianTreeNoiseSampler:
        """Itself: a path is a function of its seed, and what a tree caches changes nothing."""
        return self


class BrownianScheduler(SigmaScheduler):
    """A sampler whose noise is increments of a Brownian path.

    Where a step takes its noise from: the first of these that there is. `variance_noise`, the increment itself; a
    `noise_sampler`, given to the step or to `set_timesteps`; the Brownian tree of the option `noise_sampler_seed`; a
    `generator`, from which independent increments are drawn; at last, as in k-diffusion, a Brownian tree whose seed is
    drawn from torch's global generator.

    Option of every such class:
        noise_sampler_seed: the seed of the tree, or one for each sample of the batch.
    """

    _noise_sampler: NoiseSampler | None
    _tree: NoiseSampler | None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        noise_sampler: NoiseSampler | None = None,
    ) -> None:
        """As `SigmaScheduler.set_timesteps`; noise_sampler(σ, σ') gives the noise of every step."""
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas)
        self._noise_sampler = noise_sampler

    def _restart(self) -> None:
        self._tree = None

    def _increment(
        self,
        index: int,
        interval: tuple[float, float] | None,
        sample: Tensor,
        generator: Generators,
        variance_noise: Tensor | None,
        noise_sampler: NoiseSampler | None,
    ) -> Tensor | None:
        """The noise at entry `index`, (B, C, ...) in the dtype of the arithmetic, and the place moved on from there.

        interval: σ and σ' of the increment; None where nothing is drawn, and then noise is refused.

        Raises ValueError for several sources, and for noise of another shape.
        """
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        if noise_sampler is not None and (generator is not None or variance_noise is not None):
            raise ValueError("give one of noise_sampler, generator and variance_noise, not several")
        if index != self._step_index:
            self._restart()  # Before a tree is made, which lasts for a run.
        source = noise_sampler or self._noise_sampler
        follows_path = source is not None or self.config.noise_sampler_seed is not None or generator is None
        if interval is None or variance_noise is not None or not follows_path:
            noise = self._noise_if(interval is not None, sample, generator, variance_noise, dtype)
        else:
            noise = (source or self._path(sample, dtype))(*(torch.tensor(level, dtype=dtype) for level in interval))
            if not isinstance(noise, Tensor) or noise.shape != sample.shape:
                given = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
                raise ValueError(f"the noise sampler returned {given}, not the sample's shape {tuple(sample.shape)}")
            noise = noise.to(sample.device, dtype)
        self._step_index = index + 1
        return noise

    def _path(self, sample: Tensor, dtype: torch.dtype) -> NoiseSampler:
        """The tree of this run, made when it is first needed."""
        if self._tree is None:
            ends = self.sigmas[self.sigmas > 0].min(), self.sigmas.max()
            self._tree = BrownianTreeNoiseSampler(sample.to(dtype), *ends, seed=self.config.noise_sampler_seed)
        return self._tree


def _torchsde() -> Any:
    try:
        import torchsde
    except ImportError as error:
        raise ImportError(
            "Brownian trees need torchsde, which is not installed: pip install torchsde; or give step a generator, "
            "a noise_sampler or variance_noise"
        ) from error
    return torchsde
