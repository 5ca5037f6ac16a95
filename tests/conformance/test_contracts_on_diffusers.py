"""Defects of a published library that its users reported, each found by the contract that is about it."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.contracts.contract import Profile
from conformance.contracts.result import Status
from conformance.contracts.scheduler import grid, lifecycle, randomness, starts, tensors
from conformance.contracts.scheduler.driver import SchedulerUnderTest

diffusers = pytest.importorskip("diffusers")
CONTRACTS = {
    contract.name: contract
    for module in (lifecycle, grid, starts, tensors, randomness)
    for contract in module.CONTRACTS
}

REPORTED: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("13243", "full_grid_is_that_of_training", "FlowMatchEulerDiscreteScheduler", {},
     "visit 1000 to 8.92857 instead of 1000 to 2.99401"),
    ("14411", "any_step_count_runs_or_is_refused", "FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1},
     "IndexError: index 0 is out of bounds"),
    ("10003", "longest_runs_end", "DDIMScheduler", {"steps_offset": 1}, "IndexError: index 1000 is out of bounds"),
    ("10003", "any_step_count_runs_or_is_refused", "DDIMScheduler", {}, "IndexError: index 40 is out of bounds"),
    ("9616", "draws_do_not_depend_on_options", "EulerDiscreteScheduler", {}, "amount of noise for s_churn=0"),
    ("9090", "each_step_is_one_evaluation", "PNDMScheduler", {"skip_prk_steps": True}, "4 steps of order 1 are 5"),
    ("tenstorrent/tt-metal#8196", "any_step_count_runs_or_is_refused", "PNDMScheduler", {}, "not say what is wrong"),
    ("3116", "start_within_a_step_is_refused_or_right", "HeunDiscreteScheduler", {}, "beginning at entry 1 of 19"),
    ("3005", "half_precision_keeps_the_levels", "DDIMScheduler", {}, "the level of the noise at timestep 0"),
    ("5687", "timesteps_differ", "DPMSolverMultistepScheduler", {}, "is visited twice"),
    ("not reported", "second_run_equals_first", "DPMSolverSinglestepScheduler", {}, "the second run"),
    ("not reported", "interruptions_leave_no_trace", "FlowMatchHeunDiscreteScheduler", {}, "with `add_noise` before"),
    ("not reported", "explicit_timesteps_are_honoured", "FlowMatchEulerDiscreteScheduler", {},
     "the run over the default timesteps, given explicitly"),
    ("not reported", "longest_runs_end", "DPMSolverMultistepScheduler", {}, "elements NaN or infinite"),
]  # fmt: skip
"""Issue, contract, class, its options, what the reason says."""


@pytest.mark.parametrize(
    ("name", "cls", "options", "reason"),
    [pytest.param(*row[1:], id=f"{row[0]}-{row[2]}-{row[1]}") for row in REPORTED],
)
def test_a_reported_defect_is_found_by_name(name: str, cls: str, options: dict[str, Any], reason: str) -> None:
    made = getattr(diffusers, cls)(**options)
    result = CONTRACTS[name].hold(SchedulerUnderTest(made), Profile(shrink=False))
    assert result.status is Status.FAILED
    assert reason in result.reason
