"""Consistency models: levels, the boundary condition, and where the process ends."""

from __future__ import annotations

import diffusers
import pytest
import torch

from diffusers_ref import CMStochasticIterativeScheduler, ConfigError


def scheduler(*, request=None, **options) -> CMStochasticIterativeScheduler:
    made = CMStochasticIterativeScheduler(**options)
    if request:
        made.set_timesteps(**request)
    return made


def start(seed: int = 0) -> torch.Tensor:
    return torch.randn((2, 3, 2, 2), generator=torch.Generator().manual_seed(seed))


def run(made, x, generator):
    for t in made.timesteps:
        output = torch.sin(3 * made.scale_model_input(x, t) + float(t) / 500)
        x = made.step(output, t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize(
    ("config", "request_"),
    [
        ({}, {"num_inference_steps": 1}),
        ({}, {"num_inference_steps": 2}),
        ({}, {"num_inference_steps": 40}),
        ({}, {"timesteps": [22, 0]}),
        ({"num_train_timesteps": 201, "clip_denoised": False}, {"timesteps": [106, 0]}),
        ({"s_noise": 1.01, "sigma_max": 40.0, "sigma_data": 1.0, "rho": 5.0}, {"num_inference_steps": 7}),
    ],
)
def test_published_options_mean_what_they_mean_in_diffusers(config, request_):
    results = []
    for library in (CMStochasticIterativeScheduler, diffusers.CMStochasticIterativeScheduler):
        made = library(**config)
        made.set_timesteps(**request_)
        # The time of a level is float32 here, as in the original.
        results.append((made.timesteps.double(), run(made, start() * 80, torch.Generator().manual_seed(1))))

    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-4)
    # There, each last step leaves noise of 1e-6.
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=2e-5)


def test_the_last_step_leaves_no_noise():
    made = scheduler(request={"timesteps": [22, 0]})
    t, x = made.timesteps[-1], start()
    result = made.step(start(1), t, x, generator=torch.Generator().manual_seed(1))

    assert made.sigmas[-1].item() == pytest.approx(0.002)
    torch.testing.assert_close(result.prev_sample, result.pred_original_sample, rtol=0, atol=1e-9)


def test_a_process_can_end_above_the_smallest_level():
    made = scheduler(request={"ts": [0, 5, 5, 20]})
    noise, t = start(2), made.timesteps[2]
    made.set_begin_index(2)
    result = made.step(start(1), t, start(), variance_noise=noise)

    level = made.sigmas[-1]
    expected = result.pred_original_sample + (level**2 - 0.002**2).sqrt() * noise
    torch.testing.assert_close(result.prev_sample, expected, rtol=1e-6, atol=1e-6)
    clipped = scheduler(clip_result=True, request={"ts": [0, 20]})
    assert clipped.step(start(1), clipped.timesteps[0], start(), variance_noise=noise).prev_sample.abs().max() == 1


@pytest.mark.parametrize(("request_", "draws"), [({"num_inference_steps": 1}, 0), ({"timesteps": [22, 0]}, 2),
                                                 ({"ts": [0, 39]}, 1)])  # fmt: skip
def test_draws(request_, draws):
    generator, twin = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    run(scheduler(request=request_), start(), generator)

    for _ in range(draws):
        torch.randn(start().shape, generator=twin)
    assert torch.equal(generator.get_state(), twin.get_state())


def test_noise_is_added_at_the_levels_of_the_list():
    made = scheduler(request={"num_inference_steps": 3})
    found = made.add_noise(start(), start(1), made.timesteps[1:2])

    torch.testing.assert_close(found, start() + made.sigmas[1] * start(1))
    with pytest.raises(ValueError, match="none of this scheduler's 3 timesteps"):
        made.add_noise(start(), start(1), 3.0)


def test_requests_that_make_no_sense_are_refused():
    for request, message in [
        ({}, "exactly one"),
        ({"num_inference_steps": 41}, "from 1 to 40"),
        ({"timesteps": [0, 22]}, "must not ascend"),
        ({"timesteps": [40, 0]}, "from 0 to 39"),
        ({"ts": [0, 20, 10]}, "must not descend"),
        ({"ts": [0]}, "too short"),
    ]:
        with pytest.raises(ValueError, match=message):
            CMStochasticIterativeScheduler().set_timesteps(**request)
    for options, message in [
        ({"num_train_timesteps": 1}, "at least 2"),
        ({"sigma_min": 90.0}, "below sigma_max=80"),
        ({"sigma_data": 0.0}, "above 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            CMStochasticIterativeScheduler(**options)
    with pytest.raises(ValueError, match="the first level only"):
        scheduler(sampler="onestep", request={"num_inference_steps": 2})
