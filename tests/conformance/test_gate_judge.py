"""What the gate calls same, moved and diverged."""

from __future__ import annotations

import math
import re

import pytest
import torch

from conformance.compare import Policy
from conformance.gate.baseline import Case
from conformance.gate.judge import Change, Status, judge

POLICY = Policy.of("cpu", torch.float32)
EXACT = torch.linspace(0.1, 2.0, 24, dtype=torch.float64).reshape(4, 6)
PROBE = Case({"sample": EXACT.float(), "sample.f64": EXACT, "table.sigmas": EXACT[0].float()}, exact=("table.sigmas",))


def changed(**outputs: object) -> Change:
    outputs = {name.replace("__", "."): value for name, value in outputs.items()}
    return judge("probe/S/1", PROBE, Case({**PROBE.outputs, **outputs}), POLICY)  # type: ignore[arg-type]


def nudged(ulps: int, row: int) -> torch.Tensor:
    sample = EXACT.float()
    for _ in range(ulps):
        sample[row] = torch.nextafter(sample[row], torch.tensor(math.inf))
    return sample


def test_the_same_bits_are_the_same() -> None:
    assert changed().status is Status.SAME


def test_one_ulp_moves_and_is_counted_with_its_first_step() -> None:
    change = changed(sample=nudged(1, row=2))
    assert (change.status, change.max_ulp, change.step, change.moved) == (Status.MOVED, 1.0, 2, ("sample",))


def test_eight_ulp_diverge() -> None:
    change = changed(sample=nudged(8, row=1))
    assert (change.status, change.max_ulp, change.step, change.first) == (Status.DIVERGED, 8.0, 1, "sample")
    assert change.max_error is not None and 2e-7 < change.max_error < 2e-6


@pytest.mark.parametrize(("error", "status"), [(3e-13, Status.MOVED), (1e-11, Status.DIVERGED)])
def test_float64_is_held_to_1e_12(error: float, status: Status) -> None:
    assert changed(sample__f64=EXACT * (1 + error)).status is status


def test_a_float64_run_that_the_code_rounds_to_float32_is_held_to_four_ulp_of_it() -> None:
    rounded = EXACT.float().double()
    before = Case({"sample": EXACT.float(), "sample.f64": rounded})
    for ulps, status in ((1, Status.MOVED), (8, Status.DIVERGED)):
        after = Case({"sample": EXACT.float(), "sample.f64": nudged(ulps, 0).double()})
        assert judge("probe/S/1", before, after, POLICY).status is status


def test_one_ulp_in_a_table_diverges() -> None:
    table = EXACT[0].float()
    table[3] = torch.nextafter(table[3], torch.tensor(9.0))
    change = changed(table__sigmas=table)
    assert (change.status, change.max_ulp, change.step) == (Status.DIVERGED, 1.0, 3)


def test_minus_zero_is_not_zero() -> None:
    before = Case({"table.sigmas": torch.zeros(1)}, exact=("table.sigmas",))
    change = judge("probe/S/1", before, Case({"table.sigmas": -torch.zeros(1)}), POLICY)
    assert (change.status, change.detail) == (Status.DIVERGED, "table.sigmas: the sign of a zero")


@pytest.mark.parametrize(
    ("outputs", "detail"),
    [
        ({"sample": "ValueError"}, r"sample: ValueError instead of float32 \(4, 6\)"),
        ({"sample": EXACT[:3].float()}, r"sample: float32 \(3, 6\) instead of float32 \(4, 6\)"),
        ({"sample": EXACT}, r"sample: float64 \(4, 6\) instead of float32 \(4, 6\)"),
        ({"sample": EXACT.float() * math.nan}, "sample step 0"),
    ],
)
def test_another_outcome_diverges(outputs: dict[str, object], detail: str) -> None:
    change = changed(**outputs)
    assert change.status is Status.DIVERGED
    assert re.search(detail, change.detail)


def test_an_output_that_is_missing_diverges_and_one_that_is_new_is_only_said() -> None:
    without = Case({name: value for name, value in PROBE.outputs.items() if name != "table.sigmas"})
    assert judge("probe/S/1", PROBE, without, POLICY).detail == "table.sigmas: nothing instead of float32 (6,)"
    change = changed(table__alphas=torch.ones(2))
    assert (change.status, change.detail) == (Status.MOVED, "table.alphas is new")


def test_another_exception_diverges_and_the_same_one_does_not() -> None:
    before = Case({"raises": "ValueError"})
    assert judge("p", before, Case({"raises": "ValueError"}), POLICY).status is Status.SAME
    assert judge("p", before, Case({"raises": "TypeError"}), POLICY).detail == "raises: TypeError instead of ValueError"


def test_a_fixture_diverges_with_its_verdict_and_moves_with_its_bits() -> None:
    before = Case(PROBE.outputs, "bitwise")
    after = {**PROBE.outputs, "sample": nudged(8, row=1)}
    assert judge("ddim/a", before, Case(after, "equivalent"), POLICY).detail.startswith("bitwise became equivalent")
    assert judge("ddim/a", before, Case(after, "equivalent"), POLICY).status is Status.DIVERGED
    assert judge("ddim/a", Case(PROBE.outputs, "equivalent"), Case(after, "equivalent"), POLICY).status is Status.MOVED
    assert judge("ddim/a", Case(PROBE.outputs, "equivalent"), before, POLICY).status is Status.MOVED  # became better


def test_a_fixture_that_diverged_before_is_judged_like_a_probe() -> None:
    before = Case(PROBE.outputs, "divergent")
    after = Case({**PROBE.outputs, "sample": nudged(8, row=1)}, "divergent")
    assert judge("ddim/a", before, after, POLICY).status is Status.DIVERGED
