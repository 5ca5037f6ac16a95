"""Recorder for openai/improved-diffusion: ancestral and DDIM sampling on respaced grids."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.last_layer import variance_preserving
from conformance.recorders.network_cases import ModelCase, PipelineCase
from conformance.recorders.networks import IMPROVED_LIFTED, TorchNetwork, lifted_improved
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape
from conformance.recorders.spaced_diffusion import LIFTED, SPACING, AsModel, lifted

ORIGINAL = Original(
    system="improved-diffusion",
    repository="openai/improved-diffusion",
    commit="1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5",
    licence="MIT",
    paper_title="Improved Denoising Diffusion Probabilistic Models",
    arxiv="2102.09672",
)
STUBS = ("mpi4py", "blobfile")
CHANGES = ("mpi4py, blobfile stubbed",)
DIFFUSION = "improved_diffusion/gaussian_diffusion.py:GaussianDiffusion"


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `script_util`, `diffusion`, `unet`, `nn`."""
    names = [f"improved_diffusion.{name}" for name in ("script_util", "gaussian_diffusion", "unet", "nn")]
    with importing(source, names, STUBS) as (script_util, diffusion, unet, nn):
        yield SimpleNamespace(script_util=script_util, diffusion=diffusion, unet=unet, nn=nn)


def sampler(
    code: SimpleNamespace, arguments: dict[str, Any], loop: str, mean: str = "EPSILON", **options: Any
) -> Callable[..., Run]:
    """`run` of a case: `loop` is p_sample or ddim_sample; draws x_T itself, in the run's dtype."""

    def run(network: Callable[..., torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> Run:
        diffusion = code.script_util.create_gaussian_diffusion(**arguments)
        diffusion.model_mean_type = code.diffusion.ModelMeanType[mean]
        progressive = getattr(diffusion, f"{loop}_loop_progressive")
        with lifted(code.diffusion, dtype):
            noise = torch.randn(*shape, dtype=dtype)
            # Each item is copied: the teacher-forced runs overwrite the loop's state in place.
            steps = [
                (out["sample"].clone(), out["pred_xstart"])
                for out in progressive(AsModel(network), shape, noise=noise, **options)
            ]
            betas = code.diffusion.get_named_beta_schedule(
                arguments.get("noise_schedule", "linear"), arguments.get("steps", 1000)
            )
        return Run(steps[-1][0], [x0 for _, x0 in steps], {"betas": torch.from_numpy(betas)})

    return run


def flags(code: SimpleNamespace, **changed: Any) -> dict[str, Any]:
    """All command line flags of the original, small by default, with some changed."""
    small = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "16,8", "num_heads": 4}
    return {**code.script_util.model_and_diffusion_defaults(), **small, **changed}


def network(code: SimpleNamespace, config: dict[str, Any], labels: list[int] | None = None) -> TorchNetwork:
    """The original's network for the flags; `labels`: of a class-conditional one."""
    names = inspect.signature(code.script_util.create_model).parameters
    arguments = {name: value for name, value in config.items() if name in names}
    classes = {} if labels is None else {"y": torch.tensor(labels)}
    return TorchNetwork(
        lambda: code.script_util.create_model(**arguments),
        partial(lifted_improved, code.unet),
        "out.2",
        lambda t: code.unet.timestep_embedding(t, config["num_channels"]),
        lambda module, x, t: module(x, t, **classes),
    )


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase | ModelCase | PipelineCase]:
    """Both samplers, the network, and both together from a checkpoint to pixels."""
    yield from sampler_cases(code)
    cosine = {"diffusion_steps": 4000, "noise_schedule": "cosine", "learn_sigma": True, "dropout": 0.3}
    # 64 channels: with one channel a group the norms would cancel what is added before them.
    yield _model(code, "learned", flags(code, learn_sigma=True, num_channels=64), (3.0, 977.0))
    plain = flags(code, use_scale_shift_norm=False, num_heads=1, num_channels=64)
    yield _model(code, "plain-norm", plain, (0.0, 480.0))
    yield _model(code, "heads", flags(code, num_heads=2, num_heads_upsample=8), (12.5, 999.0))
    yield _model(code, "classes", flags(code, class_cond=True), (3.0, 977.0), labels=[7, 993])
    official = {"num_channels": 128, "num_res_blocks": 3, **cosine}
    yield _model(code, "cifar10", flags(code, **official), (500.0,), tier="full")
    lsun = {"image_size": 256, "num_channels": 128, "num_res_blocks": 2, "num_heads": 1, "learn_sigma": True,
            "use_scale_shift_norm": False, "attention_resolutions": "16"}  # fmt: skip
    yield _model(code, "lsun", flags(code, **lsun), (500.0,), tier="full")
    yield _pipeline(code, "ddpm-learned", flags(code, learn_sigma=True), "p_sample", "4")
    yield _pipeline(code, "ddpm-cosine", flags(code, **cosine), "p_sample", "ddim4")
    yield _pipeline(code, "ddim", flags(code), "ddim_sample", "ddim5", eta=0.0)


def _model(
    code: SimpleNamespace,
    name: str,
    config: dict[str, Any],
    times: Sequence[float],
    tier: str = "default",
    labels: list[int] | None = None,
) -> ModelCase:
    return ModelCase(
        name=f"network-{name}",
        title=f"one forward pass of the network, {name}, t = {', '.join(f'{t:g}' for t in times)}",
        location="appendix A",
        format=ORIGINAL.repository,
        config=config,
        network=partial(network, code, config, labels),
        shape=(3, config["image_size"], config["image_size"]),
        times=times,
        call={} if labels is None else {"class_labels": labels},
        functions=("improved_diffusion/unet.py:UNetModel",),
        changes=CHANGES,
        lifted=IMPROVED_LIFTED,
        tier=tier,
    )


def _pipeline(
    code: SimpleNamespace, name: str, config: dict[str, Any], loop: str, respacing: str, eta: float | None = None
) -> PipelineCase:
    names = inspect.signature(code.script_util.create_gaussian_diffusion).parameters
    arguments = {key: value for key, value in config.items() if key in names}
    arguments |= {"steps": config["diffusion_steps"], "timestep_respacing": respacing}
    betas = code.diffusion.get_named_beta_schedule(config["noise_schedule"], config["diffusion_steps"])
    return PipelineCase(
        name=f"pipeline-{name}-{respacing}",
        title=f"from checkpoint to pixels: {name}, respacing {respacing}",
        location="section 3" if eta is None else "section 4",
        cls="DDPMPipeline" if eta is None else "DDIMPipeline",
        format=ORIGINAL.repository,
        config=config,
        checkpoint="plain",
        network=partial(network, code, config),
        run=sampler(code, arguments, loop, "EPSILON", **({} if eta is None else {"eta": eta})),
        pixels=lambda x: ((x + 1) / 2).clamp(0, 1),
        integers=lambda x: ((x + 1) * 127.5).clamp(0, 255).byte(),  # scripts/image_sample.py
        examples=variance_preserving(torch.from_numpy((1 - betas).cumprod())),
        shape=(3, config["image_size"], config["image_size"]),
        call={"respacing": respacing} | ({} if eta is None else {"eta": eta}),
        functions=("improved_diffusion/unet.py:UNetModel", f"{DIFFUSION}.{loop}_loop_progressive"),
        changes=CHANGES,
        lifted=(*LIFTED, *IMPROVED_LIFTED),
    )


def sampler_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Respacings by count, by sections and by `ddimN`; every variance; every prediction; clipping on and off.

    A single step raises IndexError in the original (its variance table needs a second entry) and cannot be recorded.
    """
    variances: list[dict[str, Any]] = [{"sigma_small": True}, {}, {"learn_sigma": True}]
    for variance in variances:
        for respacing in ("2", "3", "7", "21", "ddim25", "10,15,20"):
            yield _case(code, "p_sample", {"timestep_respacing": respacing, **variance})
    for respacing in ("2", "3", "7", "23", "ddim20", "10,15,20"):
        for eta in (0.0, 0.3, 1.0):
            if eta == 0.3 or respacing in ("7", "ddim20"):
                yield _case(code, "ddim_sample", {"timestep_respacing": respacing}, eta=eta)
    cosine = {"noise_schedule": "cosine", "steps": 4000, "learn_sigma": True, "rescale_timesteps": True}
    yield _case(code, "p_sample", {"timestep_respacing": "50", **cosine})
    yield _case(code, "ddim_sample", {"timestep_respacing": "ddim50", **cosine}, eta=0.0)
    yield _case(code, "ddim_sample", {"timestep_respacing": "13", "learn_sigma": True}, eta=0.5, clip_denoised=False)
    yield _case(code, "p_sample", {"timestep_respacing": "13", "sigma_small": True}, clip_denoised=False)
    for mean in ("START_X", "PREVIOUS_X"):
        yield _case(code, "p_sample", {"timestep_respacing": "13"}, mean=mean)
        yield _case(code, "ddim_sample", {"timestep_respacing": "13"}, mean=mean, eta=0.5)
    yield _case(code, "p_sample", {"steps": 40, "rescale_timesteps": True})
    yield _case(code, "ddim_sample", {"steps": 1000}, eta=0.7)


PREDICTIONS = {"EPSILON": "epsilon", "START_X": "sample", "PREVIOUS_X": "previous_sample"}


def _case(
    code: SimpleNamespace,
    loop: str,
    flags: dict[str, Any],
    mean: str = "EPSILON",
    clip_denoised: bool = True,
    eta: float | None = None,
) -> SchedulerCase:
    total = flags.get("steps", 1000)
    respacing = flags.get("timestep_respacing", "")
    cosine = flags.get("noise_schedule") == "cosine"
    learned, small = flags.get("learn_sigma", False), flags.get("sigma_small", False)
    variance = "learned_range" if learned else "fixed_small" if small else "fixed_large"
    rescale = flags.get("rescale_timesteps", False)
    steps = sum(int(part) for part in (respacing or str(total)).removeprefix("ddim").split(","))
    config: dict[str, Any] = {
        "num_train_timesteps": total,
        "beta_schedule": "squaredcos_cap_v2" if cosine else "linear",
        "prediction_type": PREDICTIONS[mean],
        "variance_type": variance,
        "clip_sample": clip_denoised,
        "coefficients": "float64",
        "timestep_spacing": SPACING,
        "rescale_timesteps": rescale,
    }
    if not cosine:
        config |= {"beta_start": 1000 / total * 0.0001, "beta_end": 1000 / total * 0.02}
    options: dict[str, Any] = {"clip_denoised": clip_denoised}
    if eta is not None:
        config["rederive_epsilon"] = True
        options["eta"] = eta
    words = ["ddim" if eta is not None else "ddpm", variance, "cosine" if cosine else "", PREDICTIONS[mean]]
    words += ["" if clip_denoised else "unclipped", f"T-{total}" if total != 1000 else "", respacing or "all"]
    words += [f"eta-{eta:g}" if eta is not None else ""]
    return SchedulerCase(
        name="-".join(w.replace("_", "-").replace(",", "+") for w in words if w and w != "epsilon"),
        title=f"{'ancestral' if eta is None else 'DDIM'}, {variance}, respacing {respacing or 'none'}, T = {total}"
        + ("" if eta is None else f", η = {eta:g}"),
        location="section 3, equations 13-15; section 4"
        if eta is None
        else "section 4, DDIM (arXiv:2010.02502) equation 12",
        cls="DDPMScheduler" if eta is None else "DDIMScheduler",
        config=config,
        set_timesteps={"respacing": respacing} if respacing else {"num_inference_steps": total},
        step={} if eta is None else {"eta": eta},
        run=sampler(code, flags, loop, mean, **options),
        network=AnalyticNetwork(
            total,
            PREDICTIONS[mean],  # type: ignore[arg-type]
            "learned_range" if learned else None,
            1000 / total if rescale else 1.0,
        ),
        functions=(f"{DIFFUSION}.{loop}_loop_progressive", f"{DIFFUSION}.{loop}", "improved_diffusion/respace.py"),
        shape=case_shape(steps),
        seed=steps,
        changes=CHANGES,
        lifted=LIFTED,
        tables=respacing in ("7", "ddim50", ""),
    )
