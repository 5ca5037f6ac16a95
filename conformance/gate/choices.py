"""What a probe can choose: options of the constructor, of `set_timesteps` and of `step`, and ways to run a scheduler.

Every factor has a plain value, the default, and others. Enumerations are known by the option's name, or read off a
`Literal` annotation; a value that a class does not offer costs one probe, whose outcome is the refusal.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable
from typing import Any, Literal

from conformance.contracts.scheduler.options import BY_CLASS, KNOWN

PLAIN = "(default)"  # the value of a choice that is not made
SIGMA_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")

ENUMERATIONS: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "const", "jsd", "warmup10"),
    "coefficients": ("float64", "float32_cumprod", "compvis"),
    "timestep_spacing": ("leading", "linspace", "trailing", "ddim_uniform", "ddim_quad", "improved_diffusion"),
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction", "previous_sample"),
    "solver": ("f_pndm", "s_pndm", "plms"),
    "timestep_type": ("discrete", "continuous"),
    "masking_schedule": ("cosine", "linear"),
    "corrector_selection": ("lowest_log_margin", "random"),
    "scheduler_type": ("unipc", "euler"),
}
"""Beside `conformance.contracts.scheduler.options.KNOWN`."""

OTHER_VALUES: dict[str, tuple[Any, ...]] = {
    "beta_start": (0.001,),
    "beta_end": (0.01,),
    "trained_betas": ("quadratic",),  # see `conformance.gate.driver.decoded`
    "num_train_timesteps": (100, 5),  # 5: as many as the steps that are plain
    "clip_sample_range": (0.5,),
    "sample_max_value": (1.5,),
    "dynamic_thresholding_ratio": (0.7,),
    "lambda_min_clipped": (-1.0,),
    "solver_order": (1, 2, 3),
    "solver_p": (None,),
    "sigma_min": (0.05,),
    "sigma_max": (12.0,),
    "shift_terminal": (0.1,),
    "s_churn": (1.5,),
    "s_tmin": (0.3,),
    "s_tmax": (5.0,),
    "s_noise": (1.1,),
    "eta": (0.6,),
    "mu": (0.9,),
    "strength": (0.6,),
    "original_inference_steps": (40,),
    "temperature": (0.8,),
    "top_k": (3,),
    "top_p": (0.7,),
    "stages": (),
    "steps_offset": (1,),
    "stage_index": (0, 1),
    "stage_range": (),
    "use_clipped_model_output": (True,),
    "classifier_gradient": ("live",),  # see `conformance.gate.driver`
    "n_grid": (),
    "num_policy_substeps": (),
}
"""Values to try beside the default; for what is not listed, see `_others`."""

REQUIRED: dict[str, tuple[Any, ...]] = {
    "mask_token_id": (5,),
    "num_vec_classes": (6,),
    "schedule_mode": ("log", "power"),
    "noise_mode": ("1/t", "tan"),
    "tsr_k": (1.5, 1.0),
    "tsr_sigma": (0.8,),
}
"""Values of options without a default."""

GIVEN_BY_DRIVER = (
    "self", "model_output", "timestep", "sample", "generator", "variance_noise", "return_dict",
    "num_inference_steps", "device", "timesteps", "sigmas", "original_image", "mask",
    "old_pred_original_sample", "timestep_back", "sigma_hat", "sigma_prev", "sample_hat", "mask_token_id",
)  # fmt: skip

STEPS = (5, 3, 1, 2, 7, 10, 15)  # solvers lower their order below 15
STARTS = ("first", "begin_index", "later")


def factors(cls: type) -> dict[str, tuple[Any, ...]]:
    """Factor -> values of a scheduler class, the plain one first.

    `config.*`, `set.*` and `step.*` are keyword arguments; the others say how the scheduler is run:
        steps: number of inference steps.
        grid: what `set_timesteps` is given: "steps", "timesteps" or "sigmas".
        start: from the first entry, or from a later one, announced by `set_begin_index` or not.
        noise: where a step's noise comes from: "generator" or "given" (`variance_noise`).
        again: whether the run that is observed is the second one of the same object.
        tuple: whether `step` is asked for a tuple.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for name, values in _arguments(cls, "__init__").items():
        found[f"config.{name}"] = values
    found["steps"] = STEPS
    accepted = _parameters(cls, "set_timesteps")
    found["grid"] = ("steps", *(name for name in ("timesteps", "sigmas") if name in accepted))
    found["start"] = STARTS if hasattr(cls, "set_begin_index") else (STARTS[0], STARTS[2])
    step = _parameters(cls, "step")
    if "variance_noise" in step:
        found["noise"] = ("generator", "given")
    found["again"] = (False, True)
    if "return_dict" in step:
        found["tuple"] = (False, True)
    for prefix, method in (("set", "set_timesteps"), ("step", "step")):
        for name, values in _arguments(cls, method).items():
            found[f"{prefix}.{name}"] = values
    return {name: values for name, values in found.items() if len(values) > 1 or values[0] != PLAIN}


def _arguments(cls: type, method: str) -> dict[str, tuple[Any, ...]]:
    """Keyword arguments of a method with the values to try."""
    found = {}
    hints = _hints(getattr(cls, method, None))
    for name, parameter in _parameters(cls, method).items():
        if (name in GIVEN_BY_DRIVER and method != "__init__") or name == "self":
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is parameter.empty:
            if name in REQUIRED:
                found[name] = REQUIRED[name]
            continue
        others = _others(cls, name, parameter.default, hints.get(name))
        found[name] = (PLAIN, *(value for value in others if not _same(value, parameter.default)))
    return found


def _others(cls: type, name: str, default: Any, hint: Any) -> tuple[Any, ...]:
    """Values to try beside `default`."""
    special = next((BY_CLASS[base.__name__] for base in cls.__mro__ if base.__name__ in BY_CLASS), {})
    if name in special:
        return special[name]
    if isinstance(default, bool):
        return (not default,)
    values = dict.fromkeys((*_literals(hint), *KNOWN.get(name, ()), *ENUMERATIONS.get(name, ())))
    if values and (default is None or isinstance(default, (str, int))):
        return tuple(values)
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if isinstance(default, int):
        return (default + 1,)
    if isinstance(default, float) and math.isfinite(default):
        return (default * 0.75 if default else 0.25,)
    return ()


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default


def _literals(hint: Any) -> tuple[Any, ...]:
    """Values of a `Literal`, also inside a union."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return tuple(value for part in typing.get_args(hint) for value in _literals(part))


def _parameters(cls: type, method: str) -> dict[str, inspect.Parameter]:
    function = getattr(cls, method, None)
    return dict(inspect.signature(function).parameters) if callable(function) else {}


def _hints(function: Callable[..., Any] | None) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(function)) if function is not None else {}
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        return {}
