"""Synthetic weights: the rule is pinned by literal values, since every recorded network depends on it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conformance.weights import RULES, Layout, synthetic_input, synthetic_parameter, synthetic_state

PINNED = [
    ("conv.weight", (4, 3, 3, 3), "torch", ("0x1.4db5500000000p-2", "-0x1.1b1f960000000p-5", "-0x1.fdaaac0000000p-7")),
    ("norm.weight", (5,), "torch", ("0x1.12b0280000000p+0", "0x1.096f460000000p+0", "0x1.d9141c0000000p-1")),
    ("norm.bias", (5,), "torch", ("0x1.c129ce0000000p-5", "-0x1.fbbc4e0000000p-5", "0x1.82199a0000000p-5")),
    ("unet/dense/W", (6, 4), "tensorflow", ("0x1.f37e720000000p-2", "0x1.154a5c0000000p-1", "-0x1.27b0b00000000p-2")),
    ("unet/norm/gamma", (3,), "tensorflow", ("0x1.065a1a0000000p+0", "0x1.154b4c0000000p+0", "0x1.e49fb40000000p-1")),
]


@pytest.mark.parametrize(("name", "shape", "layout", "first"), PINNED)
def test_the_first_numbers_never_change(
    name: str, shape: tuple[int, ...], layout: Layout, first: tuple[str, ...]
) -> None:
    array = synthetic_parameter(name, shape, 0, layout)

    assert array.dtype == np.float32
    assert array.shape == shape
    assert tuple(float(value).hex() for value in array.reshape(-1)[:3]) == first


def test_name_and_seed_choose_the_numbers() -> None:
    base = synthetic_parameter("conv.weight", (8, 8), 0, "torch")

    assert np.array_equal(base, synthetic_parameter("conv.weight", (8, 8), 0, "torch"))
    assert not np.array_equal(base, synthetic_parameter("conv.weight", (8, 8), 1, "torch"))
    assert not np.array_equal(base, synthetic_parameter("conv2.weight", (8, 8), 0, "torch"))


def test_a_longer_parameter_begins_like_a_shorter_one() -> None:
    short, long = (synthetic_parameter("b", (n,), 0, "torch") for n in (3, 300))

    assert np.array_equal(long[:3], short)


@pytest.mark.parametrize(
    ("shape", "layout", "fan_in"),
    [
        ((64, 32, 3, 3), "torch", 288),
        ((64, 32), "torch", 32),
        ((3, 3, 32, 64), "tensorflow", 288),
        ((32, 64), "tensorflow", 32),
    ],
)
def test_matrices_and_kernels_have_variance_one_over_fan_in(
    shape: tuple[int, ...], layout: Layout, fan_in: int
) -> None:
    array = synthetic_parameter("kernel", shape, 0, layout).astype(np.float64)

    # The standard error of the variance of n uniform numbers is 0.9 / √n of it.
    assert array.var() * fan_in == pytest.approx(1.0, abs=4 * 0.9 / math.sqrt(array.size))
    assert np.abs(array).max() <= math.sqrt(3 / fan_in) * (1 + 2**-23)


def test_norm_scales_are_near_one_and_biases_small() -> None:
    scale, bias = (synthetic_parameter(name, (1000,), 0, "torch") for name in ("norm.weight", "norm.bias"))

    assert 0.9 <= scale.min() < 0.91 < 1.09 < scale.max() <= 1.1
    assert -0.1 <= bias.min() < -0.09 < 0.09 < bias.max() <= 0.1


def test_no_tensor_is_left_zero() -> None:
    shapes = {"a.weight": (4, 3, 3, 3), "a.bias": (4,), "n.weight": (1,), "n.bias": (1,), "scalar": ()}

    for rule in RULES:
        state = synthetic_state(shapes, 0, rule)
        assert {name: array.shape for name, array in state.items()} == shapes
        assert all(np.count_nonzero(array) == array.size for array in state.values())


def test_the_rules_differ_in_what_is_fan_in() -> None:
    shapes = {"kernel": (2, 8)}
    torch_kernel, tensorflow_kernel = (
        synthetic_state(shapes, 0, f"philox-uniform/{layout}")["kernel"] for layout in ("torch", "tensorflow")
    )

    assert tensorflow_kernel == pytest.approx(2 * torch_kernel)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rule 'normal'; known: philox-uniform/torch, philox-uniform/tensorflow"):
        synthetic_state({"w": (1,)}, 0, "normal")


def test_a_synthetic_input_is_pinned_and_has_unit_variance() -> None:
    x = synthetic_input((2, 3, 16, 16), 0)

    assert x.dtype == np.float32
    assert tuple(float(value).hex() for value in x.reshape(-1)[:2]) == PINNED_INPUT
    assert x.astype(np.float64).var() == pytest.approx(1.0, abs=4 * 0.9 / math.sqrt(x.size))


PINNED_INPUT = ("0x1.296d620000000p-5", "-0x1.824e400000000p-2")
