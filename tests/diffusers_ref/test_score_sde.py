"""Samplers of score SDEs: the list of evaluations, what each does, what is refused, the probability flow ODE."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch

from diffusers_ref import (
    ConfigError,
    ScoreSdeOdeScheduler,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)

SHAPE = (2, 3, 4, 2)
SCHEDULERS = (ScoreSdeVeScheduler, ScoreSdeVpScheduler, ScoreSdeSubVpScheduler)


def network(x, t):
    return torch.sin(x / (1 + x.abs()) + 0.01 * float(t))


def noise(seed: int = 0, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepared(cls, steps: int | None = 4, **options):
    scheduler = cls(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def run(scheduler, x, draws, begin: int = 0):
    for t in scheduler.timesteps[begin:]:
        output = network(x, scheduler.network_timestep(t))
        x = scheduler.step(output, t, x, generator=draws).prev_sample
    return x


# --- published classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correct_steps", [0, 1, 2])
def test_the_published_ve_sampler_is_that_of_the_published_pipeline(correct_steps):
    options = {"snr": 0.17, "sigma_max": 90.0, "correct_steps": correct_steps}
    theirs = diffusers.ScoreSdeVeScheduler(**options)
    theirs.set_timesteps(6)
    theirs.set_sigmas(6)
    x, draws = noise() * theirs.init_noise_sigma, generator()
    for sigma, t in zip(theirs.sigmas, theirs.timesteps, strict=True):
        for _ in range(correct_steps):
            x = theirs.step_correct(network(x, sigma), x, generator=draws).prev_sample
        output = theirs.step_pred(network(x, sigma), t, x, generator=draws)
        x = output.prev_sample
    ours = prepared(ScoreSdeVeScheduler, 6, **options)
    assert torch.equal(run(ours, noise() * ours.init_noise_sigma, generator()), output.prev_sample_mean)


def test_the_published_vp_sampler_is_that_of_the_published_class():
    from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler as Published

    theirs, ours = Published(), prepared(ScoreSdeVpScheduler, 5)
    theirs.set_timesteps(5)
    x, draws = noise(), generator()
    for t in theirs.timesteps:
        x, mean = theirs.step_pred(network(x, t * 999), x, t, generator=draws)
    assert torch.equal(run(ours, noise(), generator()), mean)


def test_a_published_configuration_loads_and_comes_back(tmp_path):
    published = {"_class_name": "ScoreSdeVeScheduler", "_diffusers_version": "0.1.1", "correct_steps": 1,
                 "num_train_timesteps": 2000, "sampling_eps": 1e-05, "sigma_max": 1348, "sigma_min": 0.01, "snr": 0.075,
                 "tensor_format": "pt"}  # fmt: skip
    (tmp_path / "scheduler_config.json").write_text(json.dumps(published))
    scheduler = ScoreSdeVeScheduler.from_pretrained(tmp_path)
    assert (scheduler.config.snr, scheduler.init_noise_sigma) == (0.075, 1348.0)
    scheduler.save_pretrained(tmp_path / "again")
    theirs = diffusers.ScoreSdeVeScheduler.from_pretrained(tmp_path / "again")
    assert theirs.config.snr == 0.075


# --- the list of evaluations ------------------------------------------------------------------------------------------


def test_a_level_is_visited_by_the_correctors_steps_and_then_by_the_predictor():
    scheduler = prepared(ScoreSdeVeScheduler, 3, correct_steps=2)
    assert scheduler.timesteps.tolist() == [t for t in torch.linspace(1, 1e-5, 3).tolist() for _ in range(3)]
    assert scheduler.order == 3
    assert scheduler.network_timesteps[::3] == scheduler.sigmas.tolist()


def test_discrete_networks_are_given_the_number_of_the_level():
    assert prepared(ScoreSdeVeScheduler, 4, corrector="none", continuous=False).network_timesteps == [0, 1, 2, 3]
    labels = torch.tensor(prepared(ScoreSdeVpScheduler, 4, continuous=False, beta_max=1.5).network_timesteps)
    assert torch.equal(labels, torch.linspace(1, 1e-3, 4) * 3)


def test_sampling_begins_at_a_level_and_not_between_corrector_and_predictor():
    scheduler = prepared(ScoreSdeVeScheduler, 4)
    with pytest.raises(ValueError, match="begin_index=3 does not begin a step; allowed: 0, 2, 4, 6"):
        scheduler.set_begin_index(3)
    x = scheduler.add_noise(noise(3), noise(4), scheduler.timesteps[4])
    scheduler.set_begin_index(4)
    from_index = run(scheduler, x, generator(), begin=4)
    scheduler.set_timesteps(4)
    assert torch.equal(run(scheduler, x, generator(), begin=4), from_index)


def test_without_a_count_the_levels_are_those_of_training():
    assert len(prepared(ScoreSdeVpScheduler, None, num_train_timesteps=30).timesteps) == 30


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SCHEDULERS)
@pytest.mark.parametrize("removal", [True, False])
def test_only_noise_removal_leaves_the_last_noise_out(cls, removal):
    scheduler = prepared(cls, 1, predictor="euler_maruyama", corrector="none", noise_removal=removal)
    x, t = noise(), scheduler.timesteps[0]
    results = [scheduler.step(network(x, t), t, x, variance_noise=noise(seed)).prev_sample for seed in (5, 6)]
    assert torch.equal(*results) == removal


def test_a_langevin_step_depends_on_the_whole_batch():
    scheduler = prepared(ScoreSdeVeScheduler)
    x, z, t = noise(), noise(5), scheduler.timesteps[0]
    output = network(x, t) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    together = scheduler.step(output, t, x, variance_noise=z).prev_sample[:1]
    scheduler.set_timesteps(4)
    alone = scheduler.step(output[:1], t, x[:1], variance_noise=z[:1]).prev_sample
    assert not torch.allclose(together, alone, rtol=1e-3)


def test_the_forward_process_of_each_sde():
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    one, zero = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    integral = 0.1 * t + 19.9 * t**2 / 2
    wanted = {
        ScoreSdeVeScheduler: (torch.ones(2), 0.01 * 134800**t),
        ScoreSdeVpScheduler: ((-integral / 2).exp(), (1 - (-integral).exp()).sqrt()),
        ScoreSdeSubVpScheduler: ((-integral / 2).exp(), 1 - (-integral).exp()),
    }
    for cls, (signal, std) in wanted.items():
        scheduler = cls()
        assert torch.allclose(scheduler.add_noise(one, zero, t).flatten(), signal.double(), rtol=1e-14)
        assert torch.allclose(scheduler.add_noise(zero, one, t).flatten(), std, rtol=1e-12)
    with pytest.raises(ValueError, match="out of range; allowed: 0 to 1"):
        scheduler.add_noise(one, one, torch.tensor(2.0))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (ScoreSdeSubVpScheduler, {"corrector": "langevin"}, "'subVPSDE' object has no attribute 'alphas'"),
        (ScoreSdeSubVpScheduler, {"corrector": "ald"}, "'subVPSDE' object has no attribute 'alphas'"),
        (ScoreSdeSubVpScheduler, {"predictor": "ancestral_sampling"}, "NotImplementedError"),
        (ScoreSdeSubVpScheduler, {"predictor": "none"}, "evaluates no network"),
        (ScoreSdeVpScheduler, {"probability_flow": True}, "'float' object is not subscriptable"),
        (
            ScoreSdeVeScheduler,
            {"probability_flow": True, "predictor": "ancestral_sampling"},
            "AssertionError",
        ),
        (ScoreSdeVeScheduler, {"probability_flow": True, "predictor": "none"}, "no predictor that it could change"),
        (ScoreSdeVeScheduler, {"predictor": "none", "correct_steps": 0}, "evaluates no network"),
        (ScoreSdeVeScheduler, {"corrector": "none", "correct_steps": 2}, "needs a corrector"),
        (ScoreSdeVeScheduler, {"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min < sigma_max"),
        (ScoreSdeVpScheduler, {"beta_min": 3.0, "beta_max": 2.0}, "beta_min <= beta_max"),
        (ScoreSdeVeScheduler, {"sampling_eps": 0}, "above 0 and at most 1"),
        (ScoreSdeOdeScheduler, {"sde": "vp", "sigma_max": 2.0}, "sigma_max has no effect with sde='vp'"),
        (ScoreSdeOdeScheduler, {"sde": "ve", "beta_max": 2.0}, "beta_max has no effect with sde='ve'"),
        (ScoreSdeOdeScheduler, {"rtol": 1e-20}, "rtol=1e-20 is not allowed"),
    ],
)  # fmt: skip
def test_options_that_the_original_cannot_run_or_that_change_nothing_are_refused(cls, options, message):
    with pytest.raises(ConfigError, match=message):
        cls(**options)


def test_a_discrete_chain_with_too_few_steps_is_refused():
    scheduler = ScoreSdeVpScheduler(predictor="reverse_diffusion")
    with pytest.raises(ValueError, match="num_inference_steps=10 gives beta = 2 at the first level"):
        scheduler.set_timesteps(10)
    scheduler.set_timesteps(21)


# --- the probability flow ODE -----------------------------------------------------------------------------------------


def test_the_ode_is_solved_as_scipy_solves_it():
    integrate = pytest.importorskip("scipy.integrate")
    scheduler = ScoreSdeOdeScheduler(rtol=1e-3, atol=1e-3)
    scheduler.set_timesteps()

    def drift(t, y):
        x = torch.from_numpy(y).float()
        t = torch.tensor([t]).float()
        beta, log_mean = 0.1 + t * 19.9, -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
        score = -network(x, t * 999) / torch.sqrt(1 - torch.exp(2 * log_mean))
        return (-0.5 * beta * x - torch.sqrt(beta) ** 2 * score * 0.5).numpy()

    x = noise()
    wanted = integrate.solve_ivp(drift, (1, 1e-3), x.flatten().numpy(), rtol=1e-3, atol=1e-3)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, scheduler.network_timestep(t)), t, x).prev_sample
    assert scheduler.evaluations == wanted.nfev
    assert scheduler.accepted == len(wanted.t) - 1
    np.testing.assert_array_equal(x.flatten().numpy(), wanted.y[:, -1].astype(np.float32))


def test_the_denoising_step_evaluates_once_more_and_draws_once():
    counts = []
    for removal in (False, True):
        scheduler = ScoreSdeOdeScheduler(sde="ve", rtol=0.1, atol=0.1, num_train_timesteps=9, noise_removal=removal)
        scheduler.set_timesteps()
        x, draws = noise() * scheduler.init_noise_sigma, generator()
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, scheduler.network_timestep(t)), t, x, generator=draws).prev_sample
        counts.append(scheduler.evaluations)
        drawn = not torch.equal(draws.get_state(), generator().get_state())
        assert drawn == removal
    assert counts[1] == counts[0] + 1


def test_a_network_that_fails_stops_the_solver():
    scheduler = ScoreSdeOdeScheduler()
    scheduler.set_timesteps()
    with pytest.raises(ValueError, match="not finite"):
        scheduler.step(torch.full(SHAPE, torch.nan), next(iter(scheduler.timesteps)), noise())
