"""Samplers of EDM: published options against HF diffusers, levels, churn, precision, refusals."""

from __future__ import annotations

import json
import math

import diffusers
import pytest
import torch

from diffusers_ref import (
    ConfigError,
    DDIMScheduler,
    DiffusionPipeline,
    EDMAblationScheduler,
    EDMEulerScheduler,
    EDMHeunScheduler,
    KarrasVePipeline,
    KarrasVeScheduler,
    UNet2DModel,
)

SHAPE = (2, 3, 4, 2)
TWO_EVALUATIONS = [EDMHeunScheduler, EDMAblationScheduler, KarrasVeScheduler]
ALL = [EDMEulerScheduler, *TWO_EVALUATIONS]


def network(x, t):
    return torch.tanh(1.3 * x.roll(1, -1) + 0.7 * x + t)


def noise(seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def made(cls, steps: int | None = 5, **options):
    scheduler = cls(**options)
    if steps:
        scheduler.set_timesteps(steps)
    return scheduler


def run(scheduler, x, begin: int = 0, seed: int = 0, model=network):
    generator = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps[begin:]:
        x = scheduler.add_noise_to_input(x, t, generator=generator)
        output = model(scheduler.scale_model_input(x, t, dtype=torch.float32), scheduler.network_timestep(t))
        x = scheduler.step(output, t, x).prev_sample
    return x


# --- published options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma_schedule": "exponential", "sigma_data": 1.0, "prediction_type": "v_prediction", "sigma_max": 120.0},
        {"rho": 3.0, "sigma_min": 0.01},
        {"final_sigmas_type": "sigma_min"},
    ],
)
def test_euler_is_hf_diffusers_bit_for_bit(options):
    for steps in (2, 7, 50):
        own, other = made(EDMEulerScheduler, steps, **options), diffusers.EDMEulerScheduler(**options)
        other.set_timesteps(steps)
        assert torch.equal(own.timesteps, other.timesteps)
        assert torch.equal(own.sigmas, other.sigmas)
        assert own.init_noise_sigma == other.init_noise_sigma
        x = y = noise() * own.init_noise_sigma
        for t in own.timesteps:
            x_in, y_in = own.scale_model_input(x, t), other.scale_model_input(y, t)
            x = own.step(network(x_in, own.network_timestep(t)), t, x).prev_sample
            y = other.step(network(y_in, t), t, y).prev_sample
        assert torch.equal(x, y)


def test_euler_lists_training_levels_before_set_timesteps():
    own, other = EDMEulerScheduler(num_train_timesteps=20), diffusers.EDMEulerScheduler(num_train_timesteps=20)
    assert len(own.timesteps) == 21 and len(own) == 20
    assert torch.equal(own.sigmas, made(EDMEulerScheduler, 21).sigmas)
    times = own.timesteps[[3, 7]]
    x0, n = noise(1), noise(2)
    assert torch.equal(own.timesteps[1:-1], other.timesteps[1:-1])
    torch.testing.assert_close(own.add_noise(x0, n, times), other.add_noise(x0, n, times))


def test_a_known_denoised_image_is_taken_as_it_is():
    scheduler = made(EDMEulerScheduler, 3, final_sigmas_type="zero")
    known = noise(4)
    for t in scheduler.timesteps[-1:]:
        result = scheduler.step(noise(), t, noise(1), pred_original_sample=known)
    torch.testing.assert_close(result.prev_sample, known)
    assert torch.equal(result.pred_original_sample, known)


def test_karras_ve_has_the_papers_levels_where_hf_has_their_squares():
    own, other = made(KarrasVeScheduler, 6), diffusers.KarrasVeScheduler()
    other.set_timesteps(6)
    torch.testing.assert_close(own.sigmas[:-1].float().flip(0) ** 2, other.schedule)
    assert own.init_noise_sigma == other.init_noise_sigma == 100.0
    assert own.timesteps[0] == 50.0  # What the network is given: half the level.


# --- levels -----------------------------------------------------------------------------------------------------------


def test_levels_of_the_discretizations_are_those_of_table_1():
    def levels(**options):
        return made(EDMAblationScheduler, 4, **options).sigmas[:-1].tolist()

    thirds = [0.0, 1 / 3, 2 / 3, 1.0]
    assert levels() == pytest.approx([(80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in thirds])
    times = [1 + i * (1e-3 - 1) for i in thirds]
    vp = [math.sqrt(math.expm1(0.5 * 19.9 * t**2 + 0.1 * t)) for t in times]
    assert levels(discretization="vp") == pytest.approx(vp)
    assert levels(discretization="ve") == pytest.approx([100 * (0.02 / 100) ** i for i in thirds])
    assert levels(discretization="ve", preconditioning="edm", sigma_max=9.0)[0] == pytest.approx(9.0)
    assert levels(preconditioning="ve", sigma_max=200.0)[0] == pytest.approx(100.0)  # All that the network knows.


def test_levels_of_iddpm_are_those_of_its_chain():
    sigma = made(EDMAblationScheduler, 5, discretization="iddpm").sigmas
    angle = torch.atan(sigma[:-1])  # tan of the cosine schedule's angle, evenly among the levels in the range
    assert 75 < sigma[0] <= 81
    torch.testing.assert_close(angle.diff(), angle.diff().mean().expand(4), rtol=2e-2, atol=0.0)


def test_levels_do_not_depend_on_the_schedule():
    for schedule in ("vp", "ve", "linear"):
        scheduler = made(EDMAblationScheduler, 6, schedule=schedule)
        torch.testing.assert_close(scheduler.sigmas, made(EDMHeunScheduler, 6).sigmas, rtol=1e-9, atol=1e-12)


def level(scheduler, t) -> torch.Tensor:
    """σ̂ at an entry, from what the network is given."""
    label = torch.as_tensor(scheduler.network_timestep(t))
    return 2 * label if isinstance(scheduler, KarrasVeScheduler) else torch.exp(4 * label)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("steps", [1, 2, 3, 18])
def test_every_method_ends_at_the_belief_of_a_sure_network(cls, steps):
    x0 = noise(3)
    scheduler = made(cls, steps, s_churn=4.0)
    x = noise(5) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.add_noise_to_input(x, t, generator=torch.Generator().manual_seed(0))
        sigma = level(scheduler, t)
        at_zero = scheduler.precondition_outputs(x, torch.zeros_like(x), sigma)
        slope = scheduler.precondition_outputs(x, torch.ones_like(x), sigma) - at_zero
        x = scheduler.step((x0 - at_zero) / slope, t, x).prev_sample
    torch.testing.assert_close(x, x0, rtol=1e-4, atol=1e-4)  # float32 of σ = 80 is good to 80 · 2⁻²⁴


def test_explicit_levels_are_levels():
    for cls in ALL:
        scheduler = made(cls, None)
        scheduler.set_timesteps(sigmas=[10.0, 1.0, 0.1])
        assert scheduler.sigmas.tolist() == pytest.approx([10.0, 1.0, 0.1, 0.0])
        assert run(scheduler, noise() * 10).isfinite().all()


def test_levels_of_iddpm_are_rounded_to_those_of_the_chain():
    scheduler = made(EDMHeunScheduler, None, preconditioning="iddpm")
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert scheduler.sigmas.tolist() == pytest.approx([0.99834, 0.49999, 0.0], rel=2e-3)
    assert all(label == int(label) for label in scheduler.network_timesteps)


# --- churn ------------------------------------------------------------------------------------------------------------


def test_noise_is_added_within_its_levels_and_only_before_the_first_evaluation():
    scheduler = made(EDMHeunScheduler, 5, s_churn=5.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.5)
    x = noise()
    for entry, t in enumerate(scheduler.timesteps):
        index, second = divmod(entry, 2)
        sigma = scheduler.sigmas[index].item()
        inside = 0.05 <= sigma <= 50.0 and not second
        given = {} if second else {"variance_noise": noise(7)}
        x_hat = scheduler.add_noise_to_input(x, t, **given)
        raised = (1 + (math.sqrt(2) - 1)) * sigma  # S_churn/N = 1 is more than √2 − 1
        added = 1.5 * math.sqrt(raised**2 - sigma**2) if inside else 0.0
        torch.testing.assert_close(x_hat, x + added * noise(7))
        if inside:
            assert float(scheduler.network_timestep(t)) == pytest.approx(math.log(raised) / 4)
        scheduler.step(noise(1), t, x_hat)


def test_forgotten_noise_is_an_error_that_says_what_to_call():
    scheduler = made(EDMHeunScheduler, 5, s_churn=5.0)
    with pytest.raises(ValueError, match="add_noise_to_input"):
        scheduler.step(noise(), scheduler.timesteps[0], noise())


def test_every_step_draws_once_with_and_without_churn():
    for options in ({}, {"s_churn": 3.0, "s_tmax": 1.0}):
        scheduler = made(EDMHeunScheduler, 4, **options)
        generator, shadow = (torch.Generator().manual_seed(3) for _ in range(2))
        x = noise()
        for t in scheduler.timesteps:
            x = scheduler.add_noise_to_input(x, t, generator=generator)
            x = scheduler.step(network(x, 0), t, x, generator=generator).prev_sample
        for _ in range(4):
            torch.randn(SHAPE, generator=shadow)
        assert torch.equal(generator.get_state(), shadow.get_state())


def test_a_run_can_begin_in_the_middle_but_not_at_a_second_evaluation():
    for cls in TWO_EVALUATIONS:
        scheduler = made(cls, 5)
        x = noise()
        scheduler.set_begin_index(4)
        by_index = run(scheduler, x, begin=4)
        scheduler = made(cls, 5)
        assert torch.equal(run(scheduler, x, begin=4), by_index)
        with pytest.raises(ValueError, match="does not begin a step; allowed: 0, 2, 4, 6, 8"):
            scheduler.set_begin_index(3)


# --- precision --------------------------------------------------------------------------------------------------------


def test_a_float64_state_goes_around_a_float32_network():
    scheduler = made(EDMHeunScheduler, 3, s_churn=2.0, state_dtype="float64")
    x, t = noise() * 80, scheduler.timesteps[0]
    generator = torch.Generator().manual_seed(1)
    x_hat = scheduler.add_noise_to_input(x, t, generator=generator)
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    raised = 80 * (1 + math.sqrt(2) - 1)
    torch.testing.assert_close(x_hat, x.double() + math.sqrt(raised**2 - 80**2) * drawn, rtol=1e-12, atol=1e-12)
    model_input = scheduler.scale_model_input(x_hat, t, dtype=torch.float32)
    assert model_input.dtype == torch.float32
    result = scheduler.step(network(model_input, 0), t, x_hat)
    assert result.prev_sample.dtype == result.pred_original_sample.dtype == torch.float64
    assert torch.equal(result.pred_original_sample, result.pred_original_sample.float().double())


def test_half_precision_stays_half():
    for cls in ALL:
        scheduler = made(cls, 3)
        for dtype in (torch.float16, torch.bfloat16):
            t, x = scheduler.timesteps[0], noise(dtype=dtype)
            assert scheduler.add_noise_to_input(x, t, variance_noise=noise()).dtype == dtype
            assert scheduler.scale_model_input(x, t).dtype == dtype
            assert scheduler.step(noise(dtype=dtype), t, x).prev_sample.dtype == dtype


def test_networks_that_learned_a_variance_may_return_it():
    scheduler, both = (made(EDMHeunScheduler, 3, preconditioning="iddpm") for _ in range(2))
    t, output = scheduler.timesteps[0], noise(2)
    alone = scheduler.step(output, t, noise()).prev_sample
    assert torch.equal(both.step(torch.cat([output, noise(3)], 1), t, noise()).prev_sample, alone)
    with pytest.raises(ValueError, match="model_output has the shape"):
        made(EDMHeunScheduler, 3).step(torch.cat([output, noise(3)], 1), t, noise())


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (EDMHeunScheduler, {"preconditioning": "ddpm"}, "preconditioning"),
        (EDMHeunScheduler, {"preconditioning": "vp", "sigma_data": 1.0}, "sigma_data=1.0 has no effect"),
        (EDMHeunScheduler, {"s_noise": 1.007}, "s_noise=1.007 has no effect with s_churn=0"),
        (EDMHeunScheduler, {"s_churn": -1.0}, "s_churn=-1.0 is not allowed"),
        (EDMHeunScheduler, {"s_churn": 1.0, "s_tmin": 5.0, "s_tmax": 1.0}, "s_tmin=5.0 must not be above"),
        (EDMHeunScheduler, {"sigma_min": 3.0, "sigma_max": 1.0}, "noise levels from 3.0 to 1.0"),
        (EDMHeunScheduler, {"state_dtype": "float32"}, "state_dtype"),
        (EDMEulerScheduler, {"final_sigmas_type": "one"}, "final_sigmas_type"),
        (EDMEulerScheduler, {"prediction_type": "sample"}, "prediction_type"),
        (EDMAblationScheduler, {"solver": "rk4"}, "solver is 'rk4'"),
        (EDMAblationScheduler, {"solver": "euler", "alpha": 0.5}, "alpha=0.5 has no effect"),
        (EDMAblationScheduler, {"alpha": 1.5}, "alpha is 1.5"),
        (EDMAblationScheduler, {"discretization": "ve", "rho": 3.0}, "rho=3.0 has no effect"),
        (EDMAblationScheduler, {"epsilon_s": 0.01}, "epsilon_s=0.01 has no effect"),
        (EDMAblationScheduler, {"c_2": 0.01}, "c_2=0.01 has no effect"),
        (EDMAblationScheduler, {"discretization": "iddpm", "c_1": 0.01}, "c_1=0.01 has no effect"),
        (KarrasVeScheduler, {"s_min": 60.0}, "s_min=60.0 must not be above s_max"),
    ],
)
def test_options_are_checked(cls, options, message):
    with pytest.raises(ConfigError, match=message):
        cls(**options)


def test_requests_are_checked():
    scheduler = EDMHeunScheduler()
    for request in ({}, {"num_inference_steps": 0}, {"num_inference_steps": 3, "sigmas": [1.0]}, {"sigmas": []},
                    {"sigmas": [1.0, 2.0]}, {"sigmas": [1.0, 0.0]}):  # fmt: skip
        with pytest.raises(ValueError, match=r"num_inference_steps|sigmas"):
            scheduler.set_timesteps(**request)
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(noise(), 1.0, noise())
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="is not an entry of timesteps"):
        scheduler.add_noise(noise(), noise(), torch.tensor([0.123]))
    t = scheduler.timesteps[0]
    scheduler.add_noise_to_input(noise(), t)
    with pytest.raises(ValueError, match="variance_noise is not allowed"):
        scheduler.step(noise(), t, noise(), variance_noise=noise())


# --- the pipeline -----------------------------------------------------------------------------------------------------

TINY = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "time_embedding_type": "fourier",
}


def published_loop(unet, steps: int, seed: int):
    """The loop of HF diffusers' pipeline, with its scheduler put on the paper's levels."""
    scheduler, generator = diffusers.KarrasVeScheduler(), torch.Generator().manual_seed(seed)
    x = torch.randn((2, 3, 8, 8), generator=generator) * scheduler.init_noise_sigma
    scheduler.set_timesteps(steps)
    levels = scheduler.schedule.sqrt()
    for t in scheduler.timesteps:
        sigma, after = levels[t], levels[t - 1] if t > 0 else 0
        x_hat, sigma_hat = scheduler.add_noise_to_input(x, sigma, generator=generator)
        output = (sigma_hat / 2) * unet((x_hat + 1) / 2, sigma_hat / 2).sample
        result = scheduler.step(output, sigma_hat, after, x_hat)
        if after != 0:
            output = (after / 2) * unet((result.prev_sample + 1) / 2, after / 2).sample
            result = scheduler.step_correct(output, sigma_hat, after, x_hat, result.prev_sample, result["derivative"])
        x = result.prev_sample
    return x


@torch.no_grad()
def test_a_published_folder_runs_as_published_on_the_papers_levels(tmp_path):
    torch.manual_seed(0)
    unet = UNet2DModel(**TINY).eval()
    unet.save_pretrained(tmp_path / "unet")
    diffusers.KarrasVeScheduler(s_max=30.0).save_pretrained(tmp_path / "scheduler")
    library = "deprecated"  # What HF diffusers writes today, and cannot read; formerly "diffusers".
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": [library, "KarrasVeScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KarrasVePipeline", **index}))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(pipeline, KarrasVePipeline) and pipeline.scheduler.config.s_max == 30.0
    pipeline.scheduler = KarrasVeScheduler()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    found = pipeline(batch_size=2, num_inference_steps=4, output_type="latent", generator=generator).images
    wanted = published_loop(unet, 4, seed=3)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4  # The network amplifies rounding: it is not trained.
    pipeline.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert saved["scheduler"] == ["diffusers", "KarrasVeScheduler"]


def test_the_pipeline_keeps_a_float64_state_and_refuses_other_samplers():
    unet = UNet2DModel(**TINY).eval()
    pipeline = KarrasVePipeline(unet, KarrasVeScheduler(state_dtype="float64"))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="latent").images.dtype == torch.float64
    with pytest.raises(TypeError, match="scheduler is a DDIMScheduler; allowed: KarrasVeScheduler"):
        KarrasVePipeline(unet, DDIMScheduler())
