"""Contracts of options, configurations and inputs: each sees the fault that it is for, and known bugs."""

from __future__ import annotations

from itertools import combinations

from conformance.contracts.result import Status
from conformance.contracts.scheduler import choices, configuration, inputs, results
from conformance.contracts.scheduler.cover import pairs_of, pairwise
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from diffusers_ref import DDIMScheduler

CONTRACTS = {c.name: c for module in (choices, configuration, inputs, results) for c in module.CONTRACTS}


def test_a_cover_holds_every_pair_of_values_in_few_configurations() -> None:
    options = {"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 1), "d": (False, True)}
    rows = pairwise(options, lambda config: False)
    pairs = {
        ((p, i), (q, j)) for (p, first), (q, second) in combinations(options.items(), 2) for i in first for j in second
    }
    assert set().union(*map(pairs_of, rows)) == pairs
    assert 9 <= len(rows) <= 12


def test_a_cover_leaves_out_what_is_excluded() -> None:
    rows = pairwise({"a": (0, 1), "b": (0, 1), "c": (0, 1)}, lambda config: config.get("a") == config.get("b") == 1)
    assert not [row for row in rows if row["a"] == row["b"] == 1]
    assert {(row["a"], row["c"]) for row in rows} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_refused_pair_is_tried_in_other_company() -> None:
    class Picky(DDIMScheduler):
        """Breaks with thresholding and v_prediction, which it refuses with every beta_schedule but one."""

        def __init__(
            self, thresholding: bool = False, prediction_type: str = "epsilon", beta_schedule: str = "linear"
        ) -> None:
            super().__init__(thresholding=thresholding, prediction_type=prediction_type, beta_schedule=beta_schedule)

        def set_timesteps(self, *arguments: object, **options: object) -> None:
            if self.config.prediction_type == "v_prediction" and self.config.thresholding:
                if self.config.beta_schedule != "scaled_linear":
                    raise ValueError("refused")
                raise IndexError("broken")
            super().set_timesteps(*arguments, **options)

    result = CONTRACTS["option_pairs_run_or_are_refused"].hold(SchedulerUnderTest(Picky))
    assert result.status is Status.FAILED
    assert "IndexError: broken" in result.reason


def test_a_refusal_that_blames_another_option_is_seen() -> None:
    class Accuser(DDIMScheduler):
        def __init__(self, timestep_spacing: str = "leading") -> None:
            if timestep_spacing not in ("leading", "linspace", "trailing"):
                raise ValueError(f"beta_schedule={timestep_spacing!r} is not known")
            super().__init__(timestep_spacing=timestep_spacing)

    result = CONTRACTS["unknown_values_are_refused"].hold(SchedulerUnderTest(Accuser))
    assert result.status is Status.FAILED
    assert "timestep_spacing: the message does not say what is wrong: beta_schedule='no-such-value'" in result.reason
