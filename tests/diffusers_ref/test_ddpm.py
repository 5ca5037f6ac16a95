"""The coefficients of ancestral sampling, each against its formula written out here."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import torch

from diffusers_ref import ConfigError, DDPMScheduler

T = 40
SHAPE = (2, 3, 4, 4)


def scheduler(steps: int | None = T, **options) -> DDPMScheduler:
    made = DDPMScheduler(**{"num_train_timesteps": T, "beta_start": 0.003, "beta_end": 0.3, **options})
    if steps:
        made.set_timesteps(steps)
    return made


def tensors(dtype=torch.float64, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=dtype) for _ in range(count)]


def single(value: float) -> float:
    """`value` rounded to float32, as a table entry is when it is used."""
    return float(np.float32(value))


def levels(made: DDPMScheduler, t: int, t_next: int | None) -> tuple[float, float, float]:
    """abar_t, abar of the next timestep, and the beta between them, in float64."""
    a = made.alphas_cumprod[t].item()
    a_prev = 1.0 if t_next is None else made.alphas_cumprod[t_next].item()
    return a, a_prev, 1 - a / a_prev


def std_of(made: DDPMScheduler, t: int, output: torch.Tensor | None = None) -> float:
    """The factor of the noise in one step."""
    x, z, _ = tensors()
    output = torch.zeros_like(x) if output is None else output
    noisy = made.step(output, t, x, variance_noise=z).prev_sample
    quiet = made.step(output, t, x, variance_noise=torch.zeros_like(z)).prev_sample
    return ((noisy - quiet) / z).mean().item()


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("coefficients", ["float64", "float32_cumprod"])
def test_a_perfect_network_finds_x0(prediction_type, coefficients):
    made = scheduler(prediction_type=prediction_type, coefficients=coefficients, clip_sample=False)
    x0, epsilon, z = tensors()
    for t in (39, 20, 1, 0):
        x = made.add_noise(x0, epsilon, t)
        output = {"epsilon": epsilon, "sample": x0, "v_prediction": made.get_velocity(x0, epsilon, t)}[prediction_type]
        out = made.step(output, t, x, variance_noise=z)
        # The tables are rounded to float32; dividing by sqrt(abar_t) magnifies that.
        assert torch.allclose(out.pred_original_sample, x0, atol=4e-7 / made.alphas_cumprod[t].item() ** 0.5)


@pytest.mark.parametrize(("t", "t_next"), [(30, 20), (20, 10), (10, 0)])
def test_a_step_is_the_posterior_of_a_chain_with_fewer_steps(t, t_next):
    made = scheduler(4, variance_type="fixed_small", clip_sample=False)
    a, a_prev, beta = levels(made, t, t_next)
    x, output, z = tensors()
    x0 = single((1 / a) ** 0.5) * x - single((1 / a - 1) ** 0.5) * output
    mean = single(beta * a_prev**0.5 / (1 - a)) * x0 + single((1 - a_prev) * (1 - beta) ** 0.5 / (1 - a)) * x
    std = math.exp(0.5 * single(math.log(beta * (1 - a_prev) / (1 - a))))
    got = made.step(output, t, x, variance_noise=z)
    assert torch.allclose(got.prev_sample, mean + std * z, rtol=2e-7)
    assert torch.allclose(got.pred_original_sample, x0, rtol=2e-7)


def test_the_step_of_ermongroup_is_reproduced_bit_for_bit():
    made = scheduler(5, coefficients="float32_cumprod", variance_type="fixed_large")
    a, a_prev = made.alphas_cumprod[24], made.alphas_cumprod[16]
    beta = 1 - a / a_prev
    x, e, z = tensors(torch.float32)
    x0 = ((1.0 / a).sqrt() * x - (1.0 / a - 1).sqrt() * e).clamp(-1, 1)
    mean = ((a_prev.sqrt() * beta) * x0 + ((1 - beta).sqrt() * (1 - a_prev)) * x) / (1.0 - a)
    assert torch.equal(made.step(e, 24, x, variance_noise=z).prev_sample, mean + torch.exp(0.5 * beta.log()) * z)


@pytest.mark.parametrize("coefficients", ["float64", "float32_cumprod"])
def test_the_last_step_returns_x0_without_noise(coefficients):
    made = scheduler(4, coefficients=coefficients, variance_type="fixed_large")
    x, output, z = tensors()
    out = made.step(output, 0, x, variance_noise=z)
    assert torch.allclose(out.prev_sample, out.pred_original_sample, atol=1e-15)


def test_the_chain_ends_at_the_last_timestep_of_any_grid():
    made = scheduler(None, timestep_spacing="trailing", variance_type="fixed_large")
    made.set_timesteps(4)
    assert made.timesteps.tolist() == [39, 29, 19, 9]
    assert std_of(made, 9) == 0 and std_of(made, 19) > 0.5


@pytest.mark.parametrize("steps", [4, T])
def test_fixed_variances(steps):
    t, t_next = 20, 20 - T // steps
    for kind in ("fixed_small", "fixed_small_log"):
        made = scheduler(steps, variance_type=kind)
        a, a_prev, beta = levels(made, t, t_next)
        assert std_of(made, t) == pytest.approx((beta * (1 - a_prev) / (1 - a)) ** 0.5, rel=2e-7)
    for kind in ("fixed_large", "fixed_large_log"):
        assert std_of(scheduler(steps, variance_type=kind), t) == pytest.approx(beta**0.5, rel=2e-7)


def test_learned_variances():
    _, mean_half, _ = tensors()

    def std(kind: str, value: float) -> float:
        output = torch.cat([mean_half, torch.full_like(mean_half, value)], dim=1)
        return std_of(scheduler(4, variance_type=kind), 20, output)

    assert std("learned", math.log(0.04)) == pytest.approx(0.2, rel=1e-12)
    a, a_prev, beta = levels(scheduler(), 20, 10)
    small = beta * (1 - a_prev) / (1 - a)
    assert std("learned_range", 1.0) == pytest.approx(beta**0.5, rel=2e-7)
    assert std("learned_range", -1.0) == pytest.approx(small**0.5, rel=2e-7)
    assert std("learned_range", 0.0) == pytest.approx((beta * small) ** 0.25, rel=2e-7)


def test_no_variance_type_gives_nan_anywhere():
    x, e, z = tensors(torch.float32)
    for kind in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"):
        for steps in (1, 2, 3, T):
            made = scheduler(steps, variance_type=kind)
            output = torch.cat([e, e], dim=1) if kind.startswith("learned") else e
            for t in made.timesteps:
                assert made.step(output, t, x, variance_noise=z).prev_sample.isfinite().all(), (kind, steps, t)


@pytest.mark.parametrize("coefficients", ["float64", "float32_cumprod"])
def test_a_network_that_predicts_the_previous_sample_gives_the_mean_itself(coefficients):
    options = {"coefficients": coefficients, "clip_sample": False}
    made = scheduler(4, prediction_type="previous_sample", **options)
    x, output, z = tensors()
    quiet = made.step(output, 20, x, variance_noise=torch.zeros_like(z))
    assert torch.equal(quiet.prev_sample, output)
    again = scheduler(4, prediction_type="sample", **options)
    mean = again.step(quiet.pred_original_sample, 20, x, variance_noise=torch.zeros_like(z)).prev_sample
    assert torch.allclose(mean, output, atol=1e-6)


def test_a_noise_is_drawn_in_every_step_also_in_the_last():
    made = scheduler(5)
    generator, reference = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    x = torch.zeros(SHAPE)
    for t in made.timesteps:
        x = made.step(x, t, x, generator=generator).prev_sample
        torch.randn(SHAPE, generator=reference)
    assert torch.equal(generator.get_state(), reference.get_state())


def test_x0_is_clipped_or_thresholded():
    x, output, z = (5 * value for value in tensors())
    assert scheduler().step(output, 20, x, variance_noise=z).pred_original_sample.abs().max() == 1
    wide = scheduler(clip_sample_range=1.5)
    assert wide.step(output, 20, x, variance_noise=z).pred_original_sample.abs().max() == 1.5

    raw = scheduler(clip_sample=False).step(output, 20, x, variance_noise=z).pred_original_sample
    dynamic = scheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=100.0)
    limited = dynamic.step(output, 20, x, variance_noise=z).pred_original_sample
    s = torch.quantile(raw.abs().flatten(1), 0.9, dim=1).view(-1, 1, 1, 1)
    assert (s > 1).all() and torch.allclose(limited, raw.clamp(-s, s) / s)


def test_the_spacing_of_openai_rebuilds_its_tables_even_over_all_steps():
    x, output, z = tensors(torch.float32)
    direct, rebuilt = scheduler(), scheduler(timestep_spacing="improved_diffusion")
    assert direct.timesteps.equal(rebuilt.timesteps)
    ours = [s.step(output, 20, x, variance_noise=z).prev_sample.double() for s in (direct, rebuilt)]
    assert torch.allclose(*ours, rtol=1e-6)
    betas = direct._table.exact_betas
    again = 1 - np.cumprod(1 - betas) / np.append(1, np.cumprod(1 - betas)[:-1])
    assert not np.array_equal(betas, again)  # the reason why both ways exist


def test_rescaled_timesteps_are_what_the_network_is_given():
    made = scheduler(4, rescale_timesteps=True)
    times = [made.network_timestep(t) for t in made.timesteps]
    assert [time.item() for time in times] == [750.0, 500.0, 250.0, 0.0] and times[0].dtype == torch.float32
    plain = scheduler(4)
    assert plain.network_timestep(plain.timesteps[0]) is not None
    assert plain.network_timestep(7) == 7


def test_zero_terminal_snr_needs_a_prediction_that_does_not_divide_by_zero():
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ValueError, match="at timestep 39, x_0 cannot be derived from prediction_type='epsilon'"):
        scheduler(4, **options)
    x, v, z = tensors(torch.float32)
    out = scheduler(4, prediction_type="v_prediction", **options).step(v, 39, x, variance_noise=z)
    assert torch.equal(out.pred_original_sample, (-v).clamp(-1, 1))


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 8), ("trailing", 7), ("linspace", 9)])
def test_hf_agrees_when_it_is_given_the_float64_tables(spacing, steps):
    ours = scheduler(steps, timestep_spacing=spacing)
    theirs = diffusers.DDPMScheduler(num_train_timesteps=T, timestep_spacing=spacing)
    theirs.alphas_cumprod = ours.alphas_cumprod
    theirs.set_timesteps(steps)
    generator, mirror = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    x = y = tensors(torch.float32)[0]
    for t in ours.timesteps[:-1]:  # HF adds noise in the last step where that is not timestep 0
        x = ours.step(torch.sin(x + 0.1 * t), t, x, generator=generator).prev_sample
        y = theirs.step(torch.sin(y + 0.1 * t), t, y, generator=mirror).prev_sample
        # x_0 is clipped, so a step adds a few units of 6e-8 and magnifies nothing.
        assert torch.allclose(x, y, atol=2e-6)


def test_learned_variances_have_one_recipe_only():
    with pytest.raises(ConfigError, match="variance_type='learned' needs coefficients='float64'"):
        DDPMScheduler(variance_type="learned", coefficients="float32_cumprod")
