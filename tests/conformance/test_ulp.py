"""Distances in units in the last place."""

from __future__ import annotations

import math

import pytest
import torch

from conformance.ulp import ulp_distance, ulp_distances


@pytest.mark.parametrize(
    ("dtype", "step"),
    [(torch.float64, 2.0**-52), (torch.float32, 2.0**-23), (torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)],
)
def test_neighbours_are_one_apart(dtype: torch.dtype, step: float) -> None:
    one = torch.ones(1, dtype=dtype)

    assert ulp_distance(one + step, one) == 1
    assert ulp_distance(one - step / 2, one) == 1
    assert ulp_distance(-one - 3 * step, -one) == 3
    assert ulp_distance(one, one) == 0


def test_zero_has_one_place_and_numbers_of_other_sign_lie_beyond_it() -> None:
    smallest = torch.tensor([2.0**-149])

    assert ulp_distance(torch.tensor([-0.0]), torch.tensor([0.0])) == 0
    assert ulp_distance(-smallest, smallest) == 2
    assert ulp_distance(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)) > 2.0**62


def test_nan_is_infinitely_far_from_a_number_only() -> None:
    nan = torch.tensor([math.nan])

    assert ulp_distance(nan, nan) == 0
    assert ulp_distance(nan, torch.ones(1)) == math.inf


def test_integers_and_empty_tensors() -> None:
    assert ulp_distances(torch.tensor([3, 5]), torch.tensor([3, 1])).tolist() == [0, 4]
    assert ulp_distance(torch.empty(0), torch.empty(0)) == 0
