"""The DPM++ family in σ space: published configurations, sources of noise, starts, orders, adaptive steps."""

from __future__ import annotations

import sys
from typing import Any

import diffusers
import pytest
import torch

from conformance.library import open_library
from conformance.network import AnalyticNetwork
from diffusers_ref import (
    ConfigError,
    DPMAdaptiveScheduler,
    DPMFastScheduler,
    DPMPP2MScheduler,
    DPMPP2MSDEScheduler,
    DPMPP2SAncestralScheduler,
    DPMPP3MSDEScheduler,
    DPMSolverSDEScheduler,
)
from diffusers_ref.schedulers.brownian import BrownianTreeNoiseSampler

SHAPE = (2, 1, 2, 3)
NETWORK = AnalyticNetwork()
LISTED = (
    DPMPP2MScheduler,
    DPMPP2MSDEScheduler,
    DPMPP3MSDEScheduler,
    DPMPP2SAncestralScheduler,
    DPMSolverSDEScheduler,
    DPMFastScheduler,
)


def normal(seed: int, count: int | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """One draw, or a list of `count`."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(count or 1)]
    return draws if count else draws[0]


def run(scheduler: Any, x: torch.Tensor, begin: int = 0, network: Any = NETWORK, **options: Any) -> torch.Tensor:
    """The rest of a run from x at entry `begin`, with a seeded generator where the class takes one."""
    if not isinstance(scheduler, DPMPP2MScheduler) and not options:
        options = {"generator": torch.Generator().manual_seed(5)}
    for t in list(scheduler.timesteps)[begin:]:
        output = network(scheduler.scale_model_input(x, t).float(), scheduler.network_timestep(t)).to(x.dtype)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


def prepared(cls: Any, steps: int, **options: Any) -> Any:
    scheduler = cls(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
        {"use_exponential_sigmas": True, "beta_schedule": "scaled_linear"},
        {"use_beta_sigmas": True},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing"},
    ],
    ids=str,
)
def test_a_published_configuration_means_what_hf_makes_of_it(config):
    theirs, ours = diffusers.DPMSolverSDEScheduler(**config), DPMSolverSDEScheduler(**config)
    network = AnalyticNetwork(prediction=config.get("prediction_type", "epsilon"))
    ends, noises = [], normal(1, 20)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(7)
        given = iter(noises)
        x = normal(0) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, t), t)
            theirs.noise_sampler = lambda a, b, given=given: next(given)
            options = {"noise_sampler": theirs.noise_sampler} if scheduler is ours else {}
            x = scheduler.step(output, t, x, **options).prev_sample
        ends.append(x)
    # The published tables are products in float32: 1.3e-5 off in sigma (1e-6 in abar).
    assert relative(ends[1], ends[0]) < 1e-5
    assert len(theirs.timesteps) == len(ours.timesteps)


def test_hf_turns_the_sign_of_the_half_in_the_third_order_term(monkeypatch):
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    times = list(range(999, -1, -37))  # whole times, and enough of them that no order is lowered at the end
    theirs = diffusers.DPMSolverMultistepScheduler(
        **options, solver_order=3, algorithm_type="sde-dpmsolver++", solver_type="heun"
    )
    theirs.set_timesteps(timesteps=times)
    noises = normal(2, 28)

    def ours() -> torch.Tensor:
        scheduler = DPMPP3MSDEScheduler(**options)
        scheduler.set_timesteps(timesteps=[float(t) for t in times])
        x = normal(3) * scheduler.init_noise_sigma
        for t, noise in zip(scheduler.timesteps, noises, strict=True):
            draw = {"variance_noise": noise} if t > 0 else {}
            x = scheduler.step(NETWORK(scheduler.scale_model_input(x, t), t), t, x, **draw).prev_sample
        return x

    right = ours()
    x = normal(3) * float(theirs.sigmas[0] / (theirs.sigmas[0] ** 2 + 1) ** 0.5)
    for t, noise in zip(theirs.timesteps, noises, strict=True):
        x = theirs.step(NETWORK(x, t), t, x, variance_noise=noise).prev_sample
    assert relative(x, right) > 0.01

    evaluations = DPMPP3MSDEScheduler._evaluations

    def turned(self: Any, sigmas: torch.Tensor) -> Any:
        plan = evaluations(self, sigmas)
        return [item._replace(step=item.step._replace(phi_3=item.step.phi_3 + 1)) for item in plan]

    monkeypatch.setattr(DPMPP3MSDEScheduler, "_evaluations", turned)
    assert relative(ours(), x) < 1e-4  # their table of sigma is 1.3e-5 off at the clean end


def test_hf_has_no_third_order_sde_of_the_plain_solver():
    theirs = diffusers.DPMSolverMultistepScheduler(
        solver_order=3, algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"
    )
    theirs.set_timesteps(20)
    with pytest.raises(UnboundLocalError):
        x = normal(0)
        for t in theirs.timesteps:
            x = theirs.step(0.1 * x, t, x).prev_sample


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DPMPP2MSDEScheduler, DPMPP3MSDEScheduler, DPMSolverSDEScheduler])
def test_noise_comes_from_the_first_source_that_is_given(cls):
    scheduler, asked = cls(), []
    ours = lambda sigma, sigma_next: asked.append((float(sigma), float(sigma_next))) or torch.ones(SHAPE)
    x, output = normal(0), normal(1)

    def step(**options: Any) -> torch.Tensor:
        scheduler.set_timesteps(5, noise_sampler=options.pop("of_the_grid", None))
        return scheduler.step(output, scheduler.timesteps[0], x, **options).prev_sample

    given = step(variance_noise=torch.ones(SHAPE))
    assert torch.equal(step(noise_sampler=ours), given)
    assert torch.equal(step(of_the_grid=ours), given)
    assert torch.equal(step(of_the_grid=ours, variance_noise=torch.ones(SHAPE)), given)
    assert asked[0][0] == pytest.approx(float(scheduler.sigmas[0]), rel=1e-6) and asked[0][0] > asked[0][1]
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    assert torch.equal(step(generator=torch.Generator().manual_seed(3)), step(variance_noise=drawn))
    with pytest.raises(ValueError, match="not several"):
        step(noise_sampler=ours, generator=torch.Generator())
    with pytest.raises(ValueError, match="returned"):
        step(noise_sampler=lambda sigma, sigma_next: torch.ones(1))


def test_a_brownian_path_is_a_function_of_its_seed():
    pytest.importorskip("torchsde")
    low, middle, high = torch.tensor([0.1, 2.0, 10.0])
    path, again = (BrownianTreeNoiseSampler(torch.zeros(SHAPE), low, high, seed=7) for _ in range(2))
    whole = path(high, low) * (high - low).sqrt()
    parts = again(high, middle) * (high - middle).sqrt() + again(middle, low) * (middle - low).sqrt()
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(path(low, high), -path(high, low))
    assert not path(low, low).any()
    alone = BrownianTreeNoiseSampler(torch.zeros(1, *SHAPE[1:]), low, high, seed=[9])(high, low)
    batch = BrownianTreeNoiseSampler(torch.zeros(SHAPE), low, high, seed=[4, 9])(high, low)
    assert torch.equal(batch[1:], alone)
    with pytest.raises(ValueError, match="1 seeds are given for a batch of 2"):
        BrownianTreeNoiseSampler(torch.zeros(SHAPE), low, high, seed=[4])


@pytest.mark.parametrize(
    ("case", "seed"),
    [
        ("dpmpp-sde-karras-linear1000-6-eta1-path", 20),
        ("dpmpp-2m-sde-exponential-5-eta1-paths", [3, 2**40 + 1]),
        ("dpmpp-3m-sde-karras-v-7-eta1-path", 7),
    ],
)
def test_a_seed_gives_the_increments_of_the_original(case, seed):
    pytest.importorskip("torchsde")
    fixture = open_library().get(f"k-diffusion/{case}")
    subject, recorded = fixture.manifest.subject, fixture.tensors
    cls = {"DPMSolverSDEScheduler": DPMSolverSDEScheduler, "DPMPP2MSDEScheduler": DPMPP2MSDEScheduler}
    scheduler = cls.get(subject.cls, DPMPP3MSDEScheduler)(**subject.config, noise_sampler_seed=seed)
    scheduler.set_timesteps(**subject.set_timesteps)
    outputs = iter(recorded["outputs"])
    x = recorded["inputs"][0]
    for t in scheduler.timesteps:
        x = scheduler.step(next(outputs), t, x, generator=torch.Generator()).prev_sample  # the seed is first
    assert relative(x, recorded["final"]) < 1e-6


def test_without_torchsde_the_message_says_what_else_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", None)
    scheduler = prepared(DPMPP2MSDEScheduler, 4)
    with pytest.raises(ImportError, match="generator"):
        scheduler.step(normal(0), scheduler.timesteps[0], normal(1))
    assert run(scheduler, normal(1)).isfinite().all()


# --- grids and starts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", LISTED)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_perfect_network_leads_home(cls, steps):
    scheduler = prepared(cls, steps, prediction_type="sample", **({} if cls is DPMPP2MScheduler else {"eta": 0.0}))
    home = 0.5 * normal(9)
    end = run(scheduler, home + normal(8) * scheduler.init_noise_sigma, network=lambda x, t: home)
    final = float(scheduler.sigmas[-1])
    # Only DPM fast ends above 0, where the noise is left.
    torch.testing.assert_close(end, home + final * normal(8), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cls", LISTED[:-1])
def test_levels_may_repeat(cls):
    scheduler = cls()
    scheduler.set_timesteps(sigmas=[10.0, 4.0, 4.0, 4.0, 1.0, 0.5, 0.5, 0.0])
    assert run(scheduler, 10 * normal(0)).isfinite().all()


@pytest.mark.parametrize("cls", LISTED)
def test_sampling_begins_in_the_middle_without_a_history(cls):
    first, second = prepared(cls, 9), prepared(cls, 9)
    run(first, normal(0) * first.init_noise_sigma)
    begin = next(i for i in range(3, 9) if first._begins_step(i))
    x = 3 * normal(1)
    for scheduler in (first, second):
        scheduler.set_begin_index(begin)
    assert torch.equal(run(first, x, begin), run(second, x, begin))


@pytest.mark.parametrize("cls", LISTED)
def test_half_precision_is_widened(cls):
    scheduler = prepared(cls, 5)
    x = (normal(0) * scheduler.init_noise_sigma).half()
    wanted = run(prepared(cls, 5), x.float())
    found = run(scheduler, x)
    assert found.dtype == torch.float16
    assert relative(found.float(), wanted) < 0.05  # the state is rounded by 5e-4 of sigma_max = 157 on the way


def test_two_evaluations_of_a_step_are_two_entries():
    assert (
        len(prepared(DPMSolverSDEScheduler, 6).timesteps) == len(prepared(DPMPP2SAncestralScheduler, 6).timesteps) == 11
    )
    with pytest.raises(ValueError, match="does not begin a step"):
        prepared(DPMSolverSDEScheduler, 6).set_begin_index(1)


@pytest.mark.parametrize(("count", "orders"), [(1, [1]), (2, [2]), (3, [2, 1]), (7, [3, 3, 1]), (9, [3, 3, 2, 1])])
def test_dpm_fast_spends_the_evaluations_on_high_orders(count, orders):
    scheduler = prepared(DPMFastScheduler, count, sigma_min=0.1, sigma_max=10.0)
    begins = [i for i in range(count) if scheduler._begins_step(i)]
    assert [b - a for a, b in zip(begins, [*begins[1:], count], strict=True)] == orders
    assert len(scheduler.timesteps) == count and len(scheduler.sigmas) == len(orders) + 1
    assert float(scheduler.sigmas[-1]) == pytest.approx(0.1) and scheduler.init_noise_sigma == 10.0


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (DPMPP2MSDEScheduler, {"solver_type": "taylor"}),
        (DPMPP2MSDEScheduler, {"eta": -0.1}),
        (DPMPP3MSDEScheduler, {"s_noise": float("nan")}),
        (DPMSolverSDEScheduler, {"r": 0.0}),
        (DPMFastScheduler, {"sigma_min": 3.0, "sigma_max": 2.0}),
        (DPMAdaptiveScheduler, {"order": 4}),
        (DPMAdaptiveScheduler, {"rtol": 0.0}),
        (DPMAdaptiveScheduler, {"pcoeff": "0.1"}),
    ],
)
def test_options_out_of_range_are_refused(cls, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        cls(**options)


# --- adaptive steps ---------------------------------------------------------------------------------------------------


def adaptive(dtype: torch.dtype, order: int = 3, **options: Any) -> tuple[DPMAdaptiveScheduler, torch.Tensor]:
    scheduler = DPMAdaptiveScheduler(order=order, sigma_min=0.05, sigma_max=10.0, **options)
    scheduler.set_timesteps(dtype=dtype)
    x = normal(0, dtype=dtype) * 10
    for t in scheduler.timesteps:
        x = scheduler.step(NETWORK(scheduler.scale_model_input(x, t), t), t, x, generator=torch.Generator()).prev_sample
    return scheduler, x


@pytest.mark.parametrize("order", [2, 3])
def test_a_smaller_tolerance_takes_more_evaluations_and_comes_closer(order):
    exact = adaptive(torch.float64, 3, rtol=1e-4, atol=1e-4)[1]
    few, coarse = adaptive(torch.float64, order, rtol=0.1)
    many, fine = adaptive(torch.float64, order, rtol=0.005, atol=0.001)
    assert few.evaluations < many.evaluations
    assert few.evaluations == order * (few.accepted + few.rejected)
    assert relative(fine, exact) < relative(coarse, exact) < 0.1


def test_a_rejected_trial_starts_again_where_it_was():
    scheduler = DPMAdaptiveScheduler(order=2, h_init=2.0, rtol=0.01)
    scheduler.set_timesteps()
    times, inputs, x = [], [], normal(0) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        times.append(float(t))
        inputs.append(x)
        x = scheduler.step(NETWORK(scheduler.scale_model_input(x, t), t), t, x, generator=torch.Generator()).prev_sample
        if scheduler.rejected:
            break
    assert torch.equal(x, inputs[-2])
    assert next(iter(scheduler.timesteps)) == times[-2]


def test_an_adaptive_run_refuses_what_does_not_fit():
    scheduler = DPMAdaptiveScheduler()
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(normal(0), 999.0, normal(1))
    scheduler.set_timesteps()
    with pytest.raises(ValueError, match="not the next evaluation"):
        scheduler.step(normal(0), 998.0, normal(1))
    with pytest.raises(ValueError, match="begin_index"):
        scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match="float16"):
        scheduler.set_timesteps(dtype="float16")
    t = next(iter(scheduler.timesteps))
    scheduler.step(normal(0), t, normal(1))
    with pytest.raises(ValueError, match="one precision"):
        scheduler.step(normal(0).double(), scheduler.next_time, normal(1).double())


def test_an_adaptive_run_stops_at_numbers_that_are_not_finite():
    scheduler = DPMAdaptiveScheduler(order=2)
    scheduler.set_timesteps()
    scheduler.step(normal(0), scheduler.next_time, normal(1))
    with pytest.raises(ValueError, match="not finite"):
        scheduler.step(normal(0) * float("nan"), scheduler.next_time, normal(1))
