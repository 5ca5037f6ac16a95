"""What the contracts of the mathematics stand on: steps taken apart, formulas computed again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from conformance.contracts.result import Status
from conformance.contracts.scheduler import landing
from conformance.contracts.scheduler.driver import SchedulerUnderTest
from conformance.contracts.scheduler.formulas import beta_tables, grids, zero_terminal_snr
from conformance.contracts.scheduler.probes import measure_steps
from conformance.contracts.scheduler.support import noise
from diffusers_ref import DDIMScheduler, DDPMScheduler, KarrasVeScheduler


def test_a_deterministic_step_is_made_of_signal_and_kept_noise() -> None:
    subject = SchedulerUnderTest(DDIMScheduler)
    first = measure_steps(subject, subject.prepared(10))[0]
    abar = DDIMScheduler().alphas_cumprod[800].item()
    assert first.signal == pytest.approx(math.sqrt(abar), abs=1e-5)
    assert first.kept == pytest.approx(math.sqrt(1 - abar), abs=1e-5)
    assert first.fresh == pytest.approx(0, abs=1e-12)
    assert first.exact


def test_a_random_step_is_taken_apart_exactly_where_its_draw_is_known() -> None:
    subject = SchedulerUnderTest(DDPMScheduler)
    first = measure_steps(subject, subject.prepared(10))[0]
    abar, abar_next = DDPMScheduler().alphas_cumprod[[900, 800]].tolist()
    posterior = (1 - abar / abar_next) * (1 - abar_next) / (1 - abar)
    assert first.exact
    assert first.fresh == pytest.approx(math.sqrt(posterior), abs=1e-5)
    assert math.hypot(first.kept, first.fresh) == pytest.approx(math.sqrt(1 - abar_next), abs=1e-5)


def test_an_unknown_draw_is_estimated() -> None:
    class OwnSource(DDPMScheduler):
        def _noise(self, sample: torch.Tensor, *others: object) -> torch.Tensor:
            return torch.randn(sample.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    subject = SchedulerUnderTest(OwnSource)
    first = measure_steps(subject, subject.prepared(10))[0]
    assert not first.exact
    assert first.noise == pytest.approx(first.end[1] if first.end else 0, abs=first.allowed_noise)


class LouderChurn(KarrasVeScheduler):
    def add_noise_to_input(self, sample: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return sample + 1.1 * (super().add_noise_to_input(sample, *arguments, **options) - sample)


def test_churn_raises_the_level_at_which_the_network_is_asked() -> None:
    subject = SchedulerUnderTest(KarrasVeScheduler(s_noise=1.0))
    scheduler = subject.prepared(10)
    second, third = scheduler.timesteps[1:3]
    assert subject.asked(scheduler, third) == pytest.approx((1, math.sqrt(2) * float(scheduler.sigmas[1])))
    scheduler.set_begin_index(0)
    x = scheduler.add_noise_to_input(noise(0), scheduler.timesteps[0])
    scheduler.step(x, scheduler.timesteps[0], x)
    assert subject.asked(scheduler, second) == subject.levels(scheduler, second)  # within a step, nothing is added


def test_steps_after_churn_land_on_their_levels_if_the_network_is_told_the_noise() -> None:
    contract = next(each for each in landing.CONTRACTS if each.name == "steps_land_on_their_levels")
    assert contract.hold(SchedulerUnderTest(KarrasVeScheduler)).status is Status.PASSED
    failed = contract.hold(SchedulerUnderTest(LouderChurn))
    assert failed.status is Status.FAILED
    assert "but the next timestep has" in failed.reason


def test_zero_terminal_snr_keeps_the_first_and_empties_the_last() -> None:
    abar = np.array([0.81, 0.49, 0.09])
    assert zero_terminal_snr(abar) == pytest.approx([0.81, (0.4 * 0.9 / 0.6) ** 2, 0.0])


def test_formulas_of_betas() -> None:
    tables = beta_tables(0.1, 0.4, 4)
    assert tables["linear"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert tables["jsd"] == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])
    assert tables["warmup50"] == pytest.approx([0.1, 0.4, 0.4, 0.4])
    assert tables["scaled_linear"][[0, -1]] == pytest.approx([0.1, 0.4])
    assert tables["squaredcos_cap_v2"][-1] == 0.999


def test_published_grids_of_ten_training_timesteps() -> None:
    assert [grid.tolist() for grid in grids("leading", 10, 3, 1)] == [[7, 4, 1], [7, 5, 3]]
    assert grids("linspace", 10, 4, 0)[0].tolist() == [9, 6, 3, 0]
    assert grids("trailing", 10, 5, 0)[0].tolist() == [9, 7, 5, 3, 1]
