"""DPM-Solver: published configurations beside HF diffusers, LuChengTHU's conventions, starts, refusals."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import diffusers_ref
from diffusers_ref import ConfigError, DPMSolverAdaptiveScheduler
from diffusers_ref.schedulers.dpm_solver_updates import AlgorithmType, weights
from diffusers_ref.schedulers.log_snr import (
    CosineLogSnr,
    LinearLogSnr,
    SkipType,
    discrete_log_snr,
    singlestep_orders,
)

MULTI, SINGLE = NAMES = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")
SHAPE = (2, 3, 4, 2)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ORIGINAL = {"log_snr": "discrete_clipped", "final_sigmas_type": "sigma_min"}
TABLES = 2e-5
"""HF makes ᾱ in float32 and 1 − e^−h by a difference: relative to the result of these runs."""


def make(name: str, library: Any = diffusers_ref, **options: Any) -> Any:
    return getattr(library, name)(**options)


def network(x: Tensor, t: Tensor | float) -> Tensor:
    return torch.sin(x + 0.003 * float(t)) * 0.8


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)


def run(scheduler: Any, x: Tensor, begin: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    for t in list(scheduler.timesteps)[begin:]:
        x = scheduler.step(network(x, scheduler_time(scheduler, t)), t, x, generator=generator).prev_sample
    return x


def scheduler_time(scheduler: Any, t: Tensor) -> Any:
    return scheduler.network_timestep(t) if hasattr(scheduler, "network_timestep") else t


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# --- published configurations -----------------------------------------------------------------------------------------

PUBLISHED = [
    {},
    {"solver_order": 3, "solver_type": "heun"},
    {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"},
    {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3},
    {"use_karras_sigmas": True, "solver_order": 3},
    {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    {"thresholding": True, "sample_max_value": 1.5, "prediction_type": "v_prediction"},
    {"prediction_type": "sample", "lower_order_final": True},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", PUBLISHED, ids=str)
@pytest.mark.parametrize("steps", [5, 16])
def test_a_published_config_gives_what_hf_gives(name: str, config: dict[str, Any], steps: int) -> None:
    config = STABLE_DIFFUSION | config
    if config["beta_schedule"] != "scaled_linear":
        config = {key: value for key, value in config.items() if key not in ("beta_start", "beta_end")}
    results = []
    for library in (diffusers_ref, diffusers):
        scheduler = make(name, library, **config)
        scheduler.set_timesteps(steps)
        results.append((scheduler.timesteps.tolist(), scheduler.sigmas, run(scheduler, start())))
    (times, sigmas, ours), (hf_times, hf_sigmas, hf) = results
    assert times == hf_times
    assert difference(sigmas, hf_sigmas) < TABLES
    assert difference(ours, hf) < 10 * TABLES


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_the_published_spacings(spacing: str) -> None:
    for steps in (1, 7, 27, 999):
        found = []
        for library in (diffusers_ref, diffusers):
            scheduler = make(MULTI, library, timestep_spacing=spacing)
            scheduler.set_timesteps(steps)
            found.append(scheduler.timesteps.tolist()[:steps])
        assert found[0] == found[1]


def test_exponential_and_beta_sigmas_have_the_nearest_times() -> None:
    for option in ("use_exponential_sigmas", "use_beta_sigmas"):
        scheduler = make(MULTI, **{option: True})
        scheduler.set_timesteps(9)
        table = scheduler.alphas_cumprod
        at_times = ((1 - table) / table).sqrt()[scheduler.timesteps]
        assert ((scheduler.sigmas[:-1] / at_times).log().abs() < 0.2).all()
        assert scheduler.timesteps[0] == 999


def test_a_third_order_step_of_the_sde_integrates_a_parabola() -> None:
    """Its mean is σ_t/σ_s e^−h x_s + 2 α_t ∫ e^−2(λ_t − λ) x_0(λ) dλ, exactly for an x_0 that is quadratic in λ."""
    scheduler = make(SINGLE, algorithm_type="sde-dpmsolver++", solver_order=3, solver_type="heun", orders="fixed",
                     prediction_type="sample", log_snr="linear", final_sigmas_type="sigma_min")  # fmt: skip
    scheduler.set_timesteps(3, t_start=0.5, t_end=0.2)
    levels = LinearLogSnr().levels(torch.cat([scheduler.timesteps, torch.tensor([0.2])]), torch.float64)
    first, last = levels.half_log_snr[0], levels.half_log_snr[-1]

    def parabola(half_log_snr: Tensor) -> Tensor:
        return 0.7 + 0.5 * half_log_snr - 0.9 * half_log_snr**2

    x = start(torch.float64)
    visited = torch.linspace(first.item(), last.item(), 200_001, dtype=torch.float64)
    integral = torch.trapezoid(2 * torch.exp(2 * (visited - last)) * parabola(visited), visited)
    decay = levels.sigma[-1] / levels.sigma[0] * torch.exp(first - last)
    wanted = decay * x + levels.alpha[-1] * integral
    for t, half_log_snr in zip(scheduler.timesteps, levels.half_log_snr, strict=False):
        output = torch.full(SHAPE, parabola(half_log_snr).item(), dtype=torch.float64)
        x = scheduler.step(output, t, x, variance_noise=torch.zeros(SHAPE)).prev_sample
    assert difference(x, wanted) < 1e-6  # the tables are float32


def test_the_sde_weighs_outputs_as_the_ode_of_twice_the_step() -> None:
    levels = LinearLogSnr().levels(torch.tensor([0.6, 0.3]), torch.float64)
    h = levels.half_log_snr.diff()
    start_level, end = levels.at([0]), levels.at([1])
    sde = weights(AlgorithmType.SDE_DPM_SOLVER_PP, start_level, end, h)
    ode = weights(AlgorithmType.DPM_SOLVER_PP, start_level, end, 2 * h)
    assert (sde.m_0, sde.midpoint, sde.d_1, sde.d_2) == (ode.m_0, ode.midpoint, ode.d_1, ode.d_2)


# --- LuChengTHU's conventions -----------------------------------------------------------------------------------------


def test_the_order_plans() -> None:
    assert singlestep_orders(6, 3) == [3, 2, 1]
    assert singlestep_orders(7, 3) == [3, 3, 1]
    assert singlestep_orders(8, 3) == [3, 3, 2]
    assert singlestep_orders(6, 2) == [2, 2, 2]
    assert singlestep_orders(2, 3) == [2]
    with pytest.raises(ValueError, match="at least 1 step"):
        singlestep_orders(0, 2)


@pytest.mark.parametrize("schedule", [LinearLogSnr(), CosineLogSnr()])
@pytest.mark.parametrize("skip_type", list(SkipType))
def test_times_fall_and_lambda_is_inverted(schedule: Any, skip_type: SkipType) -> None:
    t = schedule.times(skip_type, 8)
    assert (t.diff() < 0).all()
    assert math.isclose(t[0], schedule.end, rel_tol=1e-4)
    assert math.isclose(t[-1], 1e-3, rel_tol=2e-2)  # λ is ill conditioned there in float32
    assert torch.allclose(schedule.time(schedule.half_log_snr(t[:-1])), t[:-1], rtol=1e-4)


def test_the_noisy_end_is_cut_off_and_the_rest_stretched() -> None:
    betas = torch.linspace(0.01, 0.9, 20)
    whole, clipped = (discrete_log_snr(betas=betas, clipped=clipped) for clipped in (False, True))
    assert clipped.steps < whole.steps == 20
    assert clipped.half_log_snr(torch.ones(1)) > -5.1
    assert torch.equal(clipped.network_time(torch.ones(1)), (torch.ones(1) - 1 / clipped.steps) * 1000)


def test_the_network_is_given_fractional_times_and_the_run_ends_at_one_step() -> None:
    scheduler = make(MULTI, **ORIGINAL)
    scheduler.set_timesteps(7)
    assert scheduler.timesteps.dtype == torch.float32
    assert scheduler.timesteps[0] == 999
    assert 0 < scheduler.timesteps[1] % 1 < 1
    first = scheduler.alphas_cumprod[0]
    assert math.isclose(scheduler.sigmas[-1], ((1 - first) / first).sqrt(), rel_tol=1e-3)


def test_to_denoise_takes_the_last_evaluation() -> None:
    scheduler = make(SINGLE, **ORIGINAL | {"final_sigmas_type": "zero"})
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) == 5
    assert abs(scheduler.timesteps[-1]) < 1e-3
    x = run(scheduler, start())
    assert x.isfinite().all()
    with pytest.raises(ValueError, match="at least 2"):
        scheduler.set_timesteps(1)


def test_explicit_times_are_kept() -> None:
    for name in NAMES:
        scheduler = make(name, **ORIGINAL)
        scheduler.set_timesteps(timesteps=[900.5, 400.25, 10.0])
        assert scheduler.timesteps.tolist() == [900.5, 400.25, 10.0]
        scheduler = make(name)
        scheduler.set_timesteps(timesteps=[900, 400, 10])
        assert scheduler.timesteps.tolist() == [900, 400, 10]
        scheduler.set_timesteps(sigmas=[10.0, 1.0, 0.5])
        assert scheduler.sigmas.tolist() == [10.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_sampling_begins_anywhere(name: str) -> None:
    """Along a straight path with constant noise every step of any order lands on the next level."""
    scheduler = make(name, solver_order=3, final_sigmas_type="sigma_min", algorithm_type="dpmsolver")
    scheduler.set_timesteps(9)
    x0, noise = 0.5 * torch.sin(start()), start()
    for begin in range(9):
        scheduler.set_begin_index(begin)
        x = scheduler.add_noise(x0, noise, scheduler.timesteps[begin])
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(noise, t, x).prev_sample
        assert difference(x, scheduler.add_noise(x0, noise, 0)) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_repeated_times_are_no_step(name: str) -> None:
    once, twice = make(name, solver_order=2), make(name, solver_order=2)
    once.set_timesteps(timesteps=[900, 600, 300, 100])
    twice.set_timesteps(timesteps=[900, 600, 600, 300, 100])
    found = run(twice, start())
    assert found.isfinite().all()
    if name == MULTI:
        assert difference(found, run(once, start())) < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_flow_may_begin_without_signal(name: str, order: int) -> None:
    scheduler = make(name, use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=order)
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.3, 0.1])
    x0, noise = 0.5 * torch.sin(start()), start()
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(noise - x0, t, x).prev_sample
    assert difference(x, x0) < 1e-5


def test_the_adaptive_sampler_tells_its_times_one_by_one() -> None:
    tight, loose = (DPMSolverAdaptiveScheduler(log_snr="linear", rtol=rtol) for rtol in (0.01, 0.2))
    results = []
    for scheduler in (tight, loose, tight):
        scheduler.set_timesteps()
        x = start()
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, 1000 * t), t, x).prev_sample
        results.append(x)
        assert scheduler.evaluations == 3 * (scheduler.accepted + scheduler.rejected)
        with pytest.raises(ValueError, match="run has ended"):
            scheduler.step(x, 0.5, x)
    assert tight.evaluations > loose.evaluations
    assert torch.equal(results[0], results[2])
    assert difference(results[1], results[0]) < 0.2


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (MULTI, {"algorithm_type": "dpmsolver"}, "sigma_min"),
        (MULTI, {"use_karras_sigmas": True, "use_lu_lambdas": True}, "exclude"),
        (MULTI, {"skip_type": "logSNR"}, "needs log_snr"),
        (MULTI, {**ORIGINAL, "timestep_spacing": "trailing"}, "log_snr replaces"),
        (MULTI, {**ORIGINAL, "log_snr": "linear", "coefficients": "float64"}, "discrete"),
        (MULTI, {**ORIGINAL, "algorithm_type": "dpmsolver", "thresholding": True}, "thresholding"),
        (MULTI, {"prediction_type": "flow_prediction"}, "use_flow_sigmas"),
        (MULTI, {"solver_order": 4}, "1, 2, 3"),
        (MULTI, {"sample_min_value": 2.0}, "not above"),
        (SINGLE, {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}, "not known"),
        (SINGLE, {"orders": "fast", "lower_order_final": True}, "no effect"),
        (SINGLE, {"orders": "fixed"}, "needs log_snr"),
        ("DPMSolverAdaptiveScheduler", {"solver_order": 1}, "2, 3"),
        ("DPMSolverAdaptiveScheduler", {"rtol": 0.0}, "above 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(name, **options)


@pytest.mark.parametrize(
    ("options", "request_", "words"),
    [
        ({}, {}, "exactly one"),
        ({}, {"num_inference_steps": 0}, "at least 1"),
        ({}, {"num_inference_steps": 4, "mu": 1.0}, "use_dynamic_shifting"),
        ({}, {"num_inference_steps": 4, "t_end": 0.1}, "need log_snr"),
        ({}, {"timesteps": [10, 20]}, "none larger"),
        ({}, {"sigmas": [1.0, math.nan]}, "positive"),
        ({"use_flow_sigmas": True}, {"sigmas": [1.5, 0.5]}, "at most 1"),
        ({"timestep_spacing": "leading"}, {"num_inference_steps": 1000}, "fewer steps"),
        ({"use_karras_sigmas": True}, {"timesteps": [20, 10]}, "use_karras_sigmas"),
        (ORIGINAL, {"num_inference_steps": 4, "t_end": 1e-4}, "out of range"),
        (ORIGINAL, {"timesteps": [10.0, 20.0]}, "not allowed"),
    ],
)
def test_requests_that_mean_nothing_are_refused(options: Any, request_: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(MULTI, **options).set_timesteps(**request_)


def test_noise_is_refused_where_none_is_drawn() -> None:
    scheduler = make(MULTI)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="variance_noise"):
        scheduler.step(start(), 999, start(), variance_noise=start())
