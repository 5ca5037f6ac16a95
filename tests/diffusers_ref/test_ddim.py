"""Generalised sampling: each original's step written out, and what every step must satisfy."""

from __future__ import annotations

from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from diffusers_ref import ConfigError, DDIMScheduler

T = 40
SHAPE = (2, 3, 4, 4)
RECIPES = ["float64", "float32_cumprod", "compvis"]


def scheduler(steps: int | None = 5, **options) -> DDIMScheduler:
    defaults = {"num_train_timesteps": T, "beta_start": 0.003, "beta_end": 0.3, "clip_sample": False}
    made = DDIMScheduler(**{**defaults, **options})
    if steps:
        made.set_timesteps(steps)
    return made


def tensors(dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("coefficients", RECIPES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_network_moves_along_the_forward_process(prediction_type, coefficients):
    made = scheduler(prediction_type=prediction_type, coefficients=coefficients)
    x0, epsilon, z = tensors(torch.float64)
    x = made.add_noise(x0, epsilon, 32)
    for t, t_next in ((32, 24), (24, 16), (16, 8), (8, 0)):
        output = {"epsilon": epsilon, "sample": x0, "v_prediction": made.get_velocity(x0, epsilon, t)}[prediction_type]
        out = made.step(output, t, x, variance_noise=z)
        # Float32 tables: half a unit each, magnified by 1/sqrt(abar), which is below 10 here.
        assert torch.allclose(out.pred_original_sample, x0, atol=5e-6)
        assert torch.allclose(out.prev_sample, made.add_noise(x0, epsilon, t_next), atol=5e-6)
        x = out.prev_sample
    assert torch.allclose(made.step(output, 0, x, variance_noise=z).pred_original_sample, x0, atol=0.2)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_step_of_ermongroup_is_reproduced_bit_for_bit(eta):
    made = scheduler()
    x, e, z = tensors()
    a, a_next = made.alphas_cumprod[24], made.alphas_cumprod[16]
    x0 = (x - e * (1 - a).sqrt()) / a.sqrt()
    c1 = eta * ((1 - a / a_next) * (1 - a_next) / (1 - a)).sqrt()
    c2 = ((1 - a_next) - c1**2).sqrt()
    out = made.step(e, 24, x, eta=eta, variance_noise=z)
    assert torch.equal(out.prev_sample, a_next.sqrt() * x0 + c1 * z + c2 * e)
    assert torch.equal(out.pred_original_sample, x0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_step_of_openai_is_reproduced_bit_for_bit(eta):
    made = scheduler(coefficients="float64", rederive_epsilon=True, clip_sample=True)
    x, e, z = tensors()
    abar = made.alphas_cumprod.numpy()[[0, 8, 16, 24, 32]]
    abar = np.cumprod(1 - (1 - abar / np.append(1.0, abar[:-1])))  # rebuilt from the betas of the shorter chain

    def entry(value):
        return torch.tensor(np.float32(value))

    a, a_prev = entry(abar[3]), entry(abar[2])
    of_sample, of_epsilon = entry(np.sqrt(1 / abar[3])), entry(np.sqrt(1 / abar[3] - 1))
    x0 = (of_sample * x - of_epsilon * e).clamp(-1, 1)
    eps = (of_sample * x - x0) / of_epsilon
    sigma = eta * torch.sqrt((1 - a_prev) / (1 - a)) * torch.sqrt(1 - a / a_prev)
    mean = x0 * torch.sqrt(a_prev) + torch.sqrt(1 - a_prev - sigma**2) * eps
    assert torch.equal(made.step(e, 24, x, eta=eta, variance_noise=z).prev_sample, mean + sigma * z)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_step_of_compvis_is_reproduced_bit_for_bit(eta):
    made = scheduler(
        beta_schedule="scaled_linear", timestep_spacing="ddim_uniform", steps_offset=1, set_alpha_to_one=False
    )
    x, e, z = tensors()
    for t, t_next in ((25, 17), (1, 0)):  # the last step ends at abar_0
        a, a_prev = made.alphas_cumprod[t], made.alphas_cumprod[t_next]
        ratio = 1 - a.double() / a_prev.double()
        variance = (1 - a_prev.double()) * (1 - a).reciprocal().double() * ratio
        sigma = torch.tensor(np.float32(eta * np.sqrt(variance.item())))
        noise_level = torch.tensor(np.sqrt((1 - a).numpy()))
        x0 = (x - noise_level * e) / a.sqrt()
        expected = a_prev.sqrt() * x0 + (1.0 - a_prev - sigma**2).sqrt() * e + sigma * z
        assert torch.equal(made.step(e, t, x, eta=eta, variance_noise=z).prev_sample, expected)


def test_the_recipes_agree_to_the_rounding_of_their_tables():
    x, e, z = tensors(torch.float64)
    results = [
        scheduler(coefficients=recipe).step(e, 24, x, eta=0.5, variance_noise=z).prev_sample for recipe in RECIPES
    ]
    assert torch.allclose(results[0], results[1], atol=2e-6) and torch.allclose(results[0], results[2], atol=2e-6)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    "spacing", ["leading", "linspace", "trailing", "ddim_uniform", "ddim_quad", "improved_diffusion"]
)
def test_the_step_after_t_is_the_next_entry_of_the_grid(spacing):
    made = scheduler(7, timestep_spacing=spacing)
    x0, epsilon, z = tensors(torch.float64)
    grid = made.timesteps.tolist()
    for t, t_next in pairwise(grid):
        out = made.step(epsilon, t, made.add_noise(x0, epsilon, t), variance_noise=z)
        assert torch.allclose(out.prev_sample, made.add_noise(x0, epsilon, t_next), atol=5e-6)


def test_a_repeated_timestep_leaves_the_sample_where_it_is():
    made = scheduler(None, timestep_spacing="ddim_quad")
    made.set_timesteps(timesteps=[9, 4, 4, 0])
    x, e, z = tensors(torch.float64)
    x = made.step(e, 9, x, variance_noise=z).prev_sample
    assert torch.allclose(made.step(e, 4, x, eta=1.0, variance_noise=z).prev_sample, x, atol=1e-12)
    moved = made.step(e, 4, x, variance_noise=z).prev_sample
    assert made.step_index == 3 and not torch.allclose(moved, x, atol=1e-3)


def test_final_alpha_is_one_or_the_first_level():
    x, e, z = tensors()
    end = scheduler().step(e, 0, x, variance_noise=z)
    assert torch.equal(end.prev_sample, end.pred_original_sample) and scheduler().final_alpha_cumprod == 1
    other = scheduler(set_alpha_to_one=False)
    assert other.final_alpha_cumprod == other.alphas_cumprod[0]
    # From abar_0 to abar_0: nothing moves but by rounding.
    assert torch.allclose(other.step(e, 0, x, variance_noise=z).prev_sample, x, atol=1e-6)


def test_epsilon_is_rederived_from_the_clipped_x0_on_request():
    x, e, z = (3 * value for value in tensors())
    plain, always = scheduler(clip_sample=True), scheduler(clip_sample=True, rederive_epsilon=True)
    kept = plain.step(e, 24, x, variance_noise=z).prev_sample
    derived = plain.step(e, 24, x, use_clipped_model_output=True, variance_noise=z).prev_sample
    assert torch.equal(derived, always.step(e, 24, x, variance_noise=z).prev_sample)
    assert not torch.allclose(derived, kept, atol=0.1)
    a, a_next = plain.alphas_cumprod[24], plain.alphas_cumprod[16]
    x0 = ((x - (1 - a).sqrt() * e) / a.sqrt()).clamp(-1, 1)
    eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
    assert torch.allclose(derived, a_next.sqrt() * x0 + (1 - a_next).sqrt() * eps, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_noise_is_drawn_in_every_step_also_without_eta(eta):
    made = scheduler()
    generator, reference = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    x = torch.zeros(SHAPE)
    for t in made.timesteps:
        x = made.step(x, t, x, eta=eta, generator=generator).prev_sample
        torch.randn(SHAPE, generator=reference)
    assert torch.equal(generator.get_state(), reference.get_state())


@pytest.mark.parametrize("coefficients", RECIPES)
def test_the_variance_half_of_a_learned_network_is_left_unused(coefficients):
    x, e, z = tensors()
    plain = scheduler(coefficients=coefficients)
    learned = scheduler(coefficients=coefficients, variance_type="learned_range")
    doubled = torch.cat([e, z], dim=1)
    assert torch.equal(
        learned.step(doubled, 24, x, variance_noise=z).prev_sample, plain.step(e, 24, x, variance_noise=z).prev_sample
    )
    with pytest.raises(ValueError, match=r"model_output has the shape \(2, 6, 4, 4\); allowed .* \(2, 3, 4, 4\)"):
        plain.step(doubled, 24, x)


@pytest.mark.parametrize("eta", [-0.1, float("nan")])
def test_a_negative_eta_is_refused(eta):
    with pytest.raises(ValueError, match="must be at least 0"):
        scheduler().step(*_call(), eta=eta)


def test_an_eta_that_leaves_no_direction_is_refused():
    with pytest.raises(ValueError, match=r"eta=5.0 is too large: sigma² exceeds 1 - abar_prev at timestep"):
        scheduler().step(*_call(), eta=5.0)


def _call():
    x, e, _ = tensors()
    return e, 24, x


@pytest.mark.parametrize("coefficients", RECIPES)
def test_zero_terminal_snr_needs_a_prediction_that_does_not_divide_by_zero(coefficients):
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "coefficients": coefficients}
    with pytest.raises(ValueError, match="abar is 0 at timestep 39"):
        scheduler(**options)
    made = scheduler(prediction_type="v_prediction", **options)
    x, v, z = tensors()
    for eta in (0.0, 1.0):
        for rederive in (False, True):
            out = made.step(v, 39, x, eta=eta, use_clipped_model_output=rederive, variance_noise=z)
            assert torch.equal(out.pred_original_sample, -v) and out.prev_sample.isfinite().all()


def test_a_network_can_predict_the_previous_sample():
    made = scheduler(coefficients="float64", prediction_type="previous_sample")
    twin = scheduler(coefficients="float64", prediction_type="sample")
    x, previous, z = tensors(torch.float64)
    out = made.step(previous, 24, x, variance_noise=z)
    # x_0 is what makes `previous` the mean of the posterior between abar_24 and abar_16.
    a, a_prev = made.alphas_cumprod[24], made.alphas_cumprod[16]
    beta = 1 - a / a_prev
    mean = (beta * a_prev.sqrt() * out.pred_original_sample + (1 - a_prev) * (1 - beta).sqrt() * x) / (1 - a)
    assert torch.allclose(mean, previous, atol=1e-6)
    expected = twin.step(out.pred_original_sample, 24, x, variance_noise=z).prev_sample
    assert torch.allclose(out.prev_sample, expected, atol=1e-12)


def test_only_the_float64_recipe_knows_the_previous_sample():
    with pytest.raises(ConfigError, match=r"'previous_sample' needs coefficients='float64', not 'float32_cumprod'"):
        DDIMScheduler(prediction_type="previous_sample")


@pytest.mark.parametrize(("eta", "clip"), [(0.0, False), (0.0, True), (0.6, False)])
def test_hf_agrees_on_equal_tables_where_its_previous_step_is_right(eta, clip):
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        ours = scheduler(8, clip_sample=clip, prediction_type=prediction_type)
        theirs = diffusers.DDIMScheduler(num_train_timesteps=T, clip_sample=clip, prediction_type=prediction_type)
        theirs.alphas_cumprod = ours.alphas_cumprod
        theirs.set_timesteps(8)
        x = y = tensors()[0]
        generator = torch.Generator().manual_seed(3)
        for t in ours.timesteps:
            z = torch.randn(SHAPE, generator=generator)
            x = ours.step(torch.sin(x + 0.1 * t), t, x, eta=eta, variance_noise=z).prev_sample
            y = theirs.step(torch.sin(y + 0.1 * t), t, y, eta=eta, variance_noise=z).prev_sample
            # Both are float32; a step magnifies the rounding of x by up to sqrt(abar_next / abar) < 3.
            assert torch.allclose(x, y, atol=1e-5)
