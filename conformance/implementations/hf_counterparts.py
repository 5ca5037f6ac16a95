"""What a user of HF `diffusers` would take for a sampler of an original: class, options, and the loop around it.

A table of translations, one function per convention. What has no counterpart raises `Unsupported` with the reason; a
convention that is merely absent there is left out, and the closest published option taken, so that the difference
shows as a divergence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from conformance.errors import Unsupported
from conformance.fixture import Subject
from conformance.implementations import hf_loops


@dataclass
class Counterpart:
    """A scheduler of HF's.

    Attributes:
        cls: name of the class.
        config: options of its constructor; those that it does not have are dropped when it is made.
        set_timesteps: arguments of its `set_timesteps`.
        step: options of its `step`.
        around: what puts it behind the common API, where it has another.
    """

    cls: str
    config: dict[str, Any]
    set_timesteps: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    around: Callable[[Any], Any] | None = None


def counterpart(subject: Subject) -> Counterpart:
    """The counterpart of a fixture's subject. Raises Unsupported."""
    found = Counterpart(subject.cls, dict(subject.config), dict(subject.set_timesteps or {}), dict(subject.step or {}))
    for translate in (_solver, _sigma_grid, _churn, _dpm_solver_grid, _by_class):
        translate(found)
    return found


def _solver(found: Counterpart) -> None:
    solver = found.config.get("solver")
    if solver == "s_pndm":
        raise Unsupported("no S-PNDM in diffusers")
    if solver == "plms":
        found.config["skip_prk_steps"] = True


def _sigma_grid(found: Counterpart) -> None:
    """k-diffusion's grids of σ."""
    grid = found.config.pop("sigma_schedule", None)
    options = found.config.pop("sigma_options", None) or {}
    if grid is None or grid not in SIGMA_GRIDS:
        if grid in ("polyexponential", "vp"):
            raise Unsupported(f"no {grid} sigmas in diffusers")
        return
    if unknown := sorted(options.keys() - {"sigma_min", "sigma_max"}):
        raise Unsupported(f"no option {', '.join(unknown)} of {grid} sigmas in diffusers")
    found.config |= SIGMA_GRIDS[grid] | options


def _churn(found: Counterpart) -> None:
    """Options of churn are arguments of `step` there, where a class has them."""
    if found.cls == "KarrasVeScheduler":
        return
    given = {name: found.config.pop(name) for name in CHURN if name in found.config}
    if given.get("s_churn"):
        if found.cls not in CHURNING:
            raise Unsupported(f"diffusers' {found.cls} adds no noise ahead of the network")
        found.step |= given


def _dpm_solver_grid(found: Counterpart) -> None:
    """The schedules and grids of DPM-Solver's and UniPC's own code."""
    config = found.config
    schedule, grid = config.pop("log_snr", None), config.pop("skip_type", None)
    if schedule is None:
        return
    if schedule == "linear":
        raise Unsupported("no continuous schedule in diffusers")
    if grid not in SKIP_TYPES:
        raise Unsupported(f"no grid {grid} in diffusers")
    if config.get("prediction_type") == "score":
        raise Unsupported("no score prediction in diffusers")
    if config.get("final_sigmas_type") == "zero":
        raise Unsupported("no evaluation at the end of the grid, to denoise to zero, in diffusers")
    config |= SKIP_TYPES[grid]
    if config.pop("sample_max_value", 1.0) is None:
        config["sample_max_value"] = 100.0  # The original's threshold has no bound.
    if "orders" in config:
        config["lower_order_final"] = config.pop("orders") == "fast"


def _by_class(found: Counterpart) -> None:
    if found.cls in TRANSLATIONS:
        TRANSLATIONS[found.cls](found)


def _ancestral(found: Counterpart) -> None:
    if found.config.pop("eta", 1.0) != 1.0 or found.config.pop("s_noise", 1.0) != 1.0:
        raise Unsupported("ancestral steps have no eta and no s_noise in diffusers")


def _multistep(order: int, algorithm: str) -> Callable[[Counterpart], None]:
    """k-diffusion's DPM++ multistep samplers, as the documentation of DPMSolverMultistepScheduler names them."""

    def translate(found: Counterpart) -> None:
        stochastic = found.config.pop("eta", None)
        if stochastic is not None and stochastic != (1.0 if algorithm.startswith("sde") else 0.0):
            raise Unsupported(f"eta is 1 in {algorithm} of diffusers")
        if found.config.pop("s_noise", 1.0) != 1.0:
            raise Unsupported(f"{algorithm} of diffusers has no s_noise")
        found.cls = "DPMSolverMultistepScheduler"
        found.config |= {"algorithm_type": algorithm, "solver_order": order, "final_sigmas_type": "zero"}
        if order == 3:
            found.config["solver_type"] = "heun"
        if not found.config.keys() & PUBLISHED_GRIDS:  # Then the times can be given, whole ones; its own end before 0.
            last, count = found.config.get("num_train_timesteps", 1000) - 1, found.set_timesteps["num_inference_steps"]
            found.set_timesteps = {"timesteps": torch.linspace(last, 0, count).round().int().tolist()}
        found.around = hf_loops.InSigmaSpace

    return translate


def _score_sde_ve(found: Counterpart) -> None:
    asked = {**{"predictor": "reverse_diffusion", "corrector": "langevin"}, **found.config}
    other = [asked[name] for name in ("predictor", "corrector") if asked[name] != VE_SAMPLER[name]]
    other += [name for name, value in VE_SAMPLER.items() if name in found.config and found.config[name] != value]
    if other:
        raise Unsupported(f"diffusers samples the VE SDE by reverse diffusion and Langevin steps only: {other[0]}")
    found.around = hf_loops.ScoreSdeVe


def _score_sde_vp(found: Counterpart) -> None:
    other = [name for name, value in VP_SAMPLER.items() if name in found.config and found.config[name] != value]
    if other:
        raise Unsupported(f"diffusers samples the VP SDE by Euler-Maruyama steps only: {other[0]}")
    found.around = hf_loops.ScoreSdeVp


def _karras_ve(found: Counterpart) -> None:
    found.around = hf_loops.KarrasVe


def _flow(found: Counterpart) -> None:
    loops = {"sd3.5": hf_loops.StableDiffusion3, "flux": hf_loops.Flux}
    found.around = loops.get(found.config.pop("flow_grid", None))


def _flow_multistep(found: Counterpart) -> None:
    _flow(found)
    found.cls = "DPMSolverMultistepScheduler"
    shift = found.config.pop("shift", 1.0)
    found.config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}


def _consistency(found: Counterpart) -> None:
    found.around = hf_loops.Consistency


SIGMA_GRIDS: dict[str, dict[str, Any]] = {
    "discrete": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}
PUBLISHED_GRIDS = frozenset({"use_karras_sigmas", "use_exponential_sigmas"})
SKIP_TYPES: dict[str | None, dict[str, Any]] = {
    None: {"timestep_spacing": "linspace"},
    "time_uniform": {"timestep_spacing": "linspace"},
    "logSNR": {"use_lu_lambdas": True},
}
CHURN = ("s_churn", "s_tmin", "s_tmax")
CHURNING = ("EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchHeunDiscreteScheduler")
VE_SAMPLER = {
    "predictor": "reverse_diffusion",
    "corrector": "langevin",
    "probability_flow": False,
    "continuous": True,
    "noise_removal": True,
}
VP_SAMPLER = {
    "predictor": "euler_maruyama",
    "corrector": "none",
    "probability_flow": False,
    "continuous": True,
    "noise_removal": True,
}
TRANSLATIONS: dict[str, Callable[[Counterpart], None]] = {
    "EulerAncestralDiscreteScheduler": _ancestral,
    "KDPM2AncestralDiscreteScheduler": _ancestral,
    "DPMPP2MScheduler": _multistep(2, "dpmsolver++"),
    "DPMPP2MSDEScheduler": _multistep(2, "sde-dpmsolver++"),
    "DPMPP3MSDEScheduler": _multistep(3, "sde-dpmsolver++"),
    "CMStochasticIterativeScheduler": _consistency,
    "FlowMatchDPMPP2MScheduler": _flow_multistep,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "KarrasVeScheduler": _karras_ve,
    "ScoreSdeVeScheduler": _score_sde_ve,
    "ScoreSdeVpScheduler": _score_sde_vp,
}
