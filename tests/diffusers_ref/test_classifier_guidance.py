"""Classifier guidance (arXiv 2105.05233): what a gradient does in an ancestral step and in a DDIM step."""

from __future__ import annotations

import pytest
import torch

from diffusers_ref import DDIMScheduler, DDPMScheduler

SHAPE = (2, 3, 4, 2)


def noise(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prepared(cls, **options):
    scheduler = cls(num_train_timesteps=50, **options)
    scheduler.set_timesteps(5)
    return scheduler


def step(scheduler, t, output, **options):
    return scheduler.step(output, t, noise(1), variance_noise=noise(3), **options)


def moved(scheduler, t, output, gradient) -> torch.Tensor:
    guided = step(scheduler, t, output, classifier_gradient=gradient).prev_sample
    return guided - step(scheduler, t, output).prev_sample


@pytest.mark.parametrize("coefficients", ["float64", "float32_cumprod"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_mean_moves_by_the_variance_times_the_gradient(variance, coefficients):
    scheduler, gradient = prepared(DDPMScheduler, variance_type=variance, coefficients=coefficients), noise(4)
    for t, before in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        abar = scheduler.alphas_cumprod[t].double()
        abar_before = torch.ones(()) if before is None else scheduler.alphas_cumprod[before].double()
        beta = 1 - abar / abar_before
        small = variance == "fixed_small" and coefficients == "float64"
        wanted = beta * (1 - abar_before) / (1 - abar) if small else beta
        if before is None and coefficients == "float64" and not small:
            continue  # another variance, which the last step alone has
        assert torch.allclose(moved(scheduler, t, noise(2), gradient), wanted * gradient, rtol=1e-5, atol=1e-12)


def test_a_learned_variance_is_the_one_that_counts():
    scheduler, gradient = prepared(DDPMScheduler, variance_type="learned"), noise(4)
    log_variance = noise(5) - 3
    found = moved(scheduler, scheduler.timesteps[-1], torch.cat([noise(2), log_variance], dim=1), gradient)
    assert torch.allclose(found, log_variance.exp() * gradient, rtol=1e-12)


@pytest.mark.parametrize("coefficients", ["float64", "float32_cumprod", "compvis"])
def test_epsilon_loses_the_gradient_and_x0_is_not_clipped_again(coefficients):
    scheduler = prepared(DDIMScheduler, coefficients=coefficients)
    t, before = scheduler.timesteps[1], scheduler.timesteps[2]
    abar, abar_before = (scheduler.alphas_cumprod[index].double() for index in (t, before))
    x, gradient = noise(1), 3 * noise(4)
    x0 = ((x - (1 - abar).sqrt() * noise(2)) / abar.sqrt()).clamp(-1, 1)
    epsilon = (x - abar.sqrt() * x0) / (1 - abar).sqrt() - (1 - abar).sqrt() * gradient
    x0 = (x - (1 - abar).sqrt() * epsilon) / abar.sqrt()
    found = step(scheduler, t, noise(2), classifier_gradient=gradient)
    assert torch.allclose(found.pred_original_sample, x0, rtol=1e-4, atol=1e-5)
    assert found.pred_original_sample.abs().max() > 1.5
    wanted = abar_before.sqrt() * x0 + (1 - abar_before).sqrt() * epsilon
    assert torch.allclose(found.prev_sample, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler])
def test_a_gradient_of_another_shape_is_refused(cls):
    scheduler = prepared(cls)
    with pytest.raises(ValueError, match=r"classifier_gradient must be a tensor of the sample's shape \(2, 3, 4, 2\)"):
        step(scheduler, scheduler.timesteps[0], noise(2), classifier_gradient=noise(4, (2, 3)))


def test_a_level_without_signal_cannot_be_guided_to_x0():
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    scheduler = prepared(DDIMScheduler, **options)
    with pytest.raises(ValueError, match="abar is 0"):
        step(scheduler, scheduler.timesteps[0], noise(2), classifier_gradient=noise(4))
