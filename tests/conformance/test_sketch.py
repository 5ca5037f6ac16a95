"""Sketches: a short projection that tells tensors apart and estimates their distance."""

from __future__ import annotations

import pytest
import torch

from conformance.sketch import WIDTH, sketch


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_signs_never_change() -> None:
    sums = (sketch(torch.arange(6.0)) * 8**0.5).round().int()

    assert sums.tolist() == [7, 3, 5, 7, 3, -15, -13, -7]


def test_a_sketch_is_eight_float64_numbers() -> None:
    for tensor in (normal(2, 3, 4), normal(5).float(), normal(7, 1).half(), torch.tensor(2.0)):
        assert (sketch(tensor).shape, sketch(tensor).dtype) == ((WIDTH,), torch.float64)


def test_a_sketch_is_linear() -> None:
    a, b = normal(3, 40), normal(3, 40, seed=1)

    # Float64 sums of 120 numbers of size 1.
    assert torch.allclose(sketch(2 * a - 3 * b), 2 * sketch(a) - 3 * sketch(b), rtol=0, atol=1e-12)


def test_the_norm_of_a_difference_is_estimated() -> None:
    ratios = [float(sketch(normal(n, seed=n)).norm() / normal(n, seed=n).norm()) for n in range(50, 450, 2)]

    # ‖sketch‖²/‖x‖² is about χ²(8)/8: mean 1, standard deviation 0.5; 200 of them.
    squares = torch.tensor(ratios).square()
    assert float(squares.mean()) == pytest.approx(1.0, abs=4 * 0.5 / 200**0.5)
    assert 0.2 < min(ratios) < max(ratios) < 2.0


@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4), (2, 3, 2, 2), (1, 24, 1)])
def test_axes_may_be_flattened(shape: tuple[int, ...]) -> None:
    tensor = normal(24)

    assert torch.equal(sketch(tensor.reshape(shape)), sketch(tensor))


def test_the_order_of_elements_shows() -> None:
    tensor = normal(2, 3, 4)

    assert not torch.allclose(sketch(tensor.transpose(1, 2)), sketch(tensor))
    assert not torch.allclose(sketch(tensor.flip(0)), sketch(tensor))


def test_one_changed_element_shows_in_every_number() -> None:
    tensor = normal(1000)
    changed = tensor.clone()
    changed[123] += 1e-9

    assert (sketch(changed) - sketch(tensor)).abs() * WIDTH**0.5 == pytest.approx(torch.full((WIDTH,), 1e-9), rel=1e-3)


def test_a_view_is_sketched_as_what_it_shows() -> None:
    tensor = normal(3, 4)

    assert torch.equal(sketch(tensor.T), sketch(tensor.T.contiguous()))
