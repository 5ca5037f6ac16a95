"""Verdicts on the boundary: what passes, what does not, and what is said about it."""

from __future__ import annotations

import math

import pytest
import torch

from conformance.compare import (
    ONE_ULP,
    Comparison,
    Policy,
    Verdict,
    compare_exactly,
    compare_float64,
    compare_steps,
    relative_errors,
    worst,
)

CPU = Policy.of("cpu", torch.float32)
FLOOR = 1e-6


def floors(rows: int, norm: float = FLOOR, element: float = FLOOR) -> torch.Tensor:
    return torch.tensor([[norm, element]], dtype=torch.float64).expand(rows, 2)


def exact(rows: int = 3, count: int = 4) -> torch.Tensor:
    """y64: rows of ones, so that a relative error is an absolute one."""
    return torch.ones(rows, count, dtype=torch.float64)


def compared(observed: torch.Tensor, y64: torch.Tensor, policy: Policy = CPU, **bounds: float) -> Comparison:
    return compare_steps("sample", observed, y64.float(), y64, floors(len(y64), **bounds), policy)


# --- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype", "max_rho", "scale"),
    [
        ("cpu", torch.float32, 4.0, 1.0),
        ("cuda", torch.float32, 8.0, 1.0),
        ("cuda:1", torch.float32, 8.0, 1.0),
        ("cpu", torch.float64, 4.0, 1.0),
        ("cpu", torch.float16, 4.0, 2.0**13),
        ("cuda", torch.bfloat16, 8.0, 2.0**16),
    ],
)
def test_bounds_by_device_and_dtype(device: str, dtype: torch.dtype, max_rho: float, scale: float) -> None:
    assert Policy.of(device, dtype) == Policy(max_rho, scale)


@pytest.mark.parametrize(("device", "bound"), [("cpu", 4.0), ("cuda", 8.0)])
def test_the_bound_itself_decides(device: str, bound: float) -> None:
    policy = Policy.of(device, torch.float32)
    within, beyond = (compared(exact() * (1 + r * FLOOR), exact(), policy) for r in (bound - 1e-3, bound + 1e-3))

    assert (within.verdict, within.step, within.detail) == (Verdict.EQUIVALENT, None, "")
    assert (beyond.verdict, beyond.step) == (Verdict.DIVERGENT, 0)
    assert within.rho == pytest.approx(bound - 1e-3)
    assert beyond.rho == pytest.approx(bound + 1e-3)
    assert beyond.error == pytest.approx(bound * FLOOR, rel=1e-3)
    assert beyond.floor == FLOOR


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)])
def test_half_types_are_judged_by_their_own_rounding(dtype: torch.dtype, unit: float) -> None:
    policy = Policy.of("cpu", dtype)
    scaled_floor = FLOOR * unit / 2.0**-24

    assert compared(exact() * (1 + 3.99 * scaled_floor), exact(), policy).verdict is Verdict.EQUIVALENT
    assert compared(exact() * (1 + 4.01 * scaled_floor), exact(), policy).verdict is Verdict.DIVERGENT


def test_a_floor_of_zero_is_one_ulp() -> None:
    assert ONE_ULP == 2.0**-24
    for floor in (0.0, ONE_ULP / 1000):
        bounds = {"norm": floor, "element": floor}
        assert compared(exact() * (1 + 3.99 * ONE_ULP), exact(), **bounds).verdict is Verdict.EQUIVALENT
        assert compared(exact() * (1 + 4.01 * ONE_ULP), exact(), **bounds).verdict is Verdict.DIVERGENT


def test_one_wrong_element_is_seen_that_the_norm_misses() -> None:
    y64 = exact(rows=2, count=10_000)
    observed = y64.clone()
    observed[1, 77] += 10 * FLOOR

    found = compared(observed, y64)
    assert (found.verdict, found.step) == (Verdict.DIVERGENT, 1)
    assert found.rho == pytest.approx(10.0)
    assert "at element 77: 1.00001 instead of 1, ρ = 10" in found.detail
    assert compared(observed, y64, element=1.0).verdict is Verdict.EQUIVALENT


def test_the_norm_is_judged_too() -> None:
    observed = exact() * (1 + 10 * FLOOR)

    assert compared(observed, exact(), element=1.0).verdict is Verdict.DIVERGENT


def test_the_first_step_beyond_the_bound_is_named_and_the_worst_is_measured() -> None:
    observed = exact(rows=4)
    observed[1] *= 1 + 5 * FLOOR
    observed[3] *= 1 + 50 * FLOOR

    found = compared(observed, exact(rows=4))

    assert found.step == 1
    assert found.rho == pytest.approx(50.0)
    assert "ρ = 5" in found.detail


def test_each_step_has_its_own_floor() -> None:
    observed, bounds = exact(rows=2) * (1 + 5 * FLOOR), torch.tensor([[10 * FLOOR] * 2, [FLOOR] * 2])

    found = compare_steps("sample", observed, None, exact(rows=2), bounds.double(), CPU)

    assert found.step == 1


# --- bitwise ---------------------------------------------------------------------------------------------------------


def test_equal_bits_are_bitwise() -> None:
    y64 = exact() / 3

    assert compared(y64.float(), y64).verdict is Verdict.BITWISE


@pytest.mark.parametrize("change", ["one ulp", "float64", "no y32"])
def test_equal_within_the_bound_is_not_bitwise(change: str) -> None:
    y64 = exact() / 3
    y32 = observed = y64.float()
    if change == "one ulp":
        observed = observed.clone()
        observed[2, 3] = torch.nextafter(observed[2, 3], torch.tensor(torch.inf))
    elif change == "float64":
        observed = observed.double()

    found = compare_steps("sample", observed, None if change == "no y32" else y32, y64, floors(3), CPU)

    assert found.verdict is Verdict.EQUIVALENT


def test_a_negative_zero_has_other_bits() -> None:
    y64 = torch.zeros(1, 2, dtype=torch.float64)

    assert compared(torch.tensor([[0.0, 0.0]]), y64).verdict is Verdict.BITWISE
    assert compared(torch.tensor([[0.0, -0.0]]), y64).verdict is Verdict.EQUIVALENT


# --- NaN, Inf, zero, shapes ------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("seen", "oracle", "passes"),
    [
        (NAN, 1.0, False),
        (INF, 1.0, False),
        (1.0, NAN, False),
        (1.0, INF, False),
        (INF, -INF, False),
        (NAN, INF, False),
        (INF, NAN, False),
        (NAN, NAN, True),
        (INF, INF, True),
        (-INF, -INF, True),
    ],
)
def test_nan_and_inf_pass_only_where_the_oracle_has_them(seen: float, oracle: float, passes: bool) -> None:
    observed, y64 = exact(), exact()
    observed[1, 2], y64[1, 2] = seen, oracle

    found = compared(observed.float(), y64)
    assert found.verdict is (Verdict.BITWISE if passes else Verdict.DIVERGENT)
    assert found.step == (None if passes else 1)
    assert (found.rho, found.error) == ((0.0, 0.0) if passes else (INF, INF))
    assert "at element 2" in found.detail or passes

    found64 = compare_float64("sample.f64", observed, y64, 1e-12)
    assert found64.verdict is (Verdict.EQUIVALENT if passes else Verdict.DIVERGENT)
    assert found64.step == (None if passes else 1)


def test_nan_in_its_place_does_not_hide_an_error_elsewhere() -> None:
    observed, y64 = exact(), exact()
    observed[1, 2] = y64[1, 2] = NAN
    observed[1, 3] += 1e-3

    assert compared(observed, y64).verdict is Verdict.DIVERGENT


def test_a_bound_that_is_not_a_number_passes_nothing() -> None:
    assert compared(exact(), exact(), norm=NAN).verdict is Verdict.DIVERGENT
    assert compared(exact(), exact(), element=NAN).verdict is Verdict.DIVERGENT
    assert compare_float64("x", exact(), exact(), NAN).verdict is Verdict.DIVERGENT


def test_an_oracle_of_zeros_accepts_only_zeros() -> None:
    zeros = torch.zeros(1, 3, dtype=torch.float64)

    assert compared(zeros.float(), zeros).verdict is Verdict.BITWISE
    assert compared(zeros + 1e-30, zeros).verdict is Verdict.DIVERGENT


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (3, 4, 1), (12,), (0,)])
def test_another_shape_is_divergent(shape: tuple[int, ...]) -> None:
    observed = torch.ones(shape)

    for found in (compared(observed, exact()), compare_float64("x", observed, exact(), 1.0)):
        assert (found.verdict, found.step, found.rho) == (Verdict.DIVERGENT, 0, INF)
        assert found.detail == f"shape {shape}, the original's is (3, 4)"


def test_no_steps_are_no_divergence() -> None:
    none = torch.ones(0, 4, dtype=torch.float64)

    assert compared(none, none).verdict.green
    assert compare_float64("x", none, none, 1e-12).verdict.green


def test_relative_errors_by_norm_and_by_element() -> None:
    y64 = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)

    norm, element = relative_errors(y64 + torch.tensor([[0.0, 1.0], [0.0, 0.5]]), y64)

    assert norm.tolist() == [0.2, 0.25]
    assert element.tolist() == [0.25, 0.25]


# --- float64 ---------------------------------------------------------------------------------------------------------


def test_the_float64_tolerance_decides() -> None:
    # 1 ± 1e-10 in steps of 2⁻⁵³
    within, beyond = (compare_float64("x.f64", exact() * (1 + e), exact(), 1e-10) for e in (0.99e-10, 1.01e-10))

    assert (within.verdict, within.step, within.rho) == (Verdict.EQUIVALENT, None, 0.0)
    assert (beyond.verdict, beyond.step) == (Verdict.DIVERGENT, 0)
    assert beyond.error == pytest.approx(1.01e-10, rel=1e-4)
    assert beyond.rho == pytest.approx(1.01, rel=1e-4)


def test_the_float64_tolerance_holds_for_each_element() -> None:
    observed = exact(count=10_000)
    observed[2, 5] += 5e-12

    found = compare_float64("x.f64", observed, exact(count=10_000), 1e-12)

    assert (found.verdict, found.step) == (Verdict.DIVERGENT, 2)


# --- exact -----------------------------------------------------------------------------------------------------------


def test_equal_tables_are_bitwise() -> None:
    table = torch.linspace(0, 1, 7, dtype=torch.float64)

    assert compare_exactly("betas", table.clone(), table) == Comparison("betas", Verdict.BITWISE)
    assert compare_exactly("betas", table.float(), table.float()).verdict is Verdict.BITWISE


def test_a_table_in_a_narrower_precision_differs() -> None:
    table = torch.tensor([0.5, 0.1, 0.25, 0.3], dtype=torch.float64)

    found = compare_exactly("betas", table.float(), table)
    assert (found.verdict, found.step) == (Verdict.DIVERGENT, 1)
    assert found.detail == "2 of 4 entries differ, first [1]: 0.10000000149011612 instead of 0.1"
    assert compare_exactly("betas", table, table.float()).step == 1


@pytest.mark.parametrize(
    ("observed", "step", "detail"),
    [
        ([3, 1], 2, "(2,) entries [3, 1], the original has (3,) [3, 1, 0]"),
        ([3, 2, 1, 0], 1, "(4,) entries [3, 2, 1, …], the original has (3,) [3, 1, 0]"),
        ([], 0, "(0,) entries [], the original has (3,) [3, 1, 0]"),
    ],
)
def test_another_length_names_the_first_difference(observed: list[float], step: int, detail: str) -> None:
    found = compare_exactly("timesteps", torch.tensor(observed), torch.tensor([3, 1, 0]))

    assert (found.verdict, found.step, found.rho, found.detail) == (Verdict.DIVERGENT, step, INF, detail)


def test_integers_and_nan_are_compared_exactly() -> None:
    assert compare_exactly("ids", torch.tensor([1, 2]), torch.tensor([1, 2])).verdict is Verdict.BITWISE
    assert compare_exactly("ids", torch.tensor([1, 3]), torch.tensor([1, 2])).step == 1
    assert compare_exactly("t", torch.tensor([NAN, INF]), torch.tensor([NAN, INF])).verdict is Verdict.BITWISE
    assert compare_exactly("t", torch.tensor([1.0, NAN]), torch.tensor([1.0, 2.0])).step == 1


def test_another_number_of_axes_differs() -> None:
    assert compare_exactly("t", torch.ones(2, 1), torch.ones(2)).verdict is Verdict.DIVERGENT
    assert compare_exactly("t", torch.tensor(1.0), torch.ones(1)).verdict is Verdict.DIVERGENT
    assert compare_exactly("t", torch.ones(2, 4), torch.ones(3, 3)).verdict is Verdict.DIVERGENT


# --- the verdict of a case -------------------------------------------------------------------------------------------


def test_only_three_verdicts_are_green() -> None:
    assert [v.value for v in Verdict if v.green] == ["bitwise", "equivalent", "waived"]


@pytest.mark.parametrize(
    ("outputs", "verdict"),
    [
        ({"step": "bitwise", "sample": "bitwise"}, "bitwise"),
        ({"step": "bitwise", "sample": "equivalent"}, "equivalent"),
        ({"step": "divergent", "sample": "equivalent"}, "divergent"),
        ({"step": "divergent", "sample": "error"}, "error"),
        ({"step": "waived", "sample": "unsupported"}, "unsupported"),
        ({"step": "unsupported", "sample": "divergent"}, "divergent"),
        ({"step": "bitwise", "step.f64": "equivalent", "tap:conv_in": "equivalent"}, "bitwise"),
        ({"step": "bitwise", "step.f64": "divergent"}, "divergent"),
        ({"sample": "bitwise", "tap:conv_in": "divergent"}, "divergent"),
        ({"step.f64": "equivalent"}, "equivalent"),
        ({}, "equivalent"),
    ],
)
def test_a_case_is_as_good_as_its_worst_output(outputs: dict[str, str], verdict: str) -> None:
    comparisons = [Comparison(name, Verdict(value)) for name, value in outputs.items()]

    assert worst(comparisons) is Verdict(verdict)
    assert worst(reversed(comparisons)) is Verdict(verdict)
