"""What the recorders of openai's diffusion code and its descendants share: `SpacedDiffusion` and its two loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import widened
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape

LIFTED = (
    "gaussian_diffusion._extract_into_tensor: coefficients rounded to float32 as always, then handed out as float64",
)
LIFTED_GUIDANCE = "gaussian_diffusion.GaussianDiffusion.condition_mean: mean and gradient are not rounded to float32"
SPACING = "improved_diffusion"
VARIANCES = ("fixed_large", "fixed_small", "learned_range")


class AsModel:
    """What these originals ask a model for: being called, and the device of its parameters."""

    def __init__(self, network: Callable[..., torch.Tensor]) -> None:
        self._network = network

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **_: Any) -> torch.Tensor:
        return self._network(x, t)

    def parameters(self) -> Iterator[torch.Tensor]:
        return iter([torch.empty(0)])


@contextmanager
def lifted(diffusion: ModuleType, dtype: torch.dtype) -> Iterator[None]:
    """For the oracle: float32 coefficients are handed out as float64."""
    with widened(diffusion, "_extract_into_tensor") if dtype == torch.float64 else nullcontext():
        yield


@contextmanager
def keeping_float64() -> Iterator[None]:
    """For the oracle: `Tensor.float` leaves states (B, C, H, W) of float64 as they are."""
    rounded = torch.Tensor.float
    kept = lambda x: x if x.dtype == torch.float64 and x.ndim == 4 else rounded(x)
    with patch.object(torch.Tensor, "float", kept):
        yield


def sampler(
    diffusion: ModuleType,
    create: Callable[..., Any],
    arguments: dict[str, Any],
    loop: str,
    classifier: AnalyticNetwork | None = None,
    **options: Any,
) -> Callable[..., Run]:
    """`run` of a case: `loop` (p_sample or ddim_sample) of what `create(**arguments)` returns; draws x_T itself.

    classifier: whose gradient guides the loop.
    """
    if classifier is not None:
        options = {**options, "cond_fn": lambda x, t: classifier.gradient(x, t), "model_kwargs": {}}

    def run(network: Callable[..., torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> Run:
        progressive = getattr(create(**arguments), f"{loop}_loop_progressive")
        with lifted(diffusion, dtype), keeping_float64():
            noise = torch.randn(*shape, dtype=dtype)
            # Each item is copied: the teacher-forced runs overwrite the loop's state in place.
            steps = [
                (out["sample"].clone(), out["pred_xstart"])
                for out in progressive(AsModel(network), shape, noise=noise, **options)
            ]
        return Run(steps[-1][0], [x0 for _, x0 in steps])

    return run


def case(
    diffusion: ModuleType,
    create: Callable[..., Any],
    functions: Sequence[str],
    loop: str,
    respacing: str,
    *,
    total: int = 1000,
    steps_argument: str = "steps",
    cosine: str | None = None,
    variance: str = "fixed_large",
    predict_xstart: bool = False,
    rescale: bool = False,
    clip: bool = True,
    eta: float | None = None,
    guidance: float = 0.0,
    shape: tuple[int, ...] | None = None,
    changes: Sequence[str] = (),
) -> SchedulerCase:
    """A case of one of the loops.

    create, functions: what makes the original's diffusion, and what is named in the manifest.
    steps_argument: what `create` calls T. cosine: what it calls that schedule, if it is to be used.
    variance: one of `VARIANCES`. guidance: the scale of the classifier's gradient. eta: of ddim_sample.
    """
    prediction = "sample" if predict_xstart else "epsilon"
    arguments: dict[str, Any] = {
        steps_argument: total,
        "timestep_respacing": respacing,
        "learn_sigma": variance == "learned_range",
        "sigma_small": variance == "fixed_small",
        "predict_xstart": predict_xstart,
    }
    config: dict[str, Any] = {
        "num_train_timesteps": total,
        "beta_schedule": "squaredcos_cap_v2" if cosine else "linear",
        "prediction_type": prediction,
        "variance_type": variance,
        "clip_sample": clip,
        "coefficients": "float64",
        "timestep_spacing": SPACING,
    }
    if cosine:
        arguments["noise_schedule"] = cosine
    else:
        config |= {"beta_start": 1000 / total * 0.0001, "beta_end": 1000 / total * 0.02}
    if rescale:
        arguments["rescale_timesteps"] = config["rescale_timesteps"] = True
    options: dict[str, Any] = {"clip_denoised": clip}
    if eta is not None:
        config["rederive_epsilon"] = True
        options["eta"] = eta
    network = AnalyticNetwork(
        total,
        prediction,  # type: ignore[arg-type]
        "learned_range" if variance == "learned_range" else None,
        1000 / total if rescale else 1.0,
        classifier_scale=guidance,
    )
    steps = sum(int(part) for part in (respacing or str(total)).removeprefix("ddim").split(","))
    kind = "DDPM" if eta is None else "DDIM"
    words = [kind.lower(), variance, "cosine" if cosine else "", "" if prediction == "epsilon" else prediction]
    words += ["" if clip else "unclipped", f"guided-{guidance:g}" if guidance else "", "rescaled" if rescale else ""]
    words += [f"T-{total}" if total != 1000 else "", respacing or "all", "" if eta is None else f"eta-{eta:g}"]
    return SchedulerCase(
        name="-".join(word.replace("_", "-").replace(",", "+") for word in words if word),
        title=f"{'ancestral' if eta is None else 'DDIM'}, {variance}, respacing {respacing or 'none'}, T = {total}"
        + ("" if eta is None else f", η = {eta:g}")
        + (f", guided by a classifier, scale {guidance:g}" if guidance else ""),
        location=_location(eta, guidance),
        cls=f"{kind}Scheduler",
        config=config,
        set_timesteps={"respacing": respacing} if respacing else {"num_inference_steps": total},
        step={} if eta is None else {"eta": eta},
        run=sampler(diffusion, create, arguments, loop, network if guidance else None, **options),
        network=network,
        functions=functions,
        shape=shape or ((2, 3, 2, 2) if steps <= 20 else case_shape(steps)),
        seed=steps,
        changes=changes,
        lifted=(*LIFTED, LIFTED_GUIDANCE) if guidance else LIFTED,
    )


def _location(eta: float | None, guidance: float) -> str:
    if guidance:
        return f"arXiv:2105.05233, Algorithm {1 if eta is None else 2}"
    return "arXiv:2102.09672, equations 13-15" if eta is None else "arXiv:2010.02502, equation 12"
