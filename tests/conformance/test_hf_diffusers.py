"""HF diffusers as the implementation under test: its real differences are named, with the first step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conformance.compare import Verdict
from conformance.implementations import open_implementation
from conformance.library import open_library
from conformance.replay import CaseResult, Settings, replay


@pytest.fixture(scope="module")
def hf() -> Callable[[str], CaseResult]:
    pytest.importorskip("diffusers", reason="HF diffusers is an extra of the tests")
    implementation, library = open_implementation("diffusers"), open_library()

    def run(case: str) -> CaseResult:
        return replay(library.get(case), implementation, Settings())

    return run


@pytest.mark.parametrize(
    ("case", "output", "step", "cause"),
    [
        # 7 does not divide 1000: the original visits 8 times, from 994 on.
        ("ddim/ddim-uniform-7-eta-0.3", "timesteps", 0, "the original has (8,) [994, 852, 710"),
        ("ddim/ddim-quad-10-eta-1", "timesteps", 0, "900.0 instead of 800.0"),
        # One entry of the respaced grid is rounded the other way.
        ("improved-diffusion/ddpm-fixed-small-21", "timesteps", 10, "500.0 instead of 499.0"),
        # ᾱ is indexed by t, not t + 1.
        ("pndm/f-pndm-10", "step", 0, "ρ ="),
        # The log variance goes through a square root.
        ("ddpm/cifar-linear-learned-eps-40", "step", 0, "nan instead of"),
        # ε is not derived anew from the clipped x_0 of the right grid.
        ("improved-diffusion/ddim-fixed-large-7-eta-0.3", "step", 0, "ρ ="),
    ],
)
def test_divergent(hf: Callable[[str], CaseResult], case: str, output: str, step: int, cause: str) -> None:
    result = hf(case)

    assert result.verdict is Verdict.DIVERGENT
    assert result.first_divergence is not None
    assert (result.first_divergence.output, result.first_divergence.step) == (output, step)
    assert cause in result.first_divergence.detail


def test_float32_tables_are_seen_where_steps_still_agree(hf: Callable[[str], CaseResult]) -> None:
    result = hf("ddim/ddim-uniform-10-eta-0.3")

    found = {comparison.output: comparison.verdict for comparison in result.comparisons}
    assert found["betas"] is found["alphas_cumprod"] is Verdict.DIVERGENT
    assert found["step"] is found["sample"] is Verdict.EQUIVALENT
    assert found["step.f64"] is Verdict.DIVERGENT
    assert result.draws_match is True


def test_draws_that_it_does_not_make_are_seen(hf: Callable[[str], CaseResult]) -> None:
    assert hf("ddim/ddim-uniform-10-eta-0").draws_match is False


def test_what_it_lacks_is_unsupported(hf: Callable[[str], CaseResult]) -> None:
    for case, reason in (
        ("pndm/s-pndm-4", "no S-PNDM"),
        ("improved-diffusion/network-heads", "num_attention_heads"),
        ("ddpm/cifar-linear-fixedlarge-xprev-13", "previous sample"),
    ):
        result = hf(case)
        assert result.verdict is Verdict.UNSUPPORTED
        assert reason in result.message


def test_its_network_is_the_originals(hf: Callable[[str], CaseResult]) -> None:
    assert hf("ddim/network-tiny").verdict is Verdict.EQUIVALENT
