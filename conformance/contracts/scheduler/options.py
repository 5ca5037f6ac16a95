"""Which values of which option a check tries: known options by name, the rest from the constructor's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

KNOWN: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
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
}
"""Values of options that take one of a list. A value that a class refuses with ValueError or NotImplementedError when
it is made is one it does not offer."""

BY_CLASS: dict[str, dict[str, tuple[Any, ...]]] = {
    "DPMSolverMultistepScheduler": {"solver_type": ("midpoint", "heun")},
    "DPMSolverMultistepInverseScheduler": {"solver_type": ("midpoint", "heun")},
    "DPMSolverSinglestepScheduler": {"solver_type": ("midpoint", "heun")},
    "EDMDPMSolverMultistepScheduler": {"solver_type": ("midpoint", "heun")},
    "DEISMultistepScheduler": {"algorithm_type": ("deis",), "solver_type": ("logrho",)},
    "UniPCMultistepScheduler": {"solver_type": ("bh2", "bh1")},
    "SASolverScheduler": {"algorithm_type": ("data_prediction", "noise_prediction")},
}
"""Options whose values are another list in these classes."""

EXCLUSIVE = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")
"""At most one of these can be on."""


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
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def contradicts(config: Mapping[str, Any]) -> bool:
    """Whether two options exclude each other by definition, so that a class may refuse the combination."""
    return sum(bool(config.get(name)) for name in EXCLUSIVE) > 1
