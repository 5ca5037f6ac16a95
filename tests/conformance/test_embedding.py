"""The embedding of the times: compared as an output of its own, and given to the network behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch

from conformance.compare import FLOAT64, Verdict
from conformance.fixture import Fixture, Subject
from conformance.implementations.reference import ReferenceImplementation
from conformance.library import open_library
from conformance.replay import CaseResult, Settings, replay
from conformance.replay.embedding import OWN_EMBEDDING, recorded_embedding
from diffusers_ref.models.embeddings import Timesteps

NETWORK, PIPELINE = "ddim/network-tiny", "ddim/pipeline-ddim-7-eta-0.5"
OWN = Timesteps.forward


def run(
    case: str | Fixture, implementation: ReferenceImplementation | None = None, dtype: str = "float32"
) -> CaseResult:
    found = open_library().get(case) if isinstance(case, str) else case
    return replay(found, implementation or ReferenceImplementation(), Settings.of("cpu", dtype))


@cache
def plain(case: str) -> CaseResult:
    return run(case)


def embedding(forward: Callable[[Timesteps, torch.Tensor], torch.Tensor]) -> Any:
    """diffusers_ref with another embedding of the times."""
    return patch.object(Timesteps, "forward", forward)


def verdicts(result: CaseResult) -> dict[str, Verdict]:
    return {comparison.output: comparison.verdict for comparison in result.comparisons}


# --- given -----------------------------------------------------------------------------------------------------------


def test_a_module_answers_with_the_table_and_keeps_its_own_answers() -> None:
    module, table = torch.nn.Identity(), torch.arange(6.0).reshape(3, 1, 2)
    x = torch.full((4, 2), 9.0)

    with recorded_embedding(module, table) as own:
        assert [module(x).tolist() for _ in range(3)] == [[row] * 4 for row in ([0.0, 1.0], [2.0, 3.0], [4.0, 5.0])]
        assert torch.equal(module(x), x)  # a call more than the original made

    assert torch.equal(module(x), x)
    assert [torch.equal(answer, x) for answer in own] == [True] * 4


def test_an_answer_keeps_its_dtype_and_another_width_is_left_alone() -> None:
    module, table = torch.nn.Identity(), torch.full((2, 1, 2), 0.1)

    with recorded_embedding(module, table):
        assert module(torch.zeros(1, 2, dtype=torch.float16)).dtype == torch.float16
        assert torch.equal(module(torch.zeros(1, 3)), torch.zeros(1, 3))


def test_without_a_module_nothing_is_given() -> None:
    with recorded_embedding(None, torch.zeros(1, 1, 2)) as own:
        pass

    assert own == []


# --- compared --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [NETWORK, PIPELINE])
def test_another_order_of_operations_is_equivalent_and_the_network_behind_it_is_not_touched(case: str) -> None:
    def through_powers(self: Timesteps, timesteps: torch.Tensor) -> torch.Tensor:
        half = self.dim // 2
        frequencies = 1 / 10_000 ** (torch.arange(half) / (half - 1))
        angles = timesteps.float()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    with embedding(through_powers):
        result = run(case)

    found = verdicts(result)
    assert found["embedding"] is result.verdict is Verdict.EQUIVALENT, result.message
    for comparison, untouched in zip(result.comparisons[1:], plain(case).comparisons[1:], strict=True):
        assert comparison == untouched
        assert comparison.observed is not None
        assert untouched.observed is not None
        assert torch.equal(comparison.observed, untouched.observed)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (NETWORK, lambda self, t: OWN(self, t).flip(1)),
        (NETWORK, lambda self, t: OWN(self, t.to(torch.bfloat16))),
        (NETWORK, lambda self, t: OWN(self, t + 1e-6 * t)),
        (PIPELINE, lambda self, t: OWN(self, t + 1e-6 * t)),
    ],
    ids=["cos before sin", "times in bfloat16", "late by 1e-6", "late by 1e-6 in a pipeline"],
)
def test_a_wrong_embedding_is_named_and_nothing_else(case: str, wrong: Any) -> None:
    with embedding(wrong):
        result = run(case)

    assert result.verdict is Verdict.DIVERGENT
    assert [c.output for c in result.comparisons if not c.verdict.green] == ["embedding"]
    assert result.first_divergence is not None
    assert result.first_divergence.step == (None if case == NETWORK else 0)


def test_what_was_computed_is_kept() -> None:
    for case in (NETWORK, PIPELINE):
        comparison = plain(case).comparisons[0]

        assert comparison.output == "embedding"
        assert comparison.observed is not None
        table = open_library().get(case).tensors["embedding"]
        observed = comparison.observed if case == NETWORK else comparison.observed[:, 0]
        assert observed.dtype == torch.float32
        assert torch.allclose(observed, table, rtol=0, atol=3e-4)


def test_another_number_of_calls_is_divergent() -> None:
    result = run(PIPELINE, OtherSteps())

    found = {comparison.output: comparison.detail for comparison in result.comparisons}
    assert found["embedding"] == "shape (5, 2, 64), the original's is (8, 2, 64)"


class OtherSteps(ReferenceImplementation):
    def call_options(self, subject: Subject) -> dict[str, Any]:
        return {**super().call_options(subject), "num_inference_steps": 5}


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_times_stay_float32(dtype: str) -> None:
    kind = getattr(torch, dtype)
    assert run(NETWORK, dtype=dtype).verdict is Verdict.EQUIVALENT
    with embedding(lambda self, t: OWN(self, t).to(kind)):
        assert run(NETWORK, dtype=dtype).verdict is Verdict.EQUIVALENT  # rounded after: the type's own rounding
    with embedding(lambda self, t: OWN(self, (t / 1000).to(kind).float() * 1000)):
        result = run(NETWORK, dtype=dtype)

    assert [c.output for c in result.comparisons if not c.verdict.green] == ["embedding"]


def test_a_float64_run_compares_the_embedding_and_is_not_bitwise() -> None:
    for case in (NETWORK, PIPELINE):
        result = run(case, dtype="float64")

        assert verdicts(result)["embedding"] is result.verdict is Verdict.EQUIVALENT


def test_a_network_of_which_only_sketches_are_stored_is_not_bitwise() -> None:
    case = open_library().get(NETWORK)
    sketches = {name: tensor for name, tensor in case.tensors.items() if not name.startswith("sample")}

    assert run(Fixture(case.manifest, case.path, sketches)).verdict is Verdict.EQUIVALENT


# --- a network that names no such module -----------------------------------------------------------------------------


class Nameless(ReferenceImplementation):
    def embedding_module(self, network: torch.nn.Module | None) -> None:
        return None


@pytest.mark.parametrize("case", [NETWORK, PIPELINE])
def test_without_a_module_a_divergence_says_what_was_used(case: str) -> None:
    with embedding(lambda self, t: OWN(self, t + 1e-3)):
        result = run(case, Nameless())

    assert "embedding" not in verdicts(result)
    assert result.verdict is Verdict.DIVERGENT
    assert result.message.count(OWN_EMBEDDING) == 1


# --- what it is for --------------------------------------------------------------------------------------------------


@cache
def stored() -> list[Fixture]:
    library = open_library()
    found = [library.get(name) for name in library.ids() if "/network-" in name or "/pipeline-" in name]
    # Not score SDE's, which are given Fourier features of log σ, with frequencies up to 2π · 50, or the times of a
    # sampler that amplifies rounding: what is said here is about sinusoidal embeddings of timesteps.
    return [f for f in found if f.manifest.tier == "default" and not f.id.startswith("score-sde/")]


def test_floors_hold_the_rounding_of_the_network_alone() -> None:
    """With times moved by one ulp they were up to 4e-5."""
    assert len(stored()) >= 21
    for fixture in stored():
        for output in fixture.manifest.outputs:
            bound = 1e-4 if output.name == "embedding" else 5e-6
            assert output.noise_floor <= bound, (fixture.id, output.name)


def test_the_stored_embedding_is_one_row_a_time_near_the_exact_one() -> None:
    for fixture in stored():
        table, exact = fixture.tensors["embedding"], fixture.tensors["embedding" + FLOAT64]
        assert (table.dtype, exact.dtype) == (torch.float32, torch.float64)
        assert len(table) == len(fixture.tensors["times"]) == len(fixture.tensors["embedding.floor"])
        largest = float(fixture.tensors["times"].abs().max())
        assert float((table - exact).abs().max()) <= 2**-23 * max(largest, 1)
        assert math.isclose(float(exact.square().sum()), table.numel() / 2, rel_tol=1e-12)
