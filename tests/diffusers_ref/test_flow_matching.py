"""Flow matching: which levels are visited, and what a step does with the velocity."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from diffusers_ref import (
    ConfigError,
    FlowMatchDPMPP2MScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

CLASSES = [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchDPMPP2MScheduler]
SD3 = {"num_train_timesteps": 1000, "shift": 3.0}
FLUX = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
LTX = {**FLUX, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "shift_terminal": 0.1}
MOCHI = {"num_train_timesteps": 1000, "shift": 1.0, "invert_sigmas": True}


def euler(steps: int | None = None, *, request=None, **options) -> FlowMatchEulerDiscreteScheduler:
    made = FlowMatchEulerDiscreteScheduler(**options)
    if steps or request:
        made.set_timesteps(**{"num_inference_steps": steps, **(request or {})})
    return made


def network(x, t):
    return torch.sin(2 * x.roll(1, -1) + float(t) / 300) + 0.3 * x


def start(dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn((2, 3, 4, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(made, x, begin: int = 0, **options):
    for t in made.timesteps[begin:]:
        x = made.step(network(x, t), t, x, **options).prev_sample
    return x


# --- published options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "request_"),
    [
        (SD3, {"num_inference_steps": 6}),
        (SD3, {"sigmas": np.linspace(1, 1 / 6, 6)}),
        (FLUX, {"sigmas": np.linspace(1, 1 / 6, 6), "mu": 0.9}),
        (FLUX, {"num_inference_steps": 7, "mu": 1.15}),
        ({**FLUX, "time_shift_type": "linear"}, {"num_inference_steps": 7, "mu": 1.15}),
        (LTX, {"sigmas": np.linspace(1, 1 / 8, 8), "mu": 2.05}),
        (MOCHI, {"sigmas": np.linspace(1, 1 / 6, 6)}),
        ({"use_karras_sigmas": True}, {"num_inference_steps": 7}),
        ({"use_exponential_sigmas": True}, {"num_inference_steps": 7}),
        ({"use_beta_sigmas": True}, {"num_inference_steps": 7}),
        ({"stochastic_sampling": True}, {"num_inference_steps": 7}),
    ],
)
def test_published_options_mean_what_they_mean_in_diffusers(config, request_):
    ours, theirs = FlowMatchEulerDiscreteScheduler(**config), diffusers.FlowMatchEulerDiscreteScheduler(**config)
    for made in (ours, theirs):
        made.set_timesteps(**request_)

    # Levels are float32; the beta distribution's quantiles are computed in two ways.
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1.2e-7, atol=0)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1.2e-7, atol=0)
    results = [run(made, start(), generator=torch.Generator().manual_seed(1)) for made in (ours, theirs)]
    torch.testing.assert_close(*results, rtol=0, atol=3e-7)


def test_heun_is_that_of_diffusers():
    for config in ({}, SD3):
        ours, theirs = FlowMatchHeunDiscreteScheduler(**config), diffusers.FlowMatchHeunDiscreteScheduler(**config)
        for made in (ours, theirs):
            made.set_timesteps(5)

        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        # It divides a difference by sigma, down to 0.001.
        torch.testing.assert_close(run(ours, start()), run(theirs, start()), rtol=0, atol=1e-4)


def test_the_last_level_of_training_is_shifted_twice_as_sd35_does_it():
    grids = [euler(3, **SD3, flow_grid=grid).sigmas for grid in ("published", "sd3.5")]

    # 0.001 becomes 0.0029940, then 0.0089286.
    assert grids[0].tolist() == pytest.approx([1, 0.7511211, 1 / 112, 0], rel=1e-6)
    torch.testing.assert_close(*grids, rtol=3e-7, atol=0)


def test_a_grid_that_is_shifted_once_has_all_levels_of_training():
    made = FlowMatchEulerDiscreteScheduler(**SD3, flow_grid="shifted_once")
    training = made.sigmas
    made.set_timesteps(1000)

    torch.testing.assert_close(made.sigmas[:-1], training, rtol=1e-6, atol=0)


def test_a_terminal_level_is_reached_unless_there_is_only_the_first():
    assert euler(1, shift_terminal=0.1).sigmas.tolist() == [1, 0]
    assert euler(2, shift_terminal=0.1).sigmas.tolist() == pytest.approx([1, 0.1, 0])


def test_explicit_timesteps_are_not_shifted():
    made = euler(request={"timesteps": [1000, 700.5, 700.5, 20]}, shift=3.0)

    assert made.timesteps.tolist() == [1000, 700.5, 700.5, 20]
    assert made.sigmas.tolist() == pytest.approx([1, 0.7005, 0.7005, 0.02, 0])


def test_mu_follows_from_the_number_of_image_tokens():
    made = FlowMatchEulerDiscreteScheduler(**FLUX)

    assert [made.mu_of(count) for count in (256, 4096)] == pytest.approx([0.5, 1.15])
    made.set_timesteps(5, image_seq_len=4096)
    other = euler(request={"num_inference_steps": 5, "mu": 1.15}, **FLUX)
    torch.testing.assert_close(made.sigmas, other.sigmas)


def test_another_shift_is_for_the_next_list():
    made = euler(4)
    made.set_shift(7.0)
    made.set_timesteps(4)

    assert made.shift == 7.0
    # The ends are those of the training that the option `shift` says.
    assert made.sigmas.tolist() == euler(4, shift=7.0, flow_grid="shifted_once").sigmas.tolist()


# --- what the network is told -----------------------------------------------------------------------------------------


def test_network_times_are_sigma_for_flux_and_rounded_where_its_latents_are():
    made = euler(4, flow_grid="flux", network_time="sigma")
    half = euler(4, flow_grid="flux", network_time="sigma", time_dtype="bfloat16", use_dynamic_shifting=True,
                 request={"mu": 1.0})  # fmt: skip

    assert made.network_timesteps == [1, 0.75, 0.5, 0.25]
    assert made.timesteps.tolist() == [1000, 750, 500, 250]
    assert half.network_timesteps == half.sigmas[:-1].bfloat16().tolist()


def test_network_times_in_float16_are_rounded_twice():
    made = euler(3, shift=3.0, flow_grid="sd3.5", time_dtype="float16")

    assert made.network_timesteps == (made.sigmas[:-1].half() * 1000).tolist()
    assert made.network_timesteps[1] != made.timesteps[1]


def test_x0_is_made_from_sigma_as_the_networks_dtype_rounds_it():
    made = FlowMatchDPMPP2MScheduler(shift=3.0, flow_grid="sd3.5", time_dtype="float16")
    made.set_timesteps(4)
    x, velocity, t = start(), start(seed=1), made.timesteps[1]

    expected = x - velocity * made.sigmas[1].half().float()
    assert torch.equal(made.step(velocity, t, x).pred_original_sample, expected)
    assert not torch.equal(x - velocity * made.sigmas[1], expected)


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_a_straight_path_is_followed_exactly(cls):
    made = cls(shift=2.0)
    made.set_timesteps(4)
    data, noise = start(torch.float64, 1), start(torch.float64, 2)
    x = noise
    for t in made.timesteps:
        x = made.step(noise - data, t, x).prev_sample

    torch.testing.assert_close(x, data, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", CLASSES)
def test_half_precision_goes_in_and_comes_out(cls):
    made = cls()
    made.set_timesteps(3)
    x = start(torch.bfloat16)

    assert run(made, x).dtype == torch.bfloat16


@pytest.mark.parametrize("cls", CLASSES)
def test_a_run_begins_in_the_middle(cls):
    whole, late = cls(), cls()
    whole.set_timesteps(5)
    late.set_timesteps(5, strength=0.6)
    data, noise = start(seed=1), start(seed=2)
    x = late.scale_noise(data, late.timesteps[:1], noise)

    assert late.sigmas.tolist() == whole.sigmas[2:].tolist()
    torch.testing.assert_close(x, 0.5005 * noise + 0.4995 * data, rtol=0, atol=1e-6)
    first = next(i for i, t in enumerate(whole.timesteps) if t == late.timesteps[0] and whole._begins_step(i))
    whole.set_begin_index(first)
    torch.testing.assert_close(run(whole, x, first), run(late, x), rtol=0, atol=0)


def test_inverted_levels_count_the_data():
    made, plain = euler(4, **MOCHI), euler(4)
    data, noise = start(seed=1), start(seed=2)

    assert made.sigmas.tolist() == [*(1 - plain.sigmas[:-1]).tolist(), 1]
    torch.testing.assert_close(
        made.scale_noise(data, made.timesteps[1:2], noise), plain.scale_noise(data, plain.timesteps[1:2], noise)
    )


def test_inverted_stochastic_sampling_ends_in_the_data():
    made = euler(4, **MOCHI, stochastic_sampling=True)
    data, x = start(torch.float64, 1), start(torch.float64, 2)
    for t, level in zip(made.timesteps, made.sigmas.double(), strict=False):
        x = made.step((data - x) / (1 - level), t, x, generator=torch.Generator().manual_seed(3)).prev_sample

    torch.testing.assert_close(x, data, rtol=0, atol=1e-12)


def test_2m_forgets_where_it_begins_anew():
    made = FlowMatchDPMPP2MScheduler()
    made.set_timesteps(5)
    first = run(made, start())

    made.set_begin_index(0)
    torch.testing.assert_close(run(made, start()), first, rtol=0, atol=0)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "exclude each other"),
        ({"derivative": "denoised", "stochastic_sampling": True}, "does not know stochastic_sampling"),
        ({"shift": 0.0}, "above 0"),
        ({"shift_terminal": 1.0}, "from 0 to below 1"),
        ({"num_train_timesteps": 0}, "at least 1"),
        ({"network_time": "log"}, "'timestep', 'sigma'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FlowMatchEulerDiscreteScheduler(**options)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "given: none"),
        ({"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "given: 2, 3"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"sigmas": [0.5, 1.0]}, "not ascend"),
        ({"sigmas": [1.0, 0.0]}, "above 0"),
        ({"timesteps": [1000, float("nan")]}, "list of numbers"),
        ({"num_inference_steps": 3, "strength": 0.0}, "strength=0.0"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_, message):
    with pytest.raises(ValueError, match=message):
        FlowMatchEulerDiscreteScheduler().set_timesteps(**request_)


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="needs mu or image_seq_len"):
        FlowMatchEulerDiscreteScheduler(**FLUX).set_timesteps(3)
    with pytest.raises(ValueError, match="needs it above 0"):
        euler(3, use_dynamic_shifting=True, time_shift_type="linear", request={"mu": -1.0})
    with pytest.raises(ValueError, match="only stochastic_sampling draws"):
        made = euler(3)
        made.step(start(), 1000.0, start(), variance_noise=start())
    with pytest.raises(ValueError, match="is none of this scheduler's 3 timesteps"):
        made.scale_noise(start(), 17.0, start())
