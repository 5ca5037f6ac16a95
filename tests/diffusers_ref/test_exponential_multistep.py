"""DEIS, UniPC and iPNDM: published numbers, what options refuse, beginnings in the middle, explicit grids."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from conformance.network import AnalyticNetwork
from diffusers_ref import (
    ConfigError,
    DEISMultistepScheduler,
    DEISRungeKuttaScheduler,
    IPNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers_ref.schedulers.deis import log_rho_weights
from diffusers_ref.schedulers.piecewise_vp import PiecewiseVP, TimePhase

LINEAR = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ABAR = (1 - LINEAR.float()).cumprod(0)


def run(scheduler: Any, network: AnalyticNetwork, x: torch.Tensor, begin: int = 0) -> torch.Tensor:
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), scheduler.network_timestep(t)), t, x).prev_sample
    return x


def noise(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)


# --- published -------------------------------------------------------------------------------------------------------

PUBLISHED = [
    ("DEISMultistepScheduler", {}),
    ("DEISMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
    ("DEISMultistepScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "leading", "steps_offset": 1}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "disable_corrector": [0, 2], "beta_schedule": "scaled_linear"}),
    ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_type": "bh1"}),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "sigma_min": 0.05, "thresholding": True}),
    ("UniPCMultistepScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
]


@pytest.mark.parametrize(("name", "config"), PUBLISHED)
def test_published_configs_give_the_published_numbers(name: str, config: dict[str, Any]) -> None:
    diffusers = pytest.importorskip("diffusers")
    network = AnalyticNetwork(prediction=config.get("prediction_type", "epsilon"))
    theirs, ours = getattr(diffusers, name)(**config), globals()[name](**config)
    theirs.set_timesteps(8)
    ours.set_timesteps(8)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    x = y = noise()
    for t in theirs.timesteps:
        y = theirs.step(network(y, t), t, y).prev_sample
    # Published tables and coefficients are float32 throughout.
    torch.testing.assert_close(run(ours, network, x), y, rtol=0, atol=1e-4)


def test_bh1_ends_at_zero_without_nan() -> None:
    scheduler = UniPCMultistepScheduler(solver_type="bh1")
    scheduler.set_timesteps(5)
    assert run(scheduler, AnalyticNetwork(), noise()).isfinite().all()


def test_the_noise_form_of_unipc_ends_at_zero() -> None:
    scheduler = UniPCMultistepScheduler(predict_x0=False)
    scheduler.set_timesteps(5)
    x0, n = noise(), noise().flip(0)
    x = scheduler.add_noise(x0, n, scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        x = scheduler.step(n, t, x).prev_sample
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-5)


def test_ipndm_follows_the_velocity_from_pure_noise() -> None:
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(4)
    x0, n = noise(), noise().flip(0)
    x = n
    for t in scheduler.timesteps:
        angle = float(t) * math.pi / 2
        x = scheduler.step(math.cos(angle) * n - math.sin(angle) * x0, t, x).prev_sample
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-6)


# --- DEIS ------------------------------------------------------------------------------------------------------------


def test_log_rho_weights_integrate_polynomials_in_log_rho() -> None:
    end, known = 0.3, [0.7, 1.9, 4.0]
    # ∫ (log ρ)^k dρ
    integrals = (lambda r: r, lambda r: r * math.log(r) - r, lambda r: r * (math.log(r) ** 2 - 2 * math.log(r) + 2))
    for count in (1, 2, 3):
        weights = log_rho_weights(end, known[:count])
        for power in range(count):
            found = sum(w * math.log(r) ** power for w, r in zip(weights, known, strict=False))
            assert found == pytest.approx(integrals[power](end) - integrals[power](known[0]), abs=1e-12)


def test_log_rho_weights_reach_zero_noise() -> None:
    assert log_rho_weights(0.0, [0.5]) == [-0.5]
    near, at = log_rho_weights(1e-9, [0.5, 1.0, 2.0]), log_rho_weights(0.0, [0.5, 1.0, 2.0])
    assert at == pytest.approx(near, abs=1e-5)


@pytest.mark.parametrize("phase", ["t", "log", "rho"])
def test_times_run_from_the_last_training_step_to_the_first(phase: str) -> None:
    times = PiecewiseVP(ABAR).times(TimePhase(phase), 2.0, 7)
    assert len(times) == 8 and times[-1] == 0 and times[0] == pytest.approx(999, abs=0.5)
    assert (np.diff(times) < 0).all()


def test_times_become_whole_where_two_fall_between_the_same_timesteps() -> None:
    times = PiecewiseVP(ABAR[::25].contiguous()).times(TimePhase.T, 2.0, 30)
    assert times.dtype == np.int32 and len(set(times.tolist())) == 31


def test_rho_solvers_scale_the_state() -> None:
    scheduler = DEISMultistepScheduler(solver_type="rho_ab", solver_order=4)
    scheduler.set_timesteps(6)
    assert scheduler.init_noise_sigma == pytest.approx(float(ABAR[-1]) ** -0.5, rel=1e-3)
    x = noise() * scheduler.init_noise_sigma
    assert scheduler.scale_model_input(x, scheduler.timesteps[0]).std() == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("solver", ["t_ab", "rho_ab", "ipndm"])
def test_qsh_zhs_solvers_converge_to_one_another(solver: str) -> None:
    scheduler = DEISMultistepScheduler(solver_type=solver, solver_order=3)
    exact = DEISRungeKuttaScheduler(rk_method="4rk")
    exact.set_timesteps(40)
    scheduler.set_timesteps(40)
    wanted = run(exact, AnalyticNetwork(), noise() * exact.init_noise_sigma)
    found = run(scheduler, AnalyticNetwork(), noise() * scheduler.init_noise_sigma)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_a_run_of_deis_can_begin_in_the_middle() -> None:
    scheduler = DEISMultistepScheduler(solver_type="t_ab", solver_order=4)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5)
    late = run(scheduler, AnalyticNetwork(), noise(), begin=5)
    scheduler.set_timesteps(timesteps=scheduler.timesteps[5:].tolist())
    torch.testing.assert_close(run(scheduler, AnalyticNetwork(), noise()), late, rtol=0, atol=0)


# --- UniPC -----------------------------------------------------------------------------------------------------------


def test_a_step_without_corrector_is_the_predictor_alone() -> None:
    plain = UniPCMultistepScheduler(solver_order=1, disable_corrector=range(10))
    plain.set_timesteps(6)
    ddim = DEISMultistepScheduler(solver_order=1)
    ddim.set_timesteps(6)
    assert plain.timesteps.tolist() == ddim.timesteps.tolist()
    t, x = plain.timesteps[0], noise()
    e = AnalyticNetwork()(x, t)
    torch.testing.assert_close(plain.step(e, t, x).prev_sample, ddim.step(e, t, x).prev_sample, rtol=0, atol=1e-6)


def test_another_scheduler_can_predict() -> None:
    predictor = DEISMultistepScheduler(solver_order=1)
    scheduler = UniPCMultistepScheduler(solver_p=predictor, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(5)
    t, x = scheduler.timesteps[0], noise()
    e = AnalyticNetwork()(x, t)
    first = scheduler.step(e, t, x).prev_sample
    predictor.set_timesteps(5)
    torch.testing.assert_close(first, predictor.step(e, t, x).prev_sample, rtol=0, atol=0)


def test_repeated_timesteps_are_steps_that_stay() -> None:
    scheduler = UniPCMultistepScheduler(solver_order=3)
    scheduler.set_timesteps(timesteps=[900, 600, 600, 300, 100])
    assert run(scheduler, AnalyticNetwork(), noise()).isfinite().all()


def test_dynamic_shifting_takes_mu() -> None:
    scheduler = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", use_dynamic_shifting=True
    )
    with pytest.raises(ValueError, match="needs mu"):
        scheduler.set_timesteps(4)
    scheduler.set_timesteps(4, mu=math.log(3.0))
    static = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    static.set_timesteps(4)
    torch.testing.assert_close(scheduler.sigmas, static.sigmas)


# --- refusals and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DEISMultistepScheduler(ts_phase="t"), "ts_phase"),
        (lambda: DEISMultistepScheduler(solver_type="ipndm", ts_order=2.0), "ts_order"),
        (lambda: DEISMultistepScheduler(solver_type="t_ab", ts_phase="log", ts_order=2.0), "no effect"),
        (lambda: DEISMultistepScheduler(solver_type="t_ab", use_karras_sigmas=True), "use_karras_sigmas"),
        (lambda: DEISMultistepScheduler(solver_order=4), "1 to 3"),
        (lambda: DEISMultistepScheduler(algorithm_type="sde"), "algorithm_type"),
        (lambda: UniPCMultistepScheduler(predict_x0=False, thresholding=True), "predict_x0"),
        (lambda: UniPCMultistepScheduler(sigma_min=0.1), "sigma_min"),
        (lambda: UniPCMultistepScheduler(shift_terminal=0.1), "shift_terminal"),
        (lambda: UniPCMultistepScheduler(log_snr="discrete", disable_corrector=[1]), "disable_corrector"),
        (lambda: UniPCMultistepScheduler(solver_order=0), "solver_order"),
        (lambda: IPNDMScheduler(trained_betas=[1.0, 0.5, 0.0], angle_schedule="log"), "trained_betas"),
        (lambda: IPNDMScheduler(trained_betas=[0.5, 0.7]), "trained_betas"),
    ],
)
def test_options_without_a_meaning_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_configs_travel_through_json() -> None:
    scheduler = UniPCMultistepScheduler.from_config(
        {"disable_corrector": [], "solver_p": None, "solver_type": "midpoint"}
    )
    again = UniPCMultistepScheduler.from_config(json.loads(scheduler.to_json_string()))
    assert again.config == scheduler.config and again.config.disable_corrector == ()


def test_trained_betas_are_the_grid_of_ipndm() -> None:
    scheduler = IPNDMScheduler(trained_betas=[0.9, 0.5, 0.0])
    scheduler.set_timesteps(2)
    assert torch.sin(scheduler.timesteps * math.pi / 2).tolist() == pytest.approx([0.9, 0.5])
    with pytest.raises(ValueError, match="allowed: 2"):
        scheduler.set_timesteps(3)
