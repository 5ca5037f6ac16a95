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


class Increments:
    """Where a stochastic sampler over noise levels takes its noise from.

    The first of these that there is: `variance_noise`; a noise sampler given to the step or to `set_timesteps`; the
    Brownian tree of the seeds in the configuration; a generator, from which independent increments are drawn; at last,
    as in k-diffusion, a Brownian tree whose seed is drawn from torch's global generator.

    seed: in the configuration; None for none.
    """

    def __init__(self, seed: Seed) -> None:
        self._seed = seed

    def begin(self, sigmas: Tensor, noise_sampler: NoiseSampler | None) -> None:
        """Begin on the levels `sigmas` (n + 1,), with the noise sampler that `set_timesteps` was given, if any."""
        self._sigmas = sigmas
        self._given = noise_sampler
        self.restart()

    def restart(self) -> None:
        """Begin a new run on the same levels: a new path, unless its seeds are in the configuration."""
        self._tree: NoiseSampler | None = None

    def draw(
        self,
        sample: Tensor,
        dtype: torch.dtype,
        interval: tuple[float, float],
        generator: Generators,
        variance_noise: Tensor | None,
        noise_sampler: NoiseSampler | None,
    ) -> Tensor | None:
        """(B, C, ...) the increment from σ to σ' = `interval`, in `dtype` on the sample's device; None where the noise
        is given or independent of the interval, so that `generator` and `variance_noise` say all.

        Raises ValueError for a noise sampler beside one of these, or one that returns another shape.
        """
        if noise_sampler is not None and (generator is not None or variance_noise is not None):
            raise ValueError("give one of noise_sampler, generator and variance_noise, not several")
        source = noise_sampler or self._given
        if variance_noise is not None or (source is None and self._seed is None and generator is not None):
            return None
        if source is None:
            if self._tree is None:
                ends = self._sigmas[self._sigmas > 0].min(), self._sigmas.max()
                self._tree = BrownianTreeNoiseSampler(sample.to(dtype), *ends, seed=self._seed)
            source = self._tree
        increment = source(*(torch.tensor(level, dtype=dtype) for level in interval))
        if not isinstance(increment, Tensor) or increment.shape != sample.shape:
            given = tuple(increment.shape) if isinstance(increment, Tensor) else type(increment).__name__
            raise ValueError(f"the noise sampler returned {given}, not the sample's shape {tuple(sample.shape)}")
        return increment.to(sample.device, dtype)


def _torchsde() -> Any:
    try:
        import torchsde
    except ImportError as error:
        raise ImportError(
            "Brownian trees need torchsde, which is not installed: pip install torchsde; or give step a generator, "
            "a noise_sampler or variance_noise"
        ) from error
    return torchsde
