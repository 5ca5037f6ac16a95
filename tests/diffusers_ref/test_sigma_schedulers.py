"""Samplers over noise levels: published configurations, crowsonkb's conventions, starts, churn, refusals."""

from __future__ import annotations

import copy
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import diffusers_ref
from diffusers_ref import ConfigError
from diffusers_ref.schedulers import sigmas as grids
from diffusers_ref.schedulers.lms_discrete import _integrals

EULER, ANCESTRAL, HEUN, LMS, DPM2, DPM2_ANCESTRAL = NAMES = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
CHURNED = (EULER, HEUN, DPM2)
SHAPE = (2, 1, 2, 3)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def make(name: str, library: Any = diffusers_ref, **options: Any) -> Any:
    return getattr(library, name)(**options)


def network(x: Tensor, t: Tensor | float) -> Tensor:
    """A live function of the input and of the time, without a meaning."""
    return torch.sin(x + 0.003 * float(t)) * 0.8


def run(scheduler: Any, seed: int | None = 0, begin: int = 0, x: Tensor | None = None) -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    if x is None:
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9)) * scheduler.init_noise_sigma
    draws = (
        {} if isinstance(scheduler, diffusers_ref.LMSDiscreteScheduler) or seed is None else {"generator": generator}
    )
    for t in scheduler.timesteps[begin:]:
        if hasattr(scheduler, "add_noise_to_input") and scheduler.config.s_churn:
            x = scheduler.add_noise_to_input(x, t, **draws)
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **draws).prev_sample
    return x


# --- published configurations ----------------------------------------------------------------------------------------

PUBLISHED = (
    *((name, {**STABLE_DIFFUSION, "timestep_spacing": "leading", "steps_offset": 1}) for name in NAMES),
    *((name, {"beta_schedule": "linear", "prediction_type": "v_prediction"}) for name in (EULER, ANCESTRAL, HEUN)),
    *((name, {**STABLE_DIFFUSION, "use_karras_sigmas": True}) for name in (EULER, HEUN, DPM2)),
    (EULER, {"use_beta_sigmas": True, "timestep_spacing": "trailing"}),
    (LMS, {"use_exponential_sigmas": True, "prediction_type": "v_prediction"}),
    (HEUN, {"beta_schedule": "exp", "clip_sample": True, "clip_sample_range": 0.7}),
    (EULER, {**STABLE_DIFFUSION, "final_sigmas_type": "sigma_min", "prediction_type": "sample"}),
    (EULER, {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    (EULER, {"prediction_type": "v_prediction", "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0,
             "use_karras_sigmas": True, "timestep_spacing": "leading", **STABLE_DIFFUSION}),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore::DeprecationWarning:numpy")
@pytest.mark.parametrize(("name", "config"), PUBLISHED)
def test_a_published_configuration_means_what_it_means_in_diffusers(name: str, config: dict[str, Any]) -> None:
    theirs, ours = make(name, diffusers, **config), make(name, **config)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(7)
    assert math.isclose(float(theirs.init_noise_sigma), ours.init_noise_sigma, rel_tol=1e-4)
    torch.testing.assert_close(ours.timesteps.double(), theirs.timesteps.double(), rtol=0, atol=2e-3)
    if name not in (ANCESTRAL, DPM2_ANCESTRAL):  # Their noise of the last step is one more draw.
        # Their tables are float32 throughout, and their linear interpolation of sigma sees it.
        torch.testing.assert_close(run(ours, None), run(theirs, None), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_cosine_schedule_gives_finite_samples(name: str) -> None:
    for options in ({}, {"prediction_type": "v_prediction"}):
        scheduler = make(name, beta_schedule="squaredcos_cap_v2", **options)
        scheduler.set_timesteps(25)
        assert run(scheduler).isfinite().all()


def test_log_linear_levels_are_as_many_as_steps_and_have_their_own_times() -> None:
    scheduler = make(EULER, interpolation_type="log_linear")
    scheduler.set_timesteps(6)
    assert len(scheduler.sigmas) == 7
    assert len(scheduler.timesteps) == 6
    ratios = scheduler.sigmas[1:6] / scheduler.sigmas[:5]
    torch.testing.assert_close(ratios, ratios[:1].expand(5), rtol=1e-6, atol=0)
    again = grids.level_at_time(scheduler._log_sigma_table, scheduler.timesteps)
    torch.testing.assert_close(again, scheduler.sigmas[:6], rtol=1e-5, atol=0)


def test_an_early_published_name_of_x0_is_understood() -> None:
    early, today = (make(EULER, prediction_type=name) for name in ("original_sample", "sample"))
    for scheduler in (early, today):
        scheduler.set_timesteps(3)
    assert torch.equal(run(early), run(today))


def test_beta_quantiles_are_those_of_the_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    wanted = stats.beta.ppf(1 - np.linspace(0, 1, 40), 0.6, 0.6)
    assert np.abs(grids.published_beta(40, 0.0, 1.0) - wanted).max() < 1e-14


# --- crowsonkb's conventions -----------------------------------------------------------------------------------------


def test_the_networks_time_is_the_inverse_of_the_level() -> None:
    table = make(EULER)._log_sigma_table
    times = torch.tensor([999.0, 700.25, 12.5, 0.0])
    found = grids.time_at_level(table, grids.level_at_time(table, times))
    torch.testing.assert_close(found, times, rtol=0, atol=2e-3)
    assert grids.time_at_level(table, torch.tensor([1e-4, 1e4])).tolist() == [0.0, 999.0]
    quantized = grids.time_at_level(table, grids.level_at_time(table, times[1:] + 0.2), quantize=True)
    assert quantized.tolist() == [700, 13, 0]


def test_multistep_weights_integrate_the_lagrange_polynomials() -> None:
    even = np.arange(10, -1, -1, dtype=np.float64)
    for order, wanted in ((1, [1]), (2, [3 / 2, -1 / 2]), (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24])):
        found = [_integrals(even, order, j)[-1] for j in range(order)]
        np.testing.assert_allclose(found, -np.array(wanted), rtol=1e-13)


@pytest.mark.parametrize("name", CHURNED)
def test_one_draw_is_made_in_every_step_whether_it_is_used_or_not(name: str) -> None:
    for options in ({}, {"s_churn": 2.0}, {"s_churn": 2.0, "s_tmin": 1e3, "s_tmax": 1e4}):
        scheduler = make(name, **options)
        scheduler.set_timesteps(4)
        generator, shadow = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        x = torch.ones(SHAPE)
        for t in scheduler.timesteps:
            if options:
                x = scheduler.add_noise_to_input(x, t, generator=generator)
            x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
        for _ in range(4):
            torch.randn(SHAPE, generator=shadow)
        assert torch.equal(generator.get_state(), shadow.get_state())


def test_ancestral_samplers_draw_after_a_step_and_not_before_the_end() -> None:
    for name, draws in ((ANCESTRAL, [True, True, False]), (DPM2_ANCESTRAL, [False, True, False, True, False])):
        scheduler = make(name)
        scheduler.set_timesteps(3)
        generator = torch.Generator().manual_seed(0)
        x = torch.ones(SHAPE)
        for t, drawn in zip(scheduler.timesteps, draws, strict=True):
            before = generator.get_state()
            x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
            assert torch.equal(generator.get_state(), before) is not drawn


def test_churn_raises_the_level_before_the_network_is_asked() -> None:
    scheduler = make(EULER, s_churn=4.0, sigma_schedule="karras")
    scheduler.set_timesteps(8)
    x, t, noise = torch.ones(SHAPE), scheduler.timesteps[3], torch.randn(SHAPE)
    scheduler.set_begin_index(3)
    sigma = scheduler.sigmas[3].item()
    sigma_hat = sigma * (1 + min(4.0 / 8, math.sqrt(2) - 1))
    with pytest.raises(ValueError, match="add_noise_to_input"):
        scheduler.step(x, t, x)
    noised = scheduler.add_noise_to_input(x, t, variance_noise=noise)
    torch.testing.assert_close(noised, x + noise * math.sqrt(sigma_hat**2 - sigma**2))
    torch.testing.assert_close(scheduler.scale_model_input(noised, t), noised / math.sqrt(sigma_hat**2 + 1))
    assert float(scheduler.network_timestep(t)) > float(t)
    output = network(noised, t)
    found = scheduler.step(output, t, noised).prev_sample
    torch.testing.assert_close(found, noised + output * (scheduler.sigmas[4] - sigma_hat))


# --- starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_run_begins_in_the_middle_by_index_and_by_timestep(name: str) -> None:
    scheduler = make(name, sigma_schedule="karras")
    scheduler.set_timesteps(6)
    begin = 2 * scheduler.order
    x0 = torch.full(SHAPE, 0.3)
    by_index, by_time = scheduler, copy.deepcopy(scheduler)
    by_index.set_begin_index(begin)
    t = scheduler.timesteps[begin]
    x = by_index.add_noise(x0, torch.ones(SHAPE), t)
    torch.testing.assert_close(x, x0 + scheduler.sigmas[2])
    assert torch.equal(run(by_index, 0, begin, x), run(by_time, 0, begin, x))


@pytest.mark.parametrize("name", [HEUN, DPM2, DPM2_ANCESTRAL])
def test_a_start_between_two_evaluations_of_a_step_is_refused(name: str) -> None:
    scheduler = make(name)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="begin_index=3 does not begin a step; allowed: 0, 2, 4, 6, 8"):
        scheduler.set_begin_index(3)


def test_the_second_evaluation_of_a_step_is_given_the_time_of_the_next() -> None:
    scheduler = make(HEUN)
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [999.0, 499.5, 499.5, 0.0, 0.0]


def test_of_equal_timesteps_the_first_is_where_sampling_begins() -> None:
    scheduler = make(EULER, sigma_schedule="vp", quantize=True)  # Levels above those of training share time 999.
    scheduler.set_timesteps(4, device="cpu")
    scheduler.set_timesteps(sigmas=[300.0, 200.0, 3.0, 0.0])
    assert scheduler.timesteps.tolist()[:2] == [999.0, 999.0]
    x = torch.ones(SHAPE)
    first = scheduler.step(x, 999.0, x).prev_sample
    torch.testing.assert_close(first, x - 100.0)
    torch.testing.assert_close(scheduler.step(x, 999.0, first).prev_sample, first - 197.0)


@pytest.mark.parametrize("name", NAMES)
def test_explicit_levels_and_times_are_visited(name: str) -> None:
    scheduler = make(name)
    scheduler.set_timesteps(sigmas=[20.0, 5.0, 0.5, 0.1])
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([20.0, 5.0, 0.5, 0.1]))
    assert run(scheduler).isfinite().all()
    scheduler.set_timesteps(timesteps=[900, 400.5, 3])
    assert scheduler.timesteps[0] == 900
    assert len(scheduler.sigmas) == 4
    assert run(scheduler).isfinite().all()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "at most one"),
        ({"interpolation_type": "log_linear", "use_karras_sigmas": True}, "at most one"),
        ({"interpolation_type": "cubic"}, "allowed: 'linear', 'log_linear'"),
        ({"sigma_min": 0.1}, "without effect"),
        ({"timestep_type": "continuous"}, "needs prediction_type='v_prediction'"),
        ({"quantize": True}, "no effect without sigma_schedule"),
        ({"sigma_options": {"rho": 3.0}}, "no effect without sigma_schedule"),
        ({"sigma_schedule": "karras", "timestep_spacing": "leading"}, "no effect with sigma_schedule='karras'"),
        ({"sigma_schedule": "vp", "sigma_options": {"rho": 3.0}}, "allowed with sigma_schedule='vp': beta_d"),
        ({"sigma_schedule": "karras", "sigma_options": {"sigma_min": 2.0, "sigma_max": 1.0}}, "below sigma_max"),
        ({"sigma_schedule": "karras", "sigma_options": {"rho": 0.0}}, "positive numbers"),
        ({"s_noise": 1.1}, "no effect with s_churn=0"),
        ({"s_churn": -1.0}, "at least 0"),
        ({"s_churn": 1.0, "s_tmin": 2.0, "s_tmax": 1.0}, "must not be above"),
        ({"num_train_timesteps": 1}, "at least 2"),
    ],
)
def test_options_without_effect_or_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(EULER, **options)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "give exactly one"),
        ({"num_inference_steps": 3, "sigmas": [1.0, 0.0]}, "give exactly one"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"num_inference_steps": 2.5}, "whole number"),
        ({"sigmas": [1.0]}, "at least one positive level"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "1 is followed by 2"),
        ({"sigmas": [1.0, -1.0]}, "at least one positive level"),
        ({"timesteps": [3, 9]}, "3 is followed by 9"),
        ({"timesteps": [1000]}, "allowed: 0 to 999"),
        ({"timesteps": []}, "at least one"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(EULER).set_timesteps(**request_)


def test_times_are_refused_where_a_rule_spaces_the_levels() -> None:
    for options in ({"use_karras_sigmas": True}, {"sigma_schedule": "exponential"}):
        with pytest.raises(ValueError, match="give sigmas instead"):
            make(EULER, **options).set_timesteps(timesteps=[10])


def test_a_multistep_method_refuses_equal_levels() -> None:
    with pytest.raises(ValueError, match="descend strictly"):
        make(LMS).set_timesteps(sigmas=[2.0, 2.0, 0.0])


def test_noise_is_refused_where_nothing_is_drawn() -> None:
    scheduler = make(ANCESTRAL)
    scheduler.set_timesteps(1)
    x = torch.ones(SHAPE)
    with pytest.raises(ValueError, match="nothing is drawn"):
        scheduler.step(x, scheduler.timesteps[0], x, variance_noise=x)
