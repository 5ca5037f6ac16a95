from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusers_ref import ConfigError, DDIMScheduler, DDPMScheduler
from diffusers_ref.schedulers.betas import NoiseTable, make_betas, rescale_to_zero_terminal_snr
from diffusers_ref.schedulers.conventions import BetaSchedule, Coefficients


def betas(schedule: str, count: int = 10, start: float = 0.1, end: float = 0.4, **options) -> np.ndarray:
    return make_betas(BetaSchedule(schedule), start, end, count, **options)


def test_schedules_follow_their_definition():
    assert np.array_equal(betas("linear", 4), np.linspace(0.1, 0.4, 4))
    assert np.array_equal(betas("scaled_linear", 4), np.linspace(0.1**0.5, 0.4**0.5, 4) ** 2)
    assert np.array_equal(betas("const", 3), [0.4, 0.4, 0.4])
    assert np.allclose(betas("jsd", 4), [1 / 4, 1 / 3, 1 / 2, 1], rtol=1e-15)
    assert np.array_equal(betas("warmup10", 20)[:3], [0.1, 0.4, 0.4])
    assert np.array_equal(betas("warmup50", 8), [*np.linspace(0.1, 0.4, 4), 0.4, 0.4, 0.4, 0.4])
    sigmoid = betas("sigmoid", 3)
    assert np.allclose(sigmoid, [0.1 + 0.3 / (1 + math.exp(6)), 0.25, 0.1 + 0.3 / (1 + math.exp(-6))], rtol=1e-15)


def test_the_cosine_schedule_ends_in_its_cap():
    cosine = betas("squaredcos_cap_v2", 1000)
    assert cosine[-1] == 0.999 and (cosine[:-1] < 0.999).all()
    level = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert np.cumprod(1 - cosine)[499] == pytest.approx(level, rel=1e-12)


def test_each_recipe_rounds_where_its_original_rounds():
    exact = betas("linear", 1000, 1e-4, 2e-2)
    double = NoiseTable.from_betas(exact, Coefficients.FLOAT64)
    assert double.alphas_cumprod.dtype == double.betas.dtype == torch.float64
    assert np.array_equal(double.alphas_cumprod.numpy(), np.cumprod(1 - exact))

    single = NoiseTable.from_betas(exact, Coefficients.FLOAT32_CUMPROD)
    assert torch.equal(single.alphas_cumprod, (1 - torch.tensor(exact, dtype=torch.float32)).cumprod(0))

    once = NoiseTable.from_betas(exact, Coefficients.COMPVIS)
    assert torch.equal(once.alphas_cumprod, double.alphas_cumprod.float())
    assert not torch.equal(once.alphas_cumprod, single.alphas_cumprod)


def test_the_recipe_follows_from_class_and_schedule():
    def recipe(scheduler):
        return scheduler._table.coefficients.value

    assert recipe(DDPMScheduler(beta_schedule="scaled_linear")) == "float64"
    assert recipe(DDIMScheduler()) == "float32_cumprod"
    assert recipe(DDIMScheduler(beta_schedule="scaled_linear")) == "compvis"
    assert recipe(DDIMScheduler(beta_schedule="squaredcos_cap_v2")) == "float64"
    assert recipe(DDIMScheduler(beta_schedule="scaled_linear", coefficients="float64")) == "float64"


def test_zero_terminal_snr_shifts_the_last_level_to_zero_and_keeps_the_first():
    before = betas("linear", 1000, 1e-4, 2e-2)
    after = rescale_to_zero_terminal_snr(before)
    levels = np.cumprod(1 - after)
    assert levels[-1] == 0 and levels[0] == pytest.approx(1 - before[0], rel=1e-12)
    assert (np.diff(levels) < 0).all()


def test_trained_betas_are_taken_as_they_are():
    trained = [0.1, 0.2, 0.3]
    scheduler = DDPMScheduler(num_train_timesteps=3, trained_betas=trained)
    assert scheduler.betas.tolist() == trained
    with pytest.raises(ConfigError, match=r"shape \(3,\), but num_train_timesteps=1000"):
        DDPMScheduler(trained_betas=trained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_end": 1.5}, r"betas from 0.0001 to 1.5; allowed: above 0, at most 1"),
        ({"beta_start": 0.0}, r"allowed: above 0"),
        ({"beta_schedule": "scaled_linear", "beta_start": -1.0}, "must not be negative"),
        ({"num_train_timesteps": 0}, "integer of at least 1, not 0"),
        ({"num_train_timesteps": 10.0}, "integer of at least 1, not 10.0"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "at least two timesteps"),
        ({"beta_schedule": "linaer"}, r"beta_schedule='linaer' is not known here; allowed: 'linear', 'scaled_linear'"),
        ({"coefficients": "float16"}, "coefficients='float16'.*'float64', 'float32_cumprod', 'compvis'"),
    ],
)
def test_bad_forward_processes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DDIMScheduler(**options)
