"""Pseudo numerical methods, computed again: the formulas that contracts compare with, and what they see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conformance.contracts.result import Status
from conformance.contracts.scheduler import inputs, multistep, results
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from conformance.contracts.scheduler.pseudo_numerical import evaluations
from diffusers_ref import PNDMScheduler
from diffusers_ref.schedulers.scheduler import SchedulerOutput

CONTRACTS = {c.name: c for module in (inputs, multistep, results) for c in module.CONTRACTS}
GRID = [800, 600, 400, 200, 0]


def times(method: str, grid: list[int], half_stride: int | None = None) -> list[float]:
    return [evaluation.time for evaluation in evaluations(grid, method, half_stride)]


def test_the_published_methods_evaluate_four_times_twice_and_once() -> None:
    assert times("prk", GRID) == [800, 700, 700, 600, 600, 500, 500, 400, 400, 300, 300, 200, 200, 0]
    assert times("plms", GRID) == [800, 600, 600, 400, 200, 0]
    assert times("prk", [33, 0], half_stride=8) == [33, 8, 8, 0, 0]
    assert times("plms", [33]) == [33]


def test_the_original_methods_go_on_to_the_end() -> None:
    assert times("f_pndm", [7, 0]) == [7, 3.5, 3.5, 0, 0, -0.5, -0.5, -1]
    assert times("s_pndm", [7]) == [7, -1]
    assert times("compvis", [7]) == [7, 7]


@pytest.mark.parametrize("method", ["prk", "plms", "f_pndm", "s_pndm", "compvis"])
def test_weights_are_those_of_a_mean_and_the_order_grows(method: str) -> None:
    course = evaluations(GRID, method, None)
    assert [sum(evaluation.weights.values()) for evaluation in course] == pytest.approx([1] * len(course))
    assert len(course[-1].weights) == (2 if method == "s_pndm" else 4)


@pytest.mark.parametrize("skip_prk_steps", [False, True])
def test_hf_diffusers_computes_the_same_where_its_steps_are_even(
    skip_prk_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusers = pytest.importorskip("diffusers", reason="HF diffusers is an extra of the tests")
    even = {"steps": (5, 10, 25) if skip_prk_steps else (7, 12), "timestep_spacing": ("leading",)}
    cases = {**multistep.CASES, **even, "skip_prk_steps": (skip_prk_steps,), "prediction_type": ("epsilon",)}
    monkeypatch.setattr(multistep, "CASES", cases)
    result = CONTRACTS["outputs_combine_as_the_equations_say"].hold(SchedulerUnderTest(diffusers.PNDMScheduler))
    assert result.status is Status.PASSED, result


def test_velocities_that_hf_diffusers_averages_as_if_they_were_noise_are_seen() -> None:
    diffusers = pytest.importorskip("diffusers", reason="HF diffusers is an extra of the tests")
    result = CONTRACTS["outputs_combine_as_the_equations_say"].hold(SchedulerUnderTest(diffusers.PNDMScheduler))
    assert result.status is Status.FAILED
    assert "'prediction_type': 'v_prediction'" in result.example


class NoReport(PNDMScheduler):
    def step(self, *arguments: Any, **options: Any) -> Any:
        return SchedulerOutput(super().step(*arguments, **options).prev_sample)


class WideReport(PNDMScheduler):
    def step(self, *arguments: Any, **options: Any) -> Any:
        result = super().step(*arguments, **options)
        x0 = result.pred_original_sample
        return SchedulerOutput(result.prev_sample, None if x0 is None else x0.double())


class WholeTimes(PNDMScheduler):
    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        if self.config.solver == "s_pndm":
            self.timesteps = self.timesteps.long()


class NoRoomChecked(PNDMScheduler):
    def _list_evaluations(self, grid: list[int], explicit: bool) -> Any:
        beyond = self._shifted and grid[0] == len(self) - 1
        return super()._list_evaluations([grid[0] - 1, *grid[1:]] if beyond else grid, explicit)


class AnyNoise(PNDMScheduler):
    def _noise(self, sample: torch.Tensor, *others: Any) -> torch.Tensor:
        return torch.zeros_like(sample)


class CoarseCoefficients(PNDMScheduler):
    """Computes the coefficients "float64" in the precision of the sample."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        result = super().step(model_output, timestep, sample, **options)
        if self.config.coefficients == "float64" and sample.dtype is torch.float32:
            result = SchedulerOutput(result.prev_sample * (1 + 2**-18), result.pred_original_sample)
        return result


@pytest.mark.parametrize(
    ("broken", "name", "words"),
    [
        (NoReport, "outputs_combine_as_the_equations_say", "the x_0 that PLMS goes through is not reported"),
        (CoarseCoefficients, "outputs_combine_as_the_equations_say", "the sample: "),
        (WholeTimes, "evaluations_are_those_of_the_method", "whole numbers"),
        (NoRoomChecked, "evaluations_are_those_of_the_method", "is accepted at its end"),
        (WideReport, "reported_x0_has_the_form_of_the_sample", "has the dtype torch.float64"),
        (AnyNoise, "unusable_noise_settings_are_refused", "variance_noise of a batch of one is accepted"),
    ],
)
def test_further_faults_are_seen(broken: type, name: str, words: str) -> None:
    result = CONTRACTS[name].hold(SchedulerUnderTest(broken))
    assert result.status is Status.FAILED
    assert words in result.reason
