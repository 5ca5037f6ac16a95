"""Time of whole pipelines beside HF diffusers, on equal weights, steps and draws: median of paired ratios in one run.

    python benchmarks/pipelines.py [--runs 11] [--threads 2]

Each pair runs both pipelines once, in turn, so that drifts of the machine's speed hit both. A ratio below 1 means that
diffusers_ref is faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch

import diffusers_ref

TINY = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
}
CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
}
DDPM_NETWORK = {"attention_head_dim": None, "norm_eps": 1e-6, "downsample_padding": 0, "freq_shift": 1}
CASES: list[tuple[str, str, dict[str, Any], int, int]] = [
    # pipeline, scheduler, network, batch, steps
    ("DDIMPipeline", "DDIMScheduler", TINY, 1, 50),
    ("DDPMPipeline", "DDPMScheduler", TINY, 1, 50),
    ("PNDMPipeline", "PNDMScheduler", TINY, 1, 50),
    ("DDIMPipeline", "DDIMScheduler", CIFAR10, 1, 5),
    ("DDIMPipeline", "DDIMScheduler", CIFAR10, 4, 3),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=11, help="pairs per case")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    diffusers.logging.set_verbosity_error()
    ratios = []
    print(f"{'pipeline':<14}{'image':>6}{'batch':>6}{'steps':>6}{'ours, s':>10}{'HF, s':>10}{'ratio':>8}")
    for pipeline, scheduler, network, batch, steps in CASES:
        ours, theirs = build(pipeline, scheduler, network)
        run = lambda pipe: pipe(batch_size=batch, num_inference_steps=steps, output_type="np")  # noqa: B023
        times = [(seconds(run, ours), seconds(run, theirs)) for _ in range(options.runs + 1)][1:]
        ratio = statistics.median(a / b for a, b in times)
        ratios.append(ratio)
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        size = network["sample_size"]
        print(
            f"{pipeline:<14}{size:>6}{batch:>6}{steps:>6}{medians[0]:>10.3f}{medians[1]:>10.3f}{ratio:>8.2f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f}")


def build(pipeline: str, scheduler: str, network: dict[str, Any]) -> tuple[Any, Any]:
    """The same pipeline in both libraries, through a folder."""
    torch.manual_seed(0)
    ours = getattr(diffusers_ref, pipeline)(
        unet=diffusers_ref.UNet2DModel(**DDPM_NETWORK, **network).eval(), scheduler=getattr(diffusers_ref, scheduler)()
    )
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = getattr(diffusers, pipeline).from_pretrained(folder)
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    return ours, theirs


def seconds(run: Callable[[Any], Any], pipe: Any) -> float:
    start = time.perf_counter()
    run(pipe)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
