"""Which values of which option a check tries: known options by name, the rest from the constructor's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

KNOWN: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction", "previous_sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"),
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
    "solver_order": (1, 2, 3),
    "predictor_order": (1, 2, 3),
    "corrector_order": (1, 2, 3),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear", "log_linear"),
    "sigma_schedule": ("karras", "exponential"),
    "time_shift_type": ("exponential", "linear"),
    "use_flow_sigmas": (False, True),
    "flow_shift": (1.0, 3.0),
    "shift": (1.0, 3.0),
    "steps_offset": (0, 1),
    "coefficients": (None, "float64", "float32_cumprod", "compvis"),
    "solver": (None, "plms"),
}
"""Values of options that take one of a list. A value that a class refuses with ValueError or NotImplementedError when
it is made is one it does not offer."""

LEVEL_GRIDS = {"sigma_schedule": (None, "discrete", "karras", "exponential", "polyexponential")}
"""Options of samplers over noise levels, with their values, but for "vp": its levels above those of training share one
time, which does not tell them apart."""

FLOWS = {
    "flow_grid": ("published", "shifted_once", "sd3.5", "flux"),
    "network_time": ("timestep", "sigma"),
    "derivative": ("velocity", "denoised"),
    "shift_terminal": (None, 0.1),
}
"""Options of samplers of flows, with their values."""

BY_CLASS: dict[str, dict[str, tuple[Any, ...]]] = {
    "CMStochasticIterativeScheduler": {"sampler": ("multistep", "onestep")},
    "DPMPP2MSDEScheduler": {**LEVEL_GRIDS, "solver_type": ("midpoint", "heun")},
    "DPMPP2MScheduler": LEVEL_GRIDS,
    "DPMPP2SAncestralScheduler": LEVEL_GRIDS,
    "DPMPP3MSDEScheduler": LEVEL_GRIDS,
    "DPMSolverSDEScheduler": LEVEL_GRIDS,
    "DPMSolverMultistepScheduler": {
        "solver_type": ("midpoint", "heun"),
        "sample_max_value": (1.0, None),
        "log_snr": (None, "discrete_clipped", "linear"),
        "skip_type": (None, "logSNR", "time_quadratic"),
        "log_alpha_from": (None, "alphas_cumprod"),
        "lower_order_below": (15, 2),
    },
    "DPMSolverMultistepInverseScheduler": {"solver_type": ("midpoint", "heun")},
    "DPMSolverSinglestepScheduler": {
        "solver_type": ("midpoint", "heun"),
        "sample_max_value": (1.0, None),
        "log_snr": (None, "discrete_clipped", "linear"),
        "skip_type": (None, "logSNR", "time_quadratic"),
        "log_alpha_from": (None, "alphas_cumprod"),
        "orders": (None, "fast", "fixed"),
    },
    "EDMDPMSolverMultistepScheduler": {"solver_type": ("midpoint", "heun")},
    "DEISMultistepScheduler": {
        "algorithm_type": ("deis",),
        "solver_type": ("logrho", "rho_ab", "ipndm"),  # the Riemann sums of "t_ab" land near levels only
        "ts_phase": (None, "log", "rho"),
        "ts_order": (None, 3.0),
    },
    "DEISRungeKuttaScheduler": {
        "rk_method": ("3kutta", "1euler", "2heun", "4rk"),
        "ts_phase": (None, "log", "rho"),
        "ts_order": (None, 3.0),
    },
    "IPNDMScheduler": {"angle_schedule": (None, "spliced_ddpm_cosine", "ddpm")},
    "UniPCMultistepScheduler": {
        "solver_type": ("bh2", "bh1", "vary_coeff"),
        "sample_max_value": (1.0, None),
        "log_snr": (None, "discrete", "linear"),
        "skip_type": (None, "logSNR", "time_quadratic"),
        "log_alpha_from": (None, "alphas_cumprod"),
    },
    "EDMAblationScheduler": {
        "solver": ("heun", "euler"),
        "discretization": ("edm", "vp", "ve", "iddpm"),
        "preconditioning": ("edm", "vp", "ve", "iddpm"),
    },
    "EDMEulerScheduler": {"initial_scale": ("published", "first_sigma")},
    "EDMHeunScheduler": {"preconditioning": ("edm", "vp", "ve", "iddpm")},
    "KarrasVeScheduler": {"s_churn": (80.0, 1.0, 0.0), "s_min": (0.05, 5.0), "s_max": (50.0, 5.0)},
    "EulerAncestralDiscreteScheduler": LEVEL_GRIDS,
    "EulerDiscreteScheduler": LEVEL_GRIDS,
    "HeunDiscreteScheduler": LEVEL_GRIDS,
    "KDPM2AncestralDiscreteScheduler": LEVEL_GRIDS,
    "KDPM2DiscreteScheduler": LEVEL_GRIDS,
    "LMSDiscreteScheduler": LEVEL_GRIDS,
    "FlowMatchDPMPP2MScheduler": FLOWS,
    "FlowMatchEulerDiscreteScheduler": FLOWS,
    "FlowMatchHeunDiscreteScheduler": FLOWS,
    "LCMScheduler": {
        "coefficients": (None, "float32", "float64", "float32_cumprod", "compvis"),
        "distilled_grid": ("even", "strided"),
    },
    "SASolverScheduler": {"algorithm_type": ("data_prediction", "noise_prediction")},
    "ScoreSdeSubVpScheduler": {"predictor": ("euler_maruyama", "reverse_diffusion")},
    "ScoreSdeVeScheduler": {
        "predictor": ("reverse_diffusion", "ancestral_sampling", "euler_maruyama", "none"),
        "corrector": ("langevin", "ald", "none"),
    },
    "ScoreSdeVpScheduler": {
        "predictor": ("euler_maruyama", "reverse_diffusion", "ancestral_sampling", "none"),
        "corrector": ("none", "langevin", "ald"),
    },
}
"""Options whose values are another list in these classes."""

VELOCITIES = frozenset({"IPNDMScheduler"})
"""Classes without a choice of prediction type whose networks return v = a·noise − b·x_0."""

SCORES = frozenset({"ScoreSdeVeScheduler"})
"""Classes whose network returns the score, the gradient of log p: -noise / b in x = a·x_0 + b·noise."""

INHERITED = {
    "IPNDMScheduler": frozenset({"num_train_timesteps"}),
    "LCMScheduler": frozenset({"set_alpha_to_one", "steps_offset", "timestep_spacing"}),
}
"""Options that a class takes only because its published files have them, e.g. from the scheduler of the teacher."""

UNUSABLE: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (0, -1, 1.5, True),
    "original_inference_steps": (0, -1, 1.5, True, 10**6),
    "shift": (0.0, -1.0),
    "shift_terminal": (1.0, -0.1),
    "sigma_data": (0.0, -1.0),
    "sigma_min": (-1.0, float("nan")),
    "sigma_max": (0.0, -1.0, float("nan")),
    "rho": (0.0, -1.0),
    "eta": (-0.5, float("nan"), float("inf"), True, "1"),
    "r": (0.0, 1.5, float("nan"), True, "1"),
    "rtol": (0.0, -1.0, float("nan")),
    "atol": (-1.0, float("nan")),
    "h_init": (0.0, -1.0, float("nan")),
    "accept_safety": (0.0, float("nan"), float("inf"), True, "1"),
    "pcoeff": (float("nan"), True, "1"),
    "icoeff": (float("nan"),),
    "dcoeff": (float("inf"),),
}
"""Values of options that take a number, with which no sampler of any family can be defined."""

EXCLUSIVE = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")
"""At most one of these can be on."""


TOKENS = frozenset({"mask_token_id", "num_vec_classes", "starting_mask_ratio", "temperature", "entropy_bound"})
"""Arguments that only samplers of discrete tokens have."""


UNUSUAL = {
    "DDPMWuerstchenScheduler": "step takes one timestep for each sample, and none is after the last",
    "HeliosScheduler": "set_timesteps needs a stage",
    "HeliosDMDScheduler": "set_timesteps needs a stage",
    "PiflowScheduler": "the network returns a policy, of more channels than the sample has",
    "SCMScheduler": "set_timesteps takes 2 steps unless the intermediate timesteps are given",
}
"""Classes that are driven otherwise than by `set_timesteps(n)` and `step(model_output, timestep, sample)`."""


def samples_tokens(cls: type) -> bool:
    """Whether a class samples discrete tokens, so that model outputs and samples are no tensors of numbers."""
    return any(TOKENS & parameters(cls, method).keys() for method in ("__init__", "set_timesteps", "step"))


def parameters(cls: type, method: str) -> Mapping[str, inspect.Parameter]:
    """What a method can be given by name, but for self; where it takes any keyword, also what the base's takes."""
    return _named(tuple(vars(base)[method] for base in cls.__mro__ if method in vars(base)))


@lru_cache(maxsize=1024)
def _named(functions: tuple[Any, ...]) -> Mapping[str, inspect.Parameter]:
    """The parameters of the first function, and of those after it for as long as any keyword is taken."""
    found: dict[str, inspect.Parameter] = {}
    for function in functions:
        own = list(inspect.signature(function).parameters.values())
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found = {p.name: p for p in own[1:] if p.kind in named} | found
        if all(p.kind is not p.VAR_KEYWORD for p in own):
            break
    return MappingProxyType(found)


def required(cls: type) -> list[str]:
    """Options of the constructor without a default."""
    return [name for name, p in parameters(cls, "__init__").items() if p.default is p.empty]


def option_values(cls: type) -> dict[str, tuple[Any, ...]]:
    """For each option of the constructor with several known values: these, the default first."""
    found: dict[str, tuple[Any, ...]] = {}
    known = KNOWN | next((BY_CLASS[base.__name__] for base in cls.__mro__ if base.__name__ in BY_CLASS), {})
    for name, default in defaults(cls).items():
        if isinstance(default, bool):
            found[name] = (default, not default)
        elif name in known:
            values = known[name]
            if default in values:
                found[name] = (default, *(value for value in values if value != default))
            elif default is not None:
                found[name] = (default, *values)
    return {name: values for name, values in found.items() if len(values) > 1}


def defaults(cls: type) -> dict[str, Any]:
    """Options of the constructor that have a default."""
    return {name: p.default for name, p in parameters(cls, "__init__").items() if p.default is not p.empty}


def contradicts(config: Mapping[str, Any]) -> bool:
    """Whether two options exclude each other by definition, so that a class may refuse the combination."""
    return sum(bool(config.get(name)) for name in EXCLUSIVE) > 1
