"""Recorder for luping-liu/PNDM: `runner/runner.py` (the loop), `runner/method.py` (F-PNDM and S-PNDM), its networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing, widened
from conformance.recorders.last_layer import variance_preserving
from conformance.recorders.network_cases import ModelCase, PipelineCase
from conformance.recorders.networks import IMPROVED_LIFTED, TorchNetwork, lifted_improved
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape

ORIGINAL = Original(
    system="pndm",
    repository="luping-liu/PNDM",
    commit="e771949c344875ebecda46967de68fc86e970569",
    licence="Apache-2.0",
    paper_title="Pseudo Numerical Methods for Diffusion Models on Manifolds",
    arxiv="2202.09778",
)
STUBS = ("torchvision", "torchvision.utils", "torchvision.transforms", "torchvision.transforms.functional",
         "torchvision.datasets", "torchvision.datasets.utils", "torchvision.datasets.vision", "lmdb", "scipy",
         "torch.utils.tensorboard")  # fmt: skip
CHANGES = ("torchvision, lmdb, scipy and tensorboard stubbed",)
LIFTED = ("Schedule.alphas_cump: the float32 table is handed out as float64",)
FUNCTIONS = {
    "F-PNDM": ("gen_order_4", "runge_kutta", "transfer"),
    "S-PNDM": ("gen_order_2", "improved_eular", "transfer"),
}
SOLVERS = {"F-PNDM": "f_pndm", "S-PNDM": "s_pndm"}
LOCATIONS = {"F-PNDM": "algorithm 2, equations 11-13", "S-PNDM": "appendix A.3"}


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `runner`, `schedule`, `network`, `unet`."""
    names = ("runner.runner", "runner.schedule", "model.ddim", "model.iDDPM.unet")
    with importing(source, names, STUBS) as (runner, schedule, network, unet):
        yield SimpleNamespace(runner=runner, schedule=schedule, network=network, unet=unet)


def schedule_of(code: SimpleNamespace, method: str, betas: dict[str, Any], dtype: torch.dtype) -> Any:
    """The original's Schedule; for the oracle its float32 table of alphas is handed out as float64."""
    schedule = code.schedule.Schedule(SimpleNamespace(device="cpu", method=method), betas)
    schedule.alphas_cump = schedule.alphas_cump.to(dtype)
    return schedule


def sampler(code: SimpleNamespace, method: str, steps: int, betas: dict[str, Any]) -> Callable[..., Run]:
    """`run` of a case: the original's sample_image from x_T to x_0, on the grid of its sample_fid."""

    def run(network: Callable[..., torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> Run:
        schedule = schedule_of(code, method, betas, dtype)
        runner = code.runner.Runner(
            SimpleNamespace(sample_speed=steps, device="cpu"), {"Schedule": betas}, schedule, network
        )
        total = betas["diffusion_step"]
        final = runner.sample_image(torch.randn(shape, dtype=dtype), range(0, total, total // steps), network)
        return Run(final, None, {"betas": schedule.betas, "alphas_cumprod": schedule.alphas_cump.float()})

    return run


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase | ModelCase | PipelineCase]:
    """Both samplers, the network, and both together from a checkpoint to pixels."""
    yield from sampler_cases(code)
    yield ModelCase(
        name="network-tiny",
        title="one forward pass of the network at half-integer times",
        location="arXiv:2006.11239, appendix B",
        format=ORIGINAL.repository,
        config=TINY,
        network=partial(ddim_network, code, TINY),
        shape=(3, 8, 8),
        times=(37.5, 962.5),
        functions=("model/ddim.py:Model",),
        changes=CHANGES,
        lifted=NETWORK_LIFTED,
    )
    yield _pipeline(code, "F-PNDM", 8, TINY)
    yield _pipeline(code, "S-PNDM", 8, TINY)
    yield _pipeline(code, "F-PNDM", 8, TINY_IMPROVED)


def _config(schedule: dict[str, Any], size: int, model: dict[str, Any]) -> dict[str, Any]:
    dataset = {"dataset": "CIFAR10", "image_size": size, "channels": 3, "logit_transform": False, "rescaled": True}
    return {"Schedule": schedule, "Dataset": dataset, "Model": {**model, "in_channels": 3, "dropout": 0.1}}


# Less noise at T than the official schedule: nothing is clipped, and a synthetic network stays in range.
MILD = {"type": "linear", "beta_start": 1e-4, "beta_end": 0.005, "diffusion_step": 1000}
TINY = _config(MILD, 8, {"struc": "DDIM", "type": "simple", "image_size": 8, "out_ch": 3, "ch": 64, "ch_mult": [1, 2],
                         "num_res_blocks": 1, "attn_resolutions": [4], "resamp_with_conv": True})  # fmt: skip
TINY_IMPROVED = _config(MILD, 8, {"struc": "iDDPM", "model_channels": 64, "out_channels": 6, "num_res_blocks": 1,
                                   "attention_resolutions": [2], "channel_mult": [1, 2], "dims": 2,
                                   "conv_resample": True, "use_scale_shift_norm": True, "use_checkpoint": False,
                                   "num_heads": 4, "num_heads_upsample": 4})  # fmt: skip
NETWORK_LIFTED = ("get_timestep_embedding: its float32 result is handed to the float64 network",)


def ddim_network(code: SimpleNamespace, config: dict[str, Any]) -> TorchNetwork:
    """The original's `model.ddim.Model`."""
    embedding = code.network.get_timestep_embedding
    lift = partial(widened, code.network, "get_timestep_embedding")
    model = config["Model"]
    return TorchNetwork(lambda: code.network.Model(None, model), lift, "conv_out", lambda t: embedding(t, model["ch"]))


def improved_network(code: SimpleNamespace, config: dict[str, Any]) -> TorchNetwork:
    """The original's `model.iDDPM.unet.UNetModel`, which drops the variance half of its output."""
    model = config["Model"]
    return TorchNetwork(
        lambda: code.unet.UNetModel(None, model),
        partial(lifted_improved, code.unet),
        "out.2",
        lambda t: code.unet.timestep_embedding(t, model["model_channels"]),
    )


def _pipeline(code: SimpleNamespace, method: str, steps: int, config: dict[str, Any]) -> PipelineCase:
    struc, size = config["Model"]["struc"], config["Dataset"]["image_size"]
    schedule = schedule_of(code, method, config["Schedule"], torch.float64)
    pixels = lambda x: code.runner.inverse_data_transform(config["Dataset"], x)
    return PipelineCase(
        name=f"pipeline-{struc.lower()}-{method.lower()}-{steps}",
        title=f"from checkpoint to pixels: {method} on the {struc} network, grid of {steps}",
        location=LOCATIONS[method],
        cls="PNDMPipeline",
        format=ORIGINAL.repository,
        config=config,
        checkpoint="plain",
        network=partial(ddim_network if struc == "DDIM" else improved_network, code, config),
        run=sampler(code, method, steps, config["Schedule"]),
        pixels=pixels,
        integers=lambda x: (pixels(x) * 255 + 0.5).clamp(0, 255).byte(),  # torchvision.utils.save_image
        examples=variance_preserving(schedule.alphas_cump),
        shape=(3, size, size),
        batch=2,
        call={"num_inference_steps": steps},
        scheduler={"solver": SOLVERS[method]},
        functions=("runner/runner.py:Runner.sample_image", *(f"runner/method.py:{name}" for name in FUNCTIONS[method])),
        changes=CHANGES,
        lifted=(*LIFTED, *(NETWORK_LIFTED if struc == "DDIM" else IMPROVED_LIFTED)),
    )


def sampler_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """1 to many steps, strides odd and even, dividing T and not; every beta schedule.

    A grid that starts at T - 1 (3 steps of T = 1000, for one) raises IndexError in the original and cannot be recorded.
    """
    for method in ("F-PNDM", "S-PNDM"):
        for steps in (1, 2, 4, 7, 10, 13, 50, 250):
            yield _case(code, method, steps, _betas("linear"))
        yield _case(code, method, 3, _betas("linear", steps=51, end=0.3))
        yield _case(code, method, 12, _betas("quad"))
        yield _case(code, method, 12, {"type": "cosine", "diffusion_step": 1000})
        yield _case(code, method, 20, _betas("linear", steps=40, end=0.4))


def _betas(schedule: str, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> dict[str, Any]:
    return {"type": schedule, "beta_start": start, "beta_end": end, "diffusion_step": steps}


def _case(code: SimpleNamespace, method: str, steps: int, betas: dict[str, Any]) -> SchedulerCase:
    kind, total = betas["type"], betas["diffusion_step"]
    config = {
        "num_train_timesteps": total,
        "beta_schedule": {"quad": "scaled_linear", "cosine": "squaredcos_cap_v2"}.get(kind, kind),
        "coefficients": "float32_cumprod",
        "solver": SOLVERS[method],
    }
    config |= {name: betas[name] for name in ("beta_start", "beta_end") if name in betas}
    other = "" if betas == _betas("linear") else f"-{kind}-{total}"
    return SchedulerCase(
        name=f"{method.lower()}{other}-{steps}",
        title=f"{method}, uniform grid of {steps}, {kind} betas, T = {total}",
        location=LOCATIONS[method],
        cls="PNDMScheduler",
        config=config,
        set_timesteps={"num_inference_steps": steps},
        run=sampler(code, method, steps, betas),
        network=AnalyticNetwork(total),
        functions=(
            "runner/runner.py:Runner.sample_image",
            "runner/schedule.py:Schedule",
            *(f"runner/method.py:{name}" for name in FUNCTIONS[method]),
        ),
        shape=case_shape(steps),
        seed=steps,
        changes=CHANGES,
        lifted=LIFTED,
        tables=steps == 10 or betas != _betas("linear"),
    )
