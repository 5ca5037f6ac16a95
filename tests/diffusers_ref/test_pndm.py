"""Pseudo numerical methods: the list of evaluations, and what each evaluation does with the network's output."""

from __future__ import annotations

import copy

import diffusers
import numpy as np
import pytest
import torch

from diffusers_ref import ConfigError, PNDMScheduler

T = 40
SHAPE = (2, 3, 4, 4)
METHODS = [{"solver": "f_pndm"}, {"solver": "s_pndm"}, {"solver": "plms"}, {"skip_prk_steps": True}, {}]


def scheduler(steps: int | None = 5, **options) -> PNDMScheduler:
    made = PNDMScheduler(**{"num_train_timesteps": T, "beta_start": 0.003, "beta_end": 0.3, **options})
    if steps:
        made.set_timesteps(steps)
    return made


def evaluations(steps: int, **options) -> list[float]:
    return scheduler(steps, **options).timesteps.tolist()


def network(x, t):
    return torch.sin(x + 0.1 * float(t))


def start(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


def run(made, x, begin: int = 0):
    for t in made.timesteps[begin:]:
        x = made.step(network(x, t), t, x).prev_sample
    return x


# --- the list of evaluations ------------------------------------------------------------------------------------------


def test_f_pndm_evaluates_four_times_in_each_of_three_steps_then_once():
    assert evaluations(8, solver="f_pndm") == [
        35,
        32.5,
        32.5,
        30,
        30,
        27.5,
        27.5,
        25,
        25,
        22.5,
        22.5,
        20,
        20,
        15,
        10,
        5,
        0,
    ]
    assert scheduler(8, solver="f_pndm").timesteps.dtype == torch.float32


def test_a_short_f_pndm_reaches_below_zero():
    assert evaluations(1, solver="f_pndm") == [0, -0.5, -0.5, -1]
    assert evaluations(2, solver="f_pndm") == [20, 10, 10, 0, 0, -0.5, -0.5, -1]


def test_s_pndm_evaluates_twice_in_the_first_step():
    assert evaluations(4, solver="s_pndm") == [30, 20, 20, 10, 0]
    assert evaluations(1, solver="s_pndm") == [0, -1]


def test_plms_has_the_grid_of_compvis():
    assert evaluations(4, solver="plms") == [31, 21, 21, 11, 1]
    assert evaluations(1, solver="plms") == [1, 1]
    assert evaluations(6, solver="plms") == [37, 31, 31, 25, 19, 13, 7, 1]  # one step more than asked


def test_an_original_grid_can_have_more_steps_than_asked():
    made = scheduler(6, solver="s_pndm")
    assert made.num_inference_steps == 7 and made.timesteps[0] == 36


@pytest.mark.parametrize("skip_prk_steps", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_the_published_lists_equal_hf(spacing, skip_prk_steps):
    options = {"num_train_timesteps": T, "timestep_spacing": spacing, "skip_prk_steps": skip_prk_steps}
    theirs = diffusers.PNDMScheduler(**options)
    for steps in (4, 5, 7, 8, 20):
        theirs.set_timesteps(steps)
        assert evaluations(steps, **options) == theirs.timesteps.tolist()


def test_runge_kutta_steps_between_explicit_timesteps_have_their_own_midpoints():
    made = PNDMScheduler(num_train_timesteps=100)
    made.set_timesteps(timesteps=[90, 60, 41, 20, 0])
    assert made.timesteps.tolist() == [90, 75, 75, 60, 60, 50, 50, 41, 41, 30, 30, 20, 20, 0]


def test_published_runge_kutta_steps_need_a_next_timestep():
    assert evaluations(1) == [0]
    assert evaluations(2) == [20, 10, 10, 0, 0]
    assert evaluations(3) == [26, 19, 19, 13, 13, 6, 6, 0, 0]


def test_luping_liu_reads_one_entry_further_than_the_table_has_at_the_top():
    with pytest.raises(ValueError, match=r"solver='f_pndm' reads abar one entry after .* below 39"):
        scheduler(3, solver="f_pndm")  # 39, 26, 13, 0
    with pytest.raises(ValueError, match="solver='s_pndm'"):
        scheduler(None, solver="s_pndm").set_timesteps(timesteps=[39, 20, 0])


# --- the steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20])
def test_a_constant_noise_is_followed_exactly(options, steps):
    made = scheduler(steps, **options)
    x0, epsilon = start(torch.float64), start(torch.float64).flip(0)
    shift = 1 if options.get("solver") in ("f_pndm", "s_pndm") else 0
    x = made.add_noise(x0, epsilon, int(made.timesteps[0]) + shift)
    for t in made.timesteps:
        x = made.step(epsilon, t, x).prev_sample
    # Every method ends at abar_0, where the weights of the multistep methods have summed up to 1 each time.
    assert torch.allclose(x, made.add_noise(x0, epsilon, 0), atol=1e-6 / made.alphas_cumprod[-1].item() ** 0.5)


def transfer(x, e, a, b):
    gap = b - a
    of_epsilon = 1 / (a.sqrt() * (((1 - b) * a).sqrt() + ((1 - a) * b).sqrt()))
    return x + gap * ((1 / (a.sqrt() * (a.sqrt() + b.sqrt()))) * x - of_epsilon * e)


def test_f_pndm_is_reproduced_bit_for_bit():
    made = scheduler(8, solver="f_pndm")
    level = {t: made.alphas_cumprod[int(t) + 1] for t in made.timesteps.tolist()}
    x, history = start(), []
    for t, t_next in ((35, 30), (30, 25), (25, 20)):
        middle, a, b = (t + t_next) / 2, level[t], level[t_next]
        e_1 = network(x, t)
        e_2 = network(transfer(x, e_1, a, level[middle]), middle)
        e_3 = network(transfer(x, e_2, a, level[middle]), middle)
        e_4 = network(transfer(x, e_3, a, b), t_next)
        x = transfer(x, (1 / 6) * (e_1 + 2 * e_2 + 2 * e_3 + e_4), a, b)
        history.append(e_1)
    for t, t_next in ((20, 15), (15, 10), (10, 5), (5, 0), (0, -1)):
        history.append(network(x, t))
        e = (1 / 24) * (55 * history[-1] - 59 * history[-2] + 37 * history[-3] - 9 * history[-4])
        x = transfer(x, e, level[t], level.get(t_next, made.alphas_cumprod[0]))
    assert torch.equal(run(made, start()), x)


def test_s_pndm_is_reproduced_bit_for_bit():
    made = scheduler(4, solver="s_pndm")
    level = {t: made.alphas_cumprod[t + 1] for t in (30, 20, 10, 0, -1)}
    x = start()
    e = network(x, 30)
    e_2 = network(transfer(x, e, level[30], level[20]), 20)
    x = transfer(x, (e + e_2) / 2, level[30], level[20])
    for t, t_next in ((20, 10), (10, 0), (0, -1)):
        e, older = network(x, t), e
        x = transfer(x, 0.5 * (3 * e - older), level[t], level[t_next])
    out = scheduler(4, solver="s_pndm")
    assert torch.equal(run(out, start()), x)
    assert out.step(x, 30, x).pred_original_sample is None


@pytest.mark.parametrize("options", [{"solver": "plms"}, {"skip_prk_steps": True, "steps_offset": 1}])
def test_plms_is_reproduced_bit_for_bit(options):
    made = scheduler(5, beta_schedule="scaled_linear", **options)

    def move(x, e, t, t_next):
        a, b = made.alphas_cumprod[t], made.alphas_cumprod[t_next]
        x0 = (x - torch.tensor(np.sqrt((1 - a).numpy())) * e) / a.sqrt()
        return b.sqrt() * x0 + (1.0 - b).sqrt() * e

    x = start()
    e = network(x, 33)
    e_2 = network(move(x, e, 33, 25), 25)
    x, old = move(x, (e + e_2) / 2, 33, 25), [e]
    for t, t_next in ((25, 17), (17, 9), (9, 1), (1, 0)):
        e = network(x, t)
        if len(old) == 1:
            combined = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            combined = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            combined = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        x = move(x, combined, t, t_next)
        old.append(e)
    assert torch.equal(run(made, start()), x)


@pytest.mark.parametrize("skip_prk_steps", [True, False])
def test_hf_agrees_on_equal_tables_where_strides_are_even(skip_prk_steps):
    ours = scheduler(10, skip_prk_steps=skip_prk_steps)
    theirs = diffusers.PNDMScheduler(num_train_timesteps=T, skip_prk_steps=skip_prk_steps)
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = ours.alphas_cumprod, ours.alphas_cumprod[0]
    theirs.set_timesteps(10)
    x = y = start()
    for t in ours.timesteps:
        x = ours.step(network(x, t), t, x).prev_sample
        y = theirs.step(network(y, t), t, y).prev_sample
        # Float32 on both sides; the weights 55, 59, 37 and 9 of 24 magnify a unit of 6e-8 by up to 7 in a step.
        assert torch.allclose(x, y, atol=3e-5)


def test_a_velocity_is_turned_into_noise_at_its_own_time():
    for options in METHODS:
        made = scheduler(8, prediction_type="v_prediction", **options)
        shift = 1 if options.get("solver") in ("f_pndm", "s_pndm") else 0
        x0, epsilon = start(torch.float64), start(torch.float64).flip(0)
        x = made.add_noise(x0, epsilon, int(made.timesteps[0]) + shift)
        for t in made.timesteps:
            x = made.step(made.get_velocity(x0, epsilon, int(t) + shift), t, x).prev_sample
        assert torch.allclose(x, made.add_noise(x0, epsilon, 0), atol=1e-4)


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", METHODS)
def test_a_second_run_equals_the_first(options):
    made = scheduler(5, **options)
    first = run(made, start())
    assert torch.equal(run(made, start()), first)
    made.step(start(), made.timesteps[0], start())  # left in the middle of a step
    made.set_timesteps(5)
    assert torch.equal(run(made, start()), first)


def test_a_copy_goes_on_from_where_the_original_is():
    made, x = scheduler(5), start()
    for t in made.timesteps[:6]:
        x = made.step(network(x, t), t, x).prev_sample
    twin = copy.deepcopy(made)
    assert torch.equal(run(made, x, begin=6), run(twin, x, begin=6))


def test_sampling_can_begin_in_the_middle_with_rising_order():
    made = scheduler(8, skip_prk_steps=True, coefficients="float32_cumprod")
    made.set_begin_index(4)
    x = start()
    t, t_next = made.timesteps[4:6].tolist()
    a, b = made.alphas_cumprod[t], made.alphas_cumprod[t_next]
    e = network(x, t)
    euler = made.step(e, t, x).prev_sample
    assert torch.allclose(euler, transfer(x, e, a, b), atol=1e-6)
    c = made.alphas_cumprod[made.timesteps[6]]
    e_2 = network(euler, t_next)
    second = made.step(e_2, t_next, euler).prev_sample
    assert torch.allclose(second, transfer(euler, (3 * e_2 - e) / 2, b, c), atol=1e-6)


def test_sampling_cannot_begin_inside_a_step():
    made = scheduler(4, solver="s_pndm")
    with pytest.raises(ValueError, match="begin_index=1 does not begin a step; allowed: 0, 2, 3, 4"):
        made.set_begin_index(1)
    with pytest.raises(ValueError, match=r"timestep -1.0 does not begin a step"):
        scheduler(1, solver="s_pndm").step(start(), -1.0, start())


@pytest.mark.parametrize("options", METHODS)
def test_only_the_sampler_of_compvis_draws_and_it_does_so_in_vain(options):
    made = scheduler(4, **options)
    generator, reference = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    x = start()
    for t in made.timesteps:
        x = made.step(network(x, t), t, x, generator=generator).prev_sample
        if options == {"solver": "plms"}:
            torch.randn(SHAPE, generator=reference)
    assert torch.equal(generator.get_state(), reference.get_state())
    assert torch.equal(x, run(scheduler(4, **options), start()))


def test_noise_is_refused_where_none_is_drawn():
    x = start()
    with pytest.raises(ValueError, match="variance_noise is not allowed: only solver='plms' draws"):
        scheduler(4).step(x, 30, x, variance_noise=x)
    plms = scheduler(4, solver="plms")
    assert torch.equal(plms.step(x, 31, x, variance_noise=x).prev_sample, plms.step(x, 31, x).prev_sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_recipes_agree_to_the_rounding_of_their_tables(dtype):
    for options in METHODS:
        float64, *others = (
            run(scheduler(8, coefficients=recipe, **options), start(dtype))
            for recipe in ("float64", "float32_cumprod", "compvis")
        )
        for other in others:
            assert torch.allclose(other, float64, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "pndm"}, "solver='pndm' is not known here; allowed: 'f_pndm', 's_pndm', 'plms'"),
        ({"prediction_type": "sample"}, "prediction_type='sample'.*allowed: 'epsilon', 'v_prediction'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PNDMScheduler(**options)
