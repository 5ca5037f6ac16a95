"""Latent consistency models: which of the timesteps of distillation are visited, and who draws when."""

from __future__ import annotations

import diffusers
import pytest
import torch

from diffusers_ref import ConfigError, LCMScheduler

# As the authors' weights come with it.
DREAMSHAPER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "leading",
}


def scheduler(steps: int | None = None, *, request=None, **options) -> LCMScheduler:
    made = LCMScheduler(**options)
    if steps or request:
        made.set_timesteps(**{"num_inference_steps": steps, **(request or {})})
    return made


def start(seed: int = 0) -> torch.Tensor:
    return torch.randn((2, 4, 2, 2), generator=torch.Generator().manual_seed(seed))


def run(made, x, generator):
    for t in made.timesteps:
        x = made.step(torch.sin(x + float(t) / 500), t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize(
    ("config", "request_"),
    [
        (DREAMSHAPER, {"num_inference_steps": 4}),
        (DREAMSHAPER, {"num_inference_steps": 1}),
        (DREAMSHAPER, {"num_inference_steps": 4, "strength": 0.7}),
        (DREAMSHAPER, {"num_inference_steps": 8, "original_inference_steps": 100}),
        ({**DREAMSHAPER, "steps_offset": 1, "set_alpha_to_one": False}, {"timesteps": [999, 759, 499, 259]}),
        ({"clip_sample": True, "clip_sample_range": 0.5, "timestep_scaling": 0.002}, {"num_inference_steps": 3}),
        ({"thresholding": True, "sample_max_value": 1.5, "prediction_type": "sample"}, {"num_inference_steps": 3}),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, {"num_inference_steps": 3}),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"num_inference_steps": 3}),
    ],
)
def test_published_options_give_the_very_bits_of_diffusers(config, request_):
    results = []
    for library in (LCMScheduler, diffusers.LCMScheduler):
        made = library(**config)
        made.set_timesteps(**request_)
        results.append((made.timesteps.tolist(), run(made, start(), torch.Generator().manual_seed(1))))

    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_the_authors_take_every_so_many_of_the_steps():
    assert scheduler(4).timesteps.tolist() == [999, 759, 499, 259]
    assert scheduler(4, distilled_grid="strided").timesteps.tolist() == [999, 759, 519, 279]


def test_image_to_image_begins_within_the_steps_of_distillation():
    assert scheduler(request={"num_inference_steps": 4, "strength": 0.8}).timesteps.tolist() == [799, 599, 399, 199]
    explicit = scheduler(request={"timesteps": [999, 700, 400, 100], "strength": 0.5})
    assert explicit.timesteps.tolist() == [400, 100]
    # The last step of a shortened list adds no noise.
    x, t = start(), explicit.timesteps[-1]
    result = explicit.step(x, t, x)
    assert torch.equal(result.prev_sample, result.pred_original_sample)


@pytest.mark.parametrize(("final_draw", "draws"), [(False, 2), (True, 3)])
def test_a_last_draw_moves_the_generator_only(final_draw, draws):
    generator, twin = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    result = run(scheduler(3, final_draw=final_draw), start(), generator)

    assert torch.equal(result, run(scheduler(3), start(), torch.Generator().manual_seed(5)))
    for _ in range(draws):
        torch.randn(start().shape, generator=twin)
    assert torch.equal(generator.get_state(), twin.get_state())


def test_requests_that_make_no_sense_are_refused():
    for request, message in [
        ({}, "exactly one"),
        ({"num_inference_steps": 51}, "from 1 to 50"),
        ({"num_inference_steps": 30, "strength": 0.5}, "from 1 to 25"),
        ({"num_inference_steps": 3, "strength": 1.5}, "strength=1.5"),
        ({"timesteps": [999, 1000]}, "allowed: 0 to 999"),
        ({"timesteps": [999], "strength": 0.5}, "leaves none of 1 steps"),
    ]:
        with pytest.raises(ValueError, match=message):
            LCMScheduler().set_timesteps(**request)
    with pytest.raises(ConfigError, match="from 1 to 1000"):
        LCMScheduler(original_inference_steps=1001)
    with pytest.raises(ValueError, match="abar is 0 at timestep 999"):
        scheduler(2, rescale_betas_zero_snr=True)
