"""Networks and pipelines of yang-song/score_sde_pytorch, for its recorder: NCSN++, DDPM++ and its plain DDPM."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.recorders.checkout import widened
from conformance.recorders.last_layer import Examples, variance_preserving
from conformance.recorders.network_cases import ModelCase, PipelineCase
from conformance.recorders.networks import TorchNetwork
from conformance.recorders.scheduler_case import Run

FORMAT = "yang-song/score_sde_pytorch"
CHANGES = (
    "torch.utils.cpp_extension stubbed",
    "the buffer `sigmas` is a plain attribute, so that it stays float64 in a float32 network, as it is there",
    "the network's output in the dtype of its input; where it is divided by a label's σ it is float64 there",
)
LIFTED = (
    "get_timestep_embedding, GaussianFourierProjection: the float32 result is handed to the float64 network",
    "up_or_down_sampling.upfirdn2d: the float32 filter is handed out as float64",
)

# --- configurations, in the sections of the original's files ---------------------------------------------------------

NCSNPP = {"name": "ncsnpp", "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "resamp_with_conv": True,
          "conditional": True, "fir": True, "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "resblock_type": "biggan",
          "progressive": "none", "progressive_input": "residual", "progressive_combine": "sum", "dropout": 0.1,
          "nonlinearity": "swish", "init_scale": 0.0, "fourier_scale": 16, "nf": 32}  # fmt: skip
PYRAMIDS = {"progressive": "output_skip", "progressive_input": "input_skip"}
DDPMPP = {"fir": False, "progressive_input": "none"}
# 64 channels where there are 32 groups: with one channel a group the norms would cancel what is added before them.
DDPM = {"name": "ddpm", "nf": 64, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.1,
        "resamp_with_conv": True, "conditional": True, "nonlinearity": "swish"}  # fmt: skip
SAMPLING = {
    "vesde": {"predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.16},
    "vpsde": {"predictor": "euler_maruyama", "corrector": "none", "snr": 0.16},
}
OFFICIAL = {"nf": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 4, "attn_resolutions": [16]}


def config(
    sde: str, model: dict[str, Any], size: int = 16, *, continuous: bool = True, centered: bool | None = None,
    sampling: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A configuration. VE: images in [0, 1], the output divided by σ, Fourier features if continuous."""
    ve = sde == "vesde"
    common: dict[str, Any] = {"sigma_min": 0.01, "sigma_max": 50, "num_scales": 1000, "beta_min": 0.1, "beta_max": 20.0,
              "scale_by_sigma": ve}  # fmt: skip
    if model["name"] == "ncsnpp":
        common["embedding_type"] = "fourier" if ve and continuous else "positional"
    method = {"method": "pc", "n_steps_each": 1, "noise_removal": True, "probability_flow": False}
    return {
        "training": {"sde": sde, "continuous": continuous},
        "sampling": {**method, **SAMPLING[sde], **(sampling or {})},
        "data": {"image_size": size, "num_channels": 3, "centered": not ve if centered is None else centered},
        "model": {**common, **model},
    }


# --- the networks ----------------------------------------------------------------------------------------------------


def namespace(data: Any) -> Any:
    """Nested dictionaries as the attribute access that the original expects."""
    return SimpleNamespace(**{k: namespace(v) for k, v in data.items()}) if isinstance(data, dict) else data


@contextmanager
def lifted(code: SimpleNamespace) -> Iterator[None]:
    """For a float64 run: embeddings and filters, float32 tables, are handed out as float64."""
    filtered, projection = code.up_or_down.upfirdn2d, code.layerspp.GaussianFourierProjection
    project = projection.forward

    def with_wide_filter(x: torch.Tensor, kernel: torch.Tensor, **options: Any) -> torch.Tensor:
        return filtered(x, kernel.to(x.dtype), **options)

    def float32_projection(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return project(SimpleNamespace(W=module.W.float()), x.float()).double()

    with (
        widened(code.layers, "get_timestep_embedding"),
        patch.object(code.up_or_down, "upfirdn2d", with_wide_filter),
        patch.object(projection, "forward", float32_projection),
    ):
        yield


def network(code: SimpleNamespace, config: dict[str, Any]) -> TorchNetwork:
    """The original's network for a configuration."""
    is_ddpm = config["model"]["name"] == "ddpm"
    fourier = config["model"].get("embedding_type") == "fourier"

    def build() -> torch.nn.Module:
        module = (code.ddpm.DDPM if is_ddpm else code.ncsnpp.NCSNpp)(namespace(config))
        sigmas = module.sigmas
        del module.sigmas
        module.sigmas = sigmas
        return module

    def call(module: torch.nn.Module, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return module(x, t.long() if is_ddpm else t).to(x.dtype)

    def embedding(t: torch.Tensor) -> torch.Tensor:
        if not fourier:
            return code.layers.get_timestep_embedding(t, config["model"]["nf"])
        projection = probe.all_modules[0]
        return type(projection).forward(SimpleNamespace(W=projection.W.to(t.dtype)), torch.log(t))

    probe: Any = build()
    last = max(number for number, module in enumerate(probe.all_modules) if isinstance(module, torch.nn.Conv2d))
    # Its blocks have many parts; one look at each block says where a network leaves this one.
    blocks = re.compile(r"all_modules\.\d+").fullmatch
    return TorchNetwork(
        lambda: probe, partial(lifted, code), f"all_modules.{last}", embedding, call, lambda path: bool(blocks(path))
    )


# --- cases -----------------------------------------------------------------------------------------------------------


def network_cases(
    code: SimpleNamespace, sampler: Callable[..., Callable[..., Run]], sampler_lifted: Sequence[str]
) -> Iterator[ModelCase | PipelineCase]:
    """Networks of every official family, other options pairwise, and pipelines of the VE and VP SDEs.

    Args:
        sampler: of the recorder; (code, SDE, its options, options of the sampler) -> `run` of a case.
        sampler_lifted: what it lifts.
    """
    case = partial(_model, code)
    labels, levels = (3.0, 977.0), (0.7, 1.9)
    yield case("ncsnpp-ve", config("vesde", NCSNPP, 8), levels)
    deep = {**NCSNPP, "ch_mult": [1, 2, 2], "num_res_blocks": 3, "attn_resolutions": [4]}
    yield case("ncsnpp-ve-deep", config("vesde", deep, 8), levels)
    published = {**NCSNPP, **PYRAMIDS, "nf": 16, "ch_mult": [1, 2, 8], "attn_resolutions": [4]}
    yield case("ncsnpp-ve-published", config("vesde", published), levels, cls="UNet2DModel")
    yield case("ncsnpp-ve-labels", config("vesde", NCSNPP, 8, continuous=False), labels)
    yield case("ddpmpp-vp", config("vpsde", {**NCSNPP, **DDPMPP}, 8), labels)
    cat = {**NCSNPP, **PYRAMIDS, "progressive_combine": "cat", "skip_rescale": False, "fir_kernel": [1, 2, 1],
           "nonlinearity": "elu"}  # fmt: skip
    yield case("ncsnpp-cat", config("vpsde", cat, 8), labels)
    blocks = {**NCSNPP, "resblock_type": "ddpm", "resamp_with_conv": False, "nonlinearity": "lrelu"}
    yield case("ncsnpp-ddpm-blocks", config("vesde", blocks, 8), levels)
    yield case("ddpm-ve", config("vesde", DDPM, 8, continuous=False), labels)

    pipeline = partial(_pipeline, code, sampler, sampler_lifted)
    # With less noise at the beginning than the official schedules a synthetic network stays in range.
    small = {**NCSNPP, "attn_resolutions": [4], "sigma_max": 0.5, "beta_max": 5.0}
    yield pipeline("ve-langevin-5", config("vesde", small, 8), 5)
    yield pipeline("vp-euler-maruyama-9", config("vpsde", {**small, **DDPMPP}, 8), 9)

    full = {"tier": "full"}
    plus, deeper = {**NCSNPP, **OFFICIAL}, {**NCSNPP, **OFFICIAL, "num_res_blocks": 8}
    yield case("cifar10-ncsnpp-continuous", config("vesde", plus, 32), (1.0,), **full)
    yield case("cifar10-ncsnpp-deep-continuous", config("vpsde", deeper, 32), (500.0,), **full)
    yield case("cifar10-ddpmpp-continuous", config("vpsde", {**plus, **DDPMPP}, 32), (500.0,), **full)
    yield case("cifar10-ddpm", config("vesde", {**DDPM, **OFFICIAL, "nf": 128, "num_res_blocks": 2}, 32,
                                      continuous=False), (500.0,), **full)  # fmt: skip
    wide = {**NCSNPP, **PYRAMIDS, "nf": 128, "ch_mult": [1, 1, 2, 2, 2, 2, 2], "num_res_blocks": 2, "num_scales": 2000,
            "attn_resolutions": [16], "sigma_max": 348, "dropout": 0.0}  # fmt: skip
    yield case("ffhq-256-ncsnpp-continuous", config("vesde", wide, 256), (1.0,), cls="UNet2DModel", **full)


def _model(
    code: SimpleNamespace,
    name: str,
    config: dict[str, Any],
    times: Sequence[float],
    tier: str = "default",
    cls: str = "NCSNppModel",
) -> ModelCase:
    size, architecture = config["data"]["image_size"], config["model"]["name"]
    what = "σ" if config["model"].get("embedding_type") == "fourier" else "label"
    return ModelCase(
        name=f"network-{name}",
        title=f"one forward pass of the network, {name}, {what} {', '.join(f'{t:g}' for t in times)}",
        location="appendix H",
        format=FORMAT,
        config=config,
        network=partial(network, code, config),
        shape=(config["data"]["num_channels"], size, size),
        times=times,
        cls=cls,
        functions=(f"models/{architecture}.py:{'DDPM' if architecture == 'ddpm' else 'NCSNpp'}",),
        changes=CHANGES,
        lifted=LIFTED,
        tier=tier,
    )


def _pipeline(
    code: SimpleNamespace,
    sampler: Callable[..., Callable[..., Run]],
    sampler_lifted: Sequence[str],
    name: str,
    config: dict[str, Any],
    steps: int,
) -> PipelineCase:
    model, sampling, size = config["model"], config["sampling"], config["data"]["image_size"]
    ve = config["training"]["sde"] == "vesde"
    options = {key: model[key] for key in (("sigma_min", "sigma_max") if ve else ("beta_min", "beta_max"))}
    inverse_scaler = (lambda x: (x + 1.0) / 2.0) if config["data"]["centered"] else (lambda x: x)
    return PipelineCase(
        name=f"pipeline-{name}",
        title=f"from checkpoint to pixels: {name}",
        location="Algorithm 1",
        cls="ScoreSdeVePipeline" if ve else "ScoreSdeVpPipeline",
        format=FORMAT,
        config=config,
        checkpoint="shadow",
        network=partial(network, code, config),
        run=sampler(
            code,
            "VESDE" if ve else "VPSDE",
            {**options, "N": steps},
            {
                "eps": 1e-5 if ve else 1e-3,
                "predictor": sampling["predictor"],
                "corrector": sampling["corrector"],
                "snr": sampling["snr"],
                "n_steps": sampling["n_steps_each"],
                "continuous": config["training"]["continuous"],
            },
        ),
        pixels=lambda x: inverse_scaler(x).clamp(0, 1),
        integers=lambda x: (inverse_scaler(x) * 255.0).clamp(0, 255).byte(),  # run_lib.py
        examples=_noise_levels(**options) if ve else variance_preserving(_vp_alphas(**options)),
        shape=(3, size, size),
        batch=2 if ve else 1,  # Langevin step sizes depend on the batch.
        call={"num_inference_steps": steps},
        functions=("models/ncsnpp.py:NCSNpp", "sampling.py:get_pc_sampler", "models/utils.py:get_score_fn",
                   "run_lib.py:train"),
        changes=CHANGES,
        lifted=(*sampler_lifted, *LIFTED),
    )  # fmt: skip


def _vp_alphas(beta_min: float, beta_max: float) -> torch.Tensor:
    """(1000,) ᾱ of the VP SDE at labels 0 … 999."""
    t = torch.linspace(0, 1, 1000, dtype=torch.float64)
    return torch.exp(-0.5 * t**2 * (beta_max - beta_min) - t * beta_min)


def _noise_levels(sigma_min: float, sigma_max: float) -> Examples:
    """Images in [0, 1] with noise of a level σ, uniform in log σ; the network's last layer is −noise."""

    def noisy(
        clean: torch.Tensor, noise: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        share = torch.rand(len(clean), generator=generator)
        sigma = torch.exp(math.log(sigma_min) + share * math.log(sigma_max / sigma_min))
        return (clean + 1) / 2 + sigma[:, None, None, None] * noise, sigma, -noise

    return noisy
