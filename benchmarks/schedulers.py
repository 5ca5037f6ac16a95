"""Time of a sampling step beside HF diffusers' class of the same name, on equal inputs: paired ratios in one run.

    python benchmarks/schedulers.py [CLASS …] [--runs 15] [--threads 2] [--steps 20]

Each pair runs both samplers over the same number of steps, in turn, so that drifts of the machine's speed hit both; the
model output is a tensor that was made before. What is timed is what a pipeline's loop calls at every evaluation:
`scale_model_input` and `step`. A ratio below 1 means that diffusers_ref is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import diffusers
import torch

import diffusers_ref
from diffusers_ref.registry import CLASSES

SHAPE = (1, 4, 64, 64)  # (B, C, H, W) of the latents of a 512 px image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classes", nargs="*", help="scheduler classes; all that both libraries have by default")
    parser.add_argument("--runs", type=int, default=15, help="pairs per class")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=20, help="inference steps")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    diffusers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    names = options.classes or [name for name in CLASSES["scheduler_config.json"] if hasattr(diffusers, name)]
    ratios = []
    print(f"{'scheduler':<36}{'ours, µs':>10}{'HF, µs':>10}{'ratio':>8}")
    for name in names:
        try:
            pairs = measured(name, options.steps, options.runs)
        except Exception as error:  # noqa: BLE001 - a class of the other library that is driven in another way
            print(f"{name:<36}  {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        ours, theirs = (statistics.median(pair[side] for pair in pairs) * 1e6 for side in (0, 1))
        print(f"{name:<36}{ours:>10.1f}{theirs:>10.1f}{ratio:>8.2f}")
        ratios.append(ratio)
    print(f"median ratio of {len(ratios)} classes: {statistics.median(ratios):.2f}, worst {max(ratios):.2f}")


def measured(name: str, steps: int, runs: int) -> list[tuple[float, float]]:
    """Seconds per evaluation of the network of (ours, theirs), pair by pair, after a pair to warm up."""
    pair = getattr(diffusers_ref, name), getattr(diffusers, name)
    schedulers = [cls() for cls in pair]
    times = [tuple(per_evaluation(scheduler, steps) for scheduler in schedulers) for _ in range(runs + 1)]
    return times[1:]  # type: ignore[return-value]


@torch.no_grad()
def per_evaluation(scheduler: Any, steps: int) -> float:
    """Seconds per evaluation of one run."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(SHAPE, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    output = torch.randn(SHAPE, generator=generator)
    takes_generator = "generator" in type(scheduler).step.__code__.co_varnames
    options = {"generator": generator} if takes_generator else {}
    scaled = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
    start = time.perf_counter()
    for t in scheduler.timesteps:
        scaled(sample, t)
        sample = scheduler.step(output, t, sample, **options).prev_sample
    return (time.perf_counter() - start) / len(scheduler.timesteps)


if __name__ == "__main__":
    main()
