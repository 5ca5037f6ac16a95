"""What options of well-known classes mean when they are left out, as HF diffusers documents it and published
configurations rely on it; for samplers that only an original has, as its functions' signatures say."""

from __future__ import annotations

from typing import Any

_CHAIN: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
_LIMITS: dict[str, Any] = {
    "clip_sample": True,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "rescale_betas_zero_snr": False,
}

_LATENT: dict[str, Any] = {
    **_CHAIN,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "linspace",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_PIXELS: dict[str, Any] = {**_CHAIN, "timestep_spacing": "linspace"}
_BETWEEN_ENDS: dict[str, Any] = {
    **{name: value for name, value in _LATENT.items() if name in _CHAIN and not name.startswith(("time", "steps"))},
    "sigma_min": None,
    "sigma_max": None,
    "eta": 0.0,
    "s_noise": 1.0,
}

_FLOW: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "time_shift_type": "exponential",
}

_VP_SDE: dict[str, Any] = {"num_train_timesteps": 2000, "beta_min": 0.1, "beta_max": 20.0, "sampling_eps": 1e-3}

_SOLVER: dict[str, Any] = {
    **{name: value for name, value in _CHAIN.items() if not name.startswith(("timestep", "steps"))},
    "solver_order": 2,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}

CONSTRUCTOR: dict[str, dict[str, Any]] = {
    "CMStochasticIterativeScheduler": {
        "num_train_timesteps": 40,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "s_noise": 1.0,
        "rho": 7.0,
        "clip_denoised": True,
    },
    "EulerDiscreteScheduler": {
        **_LATENT,
        **_PIXELS,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_PIXELS, "rescale_betas_zero_snr": False},
    "HeunDiscreteScheduler": {**_LATENT, "clip_sample": False, "clip_sample_range": 1.0},
    "LMSDiscreteScheduler": {**_LATENT, **_PIXELS},
    "KDPM2DiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
    "DPMSolverSDEScheduler": {**_LATENT, "noise_sampler_seed": None},
    "DPMPP2MScheduler": _LATENT,
    "DPMPP2MSDEScheduler": {
        **_LATENT,
        "noise_sampler_seed": None,
        "eta": 1.0,
        "s_noise": 1.0,
        "solver_type": "midpoint",
    },
    "DPMPP3MSDEScheduler": {**_LATENT, "noise_sampler_seed": None, "eta": 1.0, "s_noise": 1.0},
    "DPMPP2SAncestralScheduler": {**_LATENT, "eta": 1.0, "s_noise": 1.0},
    "DPMFastScheduler": _BETWEEN_ENDS,
    "DPMSolverMultistepScheduler": {
        **_SOLVER,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
    },
    "DPMSolverSinglestepScheduler": {**_SOLVER, "lower_order_final": False},
    "DPMSolverAdaptiveScheduler": {
        **{name: value for name, value in _SOLVER.items() if not name.startswith(("use", "flow", "lambda", "time"))},
        "coefficients": None,
        "log_snr": "discrete_clipped",
        "log_alpha_from": None,
        "solver_order": 3,
        "sample_max_value": None,
        "sample_min_value": 1.0,
        "final_sigmas_type": "sigma_min",
        "atol": 0.0078,
        "rtol": 0.05,
        "h_init": 0.05,
        "theta": 0.9,
        "t_err": 1e-5,
    },
    "DPMAdaptiveScheduler": {
        **_BETWEEN_ENDS,
        "order": 3,
        "rtol": 0.05,
        "atol": 0.0078,
        "h_init": 0.05,
        "pcoeff": 0.0,
        "icoeff": 1.0,
        "dcoeff": 0.0,
        "accept_safety": 0.81,
    },
    "EDMEulerScheduler": {
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "sigma_schedule": "karras",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "rho": 7.0,
        "final_sigmas_type": "zero",
    },
    "KarrasVeScheduler": {
        "sigma_min": 0.02,
        "sigma_max": 100.0,
        "s_noise": 1.007,
        "s_churn": 80.0,
        "s_min": 0.05,
        "s_max": 50.0,
    },
    "FlowMatchEulerDiscreteScheduler": {**_FLOW, "invert_sigmas": False, "stochastic_sampling": False},
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "LCMScheduler": {
        **_CHAIN,
        **_LIMITS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "original_inference_steps": 50,
        "set_alpha_to_one": True,
        "timestep_scaling": 10.0,
    },
    "DDPMScheduler": {**_CHAIN, **_LIMITS, "variance_type": "fixed_small"},
    "DDIMScheduler": {**_CHAIN, **_LIMITS, "set_alpha_to_one": True},
    "PNDMScheduler": {**_CHAIN, "skip_prk_steps": False, "set_alpha_to_one": False},
    "ScoreSdeVeScheduler": {
        "num_train_timesteps": 2000,
        "snr": 0.15,
        "sigma_min": 0.01,
        "sigma_max": 1348.0,
        "sampling_eps": 1e-5,
        "correct_steps": 1,
    },
    "ScoreSdeVpScheduler": _VP_SDE,
    "ScoreSdeSubVpScheduler": {
        **_VP_SDE,
        "predictor": "euler_maruyama",
        "corrector": "none",
        "probability_flow": False,
        "noise_removal": True,
    },
}
"""Class -> option of the constructor -> default."""

FURTHER: dict[str, dict[str, Any]] = {
    "DPMSolverMultistepScheduler": {"lower_order_below": 15, "sample_min_value": 1.0},
    "DPMSolverSinglestepScheduler": {"sample_min_value": 1.0},
}
"""Class -> option that published configurations do not have -> the default with which it does what they mean."""

_SOLVERS: dict[str, tuple[str, ...]] = {
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "deis"),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
}

VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "DPMSolverMultistepScheduler": {**_SOLVERS, "timestep_spacing": ("leading", "linspace", "trailing")},
    "DPMSolverSinglestepScheduler": _SOLVERS,
    "EDMEulerScheduler": {
        "sigma_schedule": ("karras", "exponential"),
        "prediction_type": ("epsilon", "v_prediction"),
        "final_sigmas_type": ("zero", "sigma_min"),
    },
}
"""Class -> option -> every value that published configurations have."""

STEP: dict[str, dict[str, Any]] = {
    "CMStochasticIterativeScheduler": {"generator": None, "return_dict": True},
    "EulerDiscreteScheduler": {"generator": None, "return_dict": True},
    "EulerAncestralDiscreteScheduler": {"generator": None, "return_dict": True},
    "HeunDiscreteScheduler": {"return_dict": True},
    "LMSDiscreteScheduler": {"order": 4, "return_dict": True},
    "KDPM2DiscreteScheduler": {"return_dict": True},
    "KDPM2AncestralDiscreteScheduler": {"generator": None, "return_dict": True},
    "DPMSolverSDEScheduler": {"generator": None, "return_dict": True},
    "DPMPP2MScheduler": {"return_dict": True},
    "DPMPP2MSDEScheduler": {"generator": None, "return_dict": True},
    "DPMPP3MSDEScheduler": {"generator": None, "return_dict": True},
    "DPMPP2SAncestralScheduler": {"generator": None, "return_dict": True},
    "DPMFastScheduler": {"generator": None, "return_dict": True},
    "DPMAdaptiveScheduler": {"generator": None, "return_dict": True},
    "DPMSolverMultistepScheduler": {"generator": None, "variance_noise": None, "return_dict": True},
    "DPMSolverSinglestepScheduler": {"generator": None, "return_dict": True},
    "DPMSolverAdaptiveScheduler": {"return_dict": True},
    "EDMEulerScheduler": {"generator": None, "return_dict": True, "pred_original_sample": None},
    "KarrasVeScheduler": {"return_dict": True},
    "FlowMatchEulerDiscreteScheduler": {"generator": None, "return_dict": True},
    "FlowMatchHeunDiscreteScheduler": {"generator": None, "return_dict": True},
    "LCMScheduler": {"generator": None, "return_dict": True},
    "DDPMScheduler": {"generator": None, "return_dict": True},
    "DDIMScheduler": {"eta": 0.0, "generator": None, "variance_noise": None, "return_dict": True},
    "PNDMScheduler": {"return_dict": True},
    "ScoreSdeVeScheduler": {"generator": None, "return_dict": True},
    "ScoreSdeVpScheduler": {"generator": None, "return_dict": True},
    "ScoreSdeSubVpScheduler": {"generator": None, "return_dict": True},
}
"""Class -> argument of step -> default."""

_CROWSONKB = {"linear": "float32_cumprod", "scaled_linear": "compvis", "squaredcos_cap_v2": "float64"}

PRECISION: dict[str, dict[str, str]] = {
    "EulerDiscreteScheduler": _CROWSONKB,
    "EulerAncestralDiscreteScheduler": _CROWSONKB,
    "HeunDiscreteScheduler": _CROWSONKB,
    "LMSDiscreteScheduler": _CROWSONKB,
    "KDPM2DiscreteScheduler": _CROWSONKB,
    "KDPM2AncestralDiscreteScheduler": _CROWSONKB,
    "DPMSolverSDEScheduler": _CROWSONKB,
    "DPMPP2MScheduler": _CROWSONKB,
    "DPMPP2MSDEScheduler": _CROWSONKB,
    "DPMPP3MSDEScheduler": _CROWSONKB,
    "DPMPP2SAncestralScheduler": _CROWSONKB,
    "DPMFastScheduler": _CROWSONKB,
    "DPMSolverMultistepScheduler": _CROWSONKB,
    "DPMSolverSinglestepScheduler": _CROWSONKB,
    "LCMScheduler": dict.fromkeys(("linear", "scaled_linear", "squaredcos_cap_v2"), "float32"),
    "DDPMScheduler": dict.fromkeys(("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"), "float64"),
    "DDIMScheduler": {
        "linear": "float32_cumprod",
        "scaled_linear": "compvis",
        "squaredcos_cap_v2": "float64",
        "sigmoid": "float32_cumprod",
    },
    "PNDMScheduler": {
        "linear": "float32_cumprod",
        "scaled_linear": "compvis",
        "squaredcos_cap_v2": "float32_cumprod",
        "sigmoid": "float32_cumprod",
    },
}
"""Class -> beta_schedule -> which of the `coefficients` an object has for which none was chosen: those of the code that
trained weights with such a schedule."""

SPACINGS: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"), ("leading", "linspace", "trailing")
)
"""Class -> every `timestep_spacing` that published configurations of it have."""
