from __future__ import annotations

import diffusers
import pytest
import torch

from diffusers_ref import DDIMScheduler, DDPMScheduler
from diffusers_ref.schedulers import timesteps as grids
from diffusers_ref.schedulers.conventions import TimestepSpacing
from diffusers_ref.schedulers.timesteps import make_grid


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("train_steps", [1000, 40])
def test_published_grids_equal_hf(spacing, train_steps):
    theirs = diffusers.DDIMScheduler(num_train_timesteps=train_steps, timestep_spacing=spacing)
    for count in (1, 2, 3, 7, 13, 20, 39, 40):
        theirs.set_timesteps(count)
        ours = make_grid(TimestepSpacing(spacing), train_steps, num_inference_steps=count)
        assert ours == theirs.timesteps.tolist()


def test_the_offset_moves_the_leading_and_the_ddim_grids_only():
    scheduler = DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]
    for spacing, first in (("ddim_uniform", 751), ("ddim_quad", 801), ("linspace", 999), ("trailing", 999)):
        grid = make_grid(TimestepSpacing(spacing), 1000, num_inference_steps=4, steps_offset=1)
        assert grid[0] == first


def test_trailing_grids_have_the_number_of_steps_that_was_asked_for():
    for count in range(1, 1001):
        grid = grids.trailing(1000, count)
        assert len(grid) == count and grid[0] >= 0 and grid[-1] == 999


def test_ddim_uniform_takes_more_steps_where_the_number_does_not_divide():
    assert [len(grids.ddim_uniform(1000, count)) for count in (10, 13, 30, 300)] == [10, 14, 31, 334]
    assert grids.ddim_uniform(1000, 13)[-2:] == [12 * 76, 13 * 76]


def test_ddim_quad_keeps_its_repeats():
    for count, repeats in ((50, 1), (100, 4)):
        grid = grids.ddim_quad(1000, count)
        assert len(grid) == count and len(grid) - len(set(grid)) == repeats
    assert grids.ddim_quad(1000, 5) == [0, 50, 200, 450, 800]


def test_respacing_rounds_an_accumulated_stride_half_to_even():
    assert grids.improved_diffusion(10, [4]) == [0, 3, 6, 9]
    assert grids.improved_diffusion(6, [3]) == [0, 2, 5]  # 2.5 becomes 2
    assert grids.improved_diffusion(300, "10,15,20") == grids.improved_diffusion(300, [10, 15, 20])
    sections = grids.improved_diffusion(300, [10, 15, 20])
    assert [sum(low <= t < low + 100 for t in sections) for low in (0, 100, 200)] == [10, 15, 20]
    assert grids.improved_diffusion(11, [2, 1]) == [0, 5, 6]  # the first section takes the odd timestep


def test_respacing_differs_from_linspace():
    differing = [n for n in range(2, 1001) if grids.improved_diffusion(1000, [n]) != grids.linspace(1000, n)]
    assert len(differing) == 278


def test_respacing_by_an_integer_stride():
    assert grids.improved_diffusion(1000, "ddim25") == list(range(0, 1000, 40))
    with pytest.raises(ValueError, match=r"'ddim23': no integer stride takes exactly 23 of 40"):
        grids.improved_diffusion(40, "ddim23")


def test_a_scheduler_takes_the_three_kinds_of_request():
    scheduler = DDPMScheduler(num_train_timesteps=40, timestep_spacing="improved_diffusion")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [39, 26, 13, 0] and scheduler.num_inference_steps == 4
    scheduler.set_timesteps(respacing="2,3")
    assert scheduler.timesteps.tolist() == [39, 30, 20, 19, 0]
    scheduler.set_timesteps(timesteps=torch.tensor([30, 7]))
    assert scheduler.timesteps.tolist() == [30, 7] and scheduler.timesteps.dtype == torch.int64
    assert len(scheduler) == 40


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "give exactly one of .* given: none"),
        ({"num_inference_steps": 5, "timesteps": [1]}, "given: num_inference_steps and timesteps"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is out of range; allowed: 1 to 40"),
        ({"num_inference_steps": -3}, "allowed: 1 to 40"),
        ({"num_inference_steps": 41}, "allowed: 1 to 40"),
        ({"num_inference_steps": 2.5}, "num_inference_steps needs whole numbers, not 2.5"),
        ({"num_inference_steps": True}, "whole numbers, not True"),
        ({"num_inference_steps": 40}, r"40 steps spaced 'leading' with steps_offset=1 visit 1 to 40; allowed: 0 to 39"),
        ({"timesteps": []}, "timesteps is empty"),
        ({"timesteps": [40, 2]}, "timesteps from 2 to 40; allowed: 0 to 39"),
        ({"timesteps": [3, -1]}, "allowed: 0 to 39"),
        ({"timesteps": [3, 5]}, "must descend strictly, but 3 is followed by 5"),
        ({"timesteps": [5, 5]}, "must descend strictly, but 5 is followed by 5"),
        ({"timesteps": [5, 1.5]}, "timesteps needs whole numbers, not 1.5"),
        ({"respacing": "10"}, "respacing needs timestep_spacing='improved_diffusion', this is 'leading'"),
    ],
)
def test_impossible_grids_are_refused(request_, message):
    scheduler = DDIMScheduler(num_train_timesteps=40, steps_offset=1)
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(**request_)


@pytest.mark.parametrize(
    ("respacing", "message"),
    [
        ("30,5", "takes 30 steps from section 0, which has 20"),
        ("5,", "whole numbers, not ''"),
        ("0", "at least 1 step"),
        ([], "at least one section"),
        ("ddimx", "whole numbers, not 'x'"),
    ],
)
def test_impossible_respacings_are_refused(respacing, message):
    with pytest.raises(ValueError, match=message):
        grids.improved_diffusion(40, respacing)


def test_repeats_are_allowed_where_the_grid_rule_makes_them():
    scheduler = DDIMScheduler(timestep_spacing="ddim_quad")
    scheduler.set_timesteps(timesteps=[9, 1, 0, 0])
    assert scheduler.timesteps.tolist() == [9, 1, 0, 0]
