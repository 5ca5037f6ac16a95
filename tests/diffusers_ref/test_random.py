from __future__ import annotations

import pytest
import torch

from diffusers_ref.random import randn


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_seed_gives_one_draw_in_every_precision():
    exact = torch.randn(2, 3, 4, generator=seeded(7))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert torch.equal(randn((2, 3, 4), seeded(7), "cpu", dtype), exact.to(dtype))


def test_without_a_generator_the_default_one_of_the_cpu_draws():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        drawn = randn((5,), None)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.randn(5))


def test_a_list_draws_each_sample_as_if_it_were_alone():
    batch = randn((3, 2, 2), [seeded(0), seeded(1), seeded(2)])
    for seed, sample in enumerate(batch):
        assert torch.equal(sample[None], randn((1, 2, 2), seeded(seed)))


def test_consecutive_draws_continue_one_stream():
    generator = seeded(5)
    pair = torch.stack([randn((16,), generator), randn((16,), generator)])
    reference = seeded(5)
    assert torch.equal(pair, torch.stack([torch.randn(16, generator=reference) for _ in range(2)]))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_the_wrong_length_says_how_many_are_needed(count):
    with pytest.raises(ValueError, match=rf"a list of {count} generators .* \(2, 4\): one per sample"):
        randn((2, 4), [seeded(0)] * count)


def test_what_is_not_a_generator_is_named():
    with pytest.raises(TypeError, match="not int"):
        randn((2,), 42)
    with pytest.raises(TypeError, match=r"generator\[1\] must be a torch.Generator, not str"):
        randn((2, 2), [seeded(0), "1"])


def test_integer_noise_is_refused():
    with pytest.raises(ValueError, match=r"floating dtype, not torch.int64"):
        randn((2,), None, "cpu", torch.int64)
