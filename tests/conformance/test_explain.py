"""Explaining: each known cause is planted as a fault, and exactly that cause is named, because its trial removes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
from planted import WithScheduler, planted
from typer.testing import CliRunner

import diffusers_ref.schedulers.betas
import diffusers_ref.schedulers.chain_scheduler
import diffusers_ref.schedulers.ddim
import diffusers_ref.schedulers.ddpm
import diffusers_ref.schedulers.pndm
from conformance.cli import app
from conformance.compare import Verdict
from conformance.explain import Explanation, explain
from conformance.explain.causes import CAUSES
from conformance.explain.trial import Finding
from conformance.implementations import open_implementation
from conformance.implementations.base import Implementation
from conformance.implementations.reference import ReferenceImplementation
from conformance.library import open_library
from conformance.replay import Settings

DDIM, DDPM, PNDM = diffusers_ref.schedulers.ddim, diffusers_ref.schedulers.ddpm, diffusers_ref.schedulers.pndm
DDIM_OPTIONS = (
    'convention_options = frozenset({"coefficients", "rederive_epsilon", "variance_type", "rescale_timesteps"})'
)
DDPM_OPTIONS = 'convention_options = frozenset({"coefficients", "rescale_timesteps"})'


@dataclass(frozen=True)
class Fault:
    """A replacement in a module, a case that sees it, the cause that must be named, and words of the statement."""

    name: str
    module: ModuleType
    case: str
    old: str
    new: str
    cause: str
    statement: str


def method(module: ModuleType, options: str, name: str, case: str, code: str, cause: str, statement: str) -> Fault:
    """A fault that is one more member of the scheduler's class."""
    return Fault(name, module, case, options, f"{options}\n    {code}", cause, statement)


FAULTS = [
    method(DDIM, DDIM_OPTIONS, "the network's time is t + 1", "ddim/ddim-uniform-2-eta-1",
           "network_timestep = lambda self, t: t + 1", "timestep off by one", "too large by 1"),
    method(DDIM, DDIM_OPTIONS, "the grid begins at 1", "ddim/ddim-uniform-2-eta-1",
           "_grid_rule = lambda self: (self._spacing, 1)", "timestep off by one", "every timestep is off by +1"),
    method(DDIM, DDIM_OPTIONS, "another spacing", "ddim/ddim-uniform-2-eta-1",
           '_grid_rule = lambda self: (type(self._spacing)("linspace"), 0)', "grid rule", "another rule"),
    method(DDPM, DDPM_OPTIONS, "the network's time is rounded down",
           "improved-diffusion/ddpm-learned-range-cosine-T-4000-50",
           "network_timestep = lambda self, t: int(t * 0.25)", "integer against fractional network time",
           "fractional, these are rounded down"),
    method(DDPM, DDPM_OPTIONS, "the network's time is not rescaled", "improved-diffusion/ddpm-fixed-large-T-40-all",
           "network_timestep = lambda self, t: float(t)", "integer against fractional network time",
           "the original gives its network t · 1000/T, this is t"),
    Fault("integer midpoints", PNDM, "pndm/f-pndm-linear-51-3", "middle=(t + t_next) / 2", "middle=(t + t_next) // 2",
          "integer against fractional network time", "rounded down"),
    method(DDPM, DDPM_OPTIONS, "a table shown in float32", "ddpm/cifar-linear-fixedsmall-eps-2",
           "alphas_cumprod = property(lambda self: self._table.alphas_cumprod.float())", "dtype of a table",
           "alphas_cumprod is float32, the original's float64"),
    Fault("a sum that cancels", DDIM, "ddim/ddim-uniform-2-eta-1",
          "(x - c.sqrt_one_minus_abar * epsilon) / c.sqrt_abar",
          "((x + 1e2) - c.sqrt_one_minus_abar * epsilon - 1e2) / c.sqrt_abar", "order of operations", "loses digits"),
    Fault("the clip left out", DDIM, "improved-diffusion/ddim-fixed-large-3-eta-0.3",
          "limited = limit_x0(x0, self.config)", "limited = x0", "clipping order", "x_0 is not clipped"),
    Fault("the clip left out of DDPM", DDPM, "ddpm/cifar-linear-fixedlarge-eps-7",
          "x0 = limit_x0(x0, self.config)", "pass", "clipping order", "x_0 is not clipped"),
    Fault("the noise of the unclipped x0", DDIM, "improved-diffusion/ddim-fixed-large-3-eta-0.3",
          "self._always_rederive = rederive_epsilon", "self._always_rederive = False", "clipping order",
          "ε is kept when x_0 is clipped"),
    Fault("the result clipped", DDIM, "improved-diffusion/ddim-fixed-large-3-eta-0.3",
          "result = SchedulerOutput(", "prev_sample = prev_sample.clamp(-1, 1)\n        result = SchedulerOutput(",
          "clipping order", "the result of the step is clipped too"),
    Fault("no noise", DDIM, "ddim/ddim-uniform-2-eta-1", "self._coefficients(dtype, float(eta))",
          "self._coefficients(dtype, 0.0)", "eta", "as with η = 0, not 1"),
    Fault("all noise", DDIM, "ddim/ddim-uniform-3-eta-0.3", "self._coefficients(dtype, float(eta))",
          "self._coefficients(dtype, 1.0)", "eta", "as with η = 1, not 0.3"),
    Fault("the last alpha is 1", DDIM, "latent-diffusion/ddim-scaled-linear-2-eta-0.4",
          "torch.cat([a[1:], self.final_alpha_cumprod.view(1)])", "torch.cat([a[1:], a.new_ones(1)])",
          "last alpha or sigma", "the ᾱ after the last step is 1, the original's ᾱ_0"),
    method(DDIM, DDIM_OPTIONS, "the last alpha as an attribute", "latent-diffusion/ddim-scaled-linear-2-eta-0.4",
           "final_alpha_cumprod = property(lambda self: torch.ones(()))", "last alpha or sigma",
           "the ᾱ after the last step is 1, the original's ᾱ_0"),
    Fault("noise for the images in another order", DDIM, "ddim/ddim-uniform-2-eta-1",
          "noise = self._noise(sample, generator, variance_noise, dtype)",
          "noise = self._noise(sample, generator, variance_noise, dtype)\n"
          "        noise = noise.flip(0) if variance_noise is None else noise", "RNG order", "in another order"),
    Fault("no draw without noise", DDIM, "ddim/ddim-uniform-2-eta-0",
          "noise = self._noise(sample, generator, variance_noise, dtype)", "noise = torch.zeros_like(sample)",
          "RNG order", "0 instead of 1 in 2 of 2 steps"),
    Fault("a second draw", DDIM, "ddim/ddim-uniform-2-eta-0",
          "x, output = sample.to(dtype), model_output.to(dtype)",
          "x, output = sample.to(dtype), model_output.to(dtype)\n"
          "        self._noise(sample, generator, variance_noise, dtype)", "RNG order", "2 instead of 1"),
    Fault("the alpha of the timestep before", DDIM, "ddim/ddim-uniform-3-eta-0",
          "a = self.alphas_cumprod[self._grid]", "a = self.alphas_cumprod[[max(t - 1, 0) for t in self._grid]]",
          "index offset", "one entry too early"),
    Fault("the alpha of the timestep itself", PNDM, "pndm/s-pndm-2", "[int(time) + 1 for time in times]",
          "[max(int(time), 0) for time in times]", "index offset", "one entry too early"),
    Fault("the previous step is t - T // n", DDPM, "ddim/ddpm-noisy-uniform-3",
          "a_prev = torch.cat([a[1:], a.new_ones(1)])",
          "a_prev = torch.cat([self.alphas_cumprod[[max(t - len(self) // len(a), 0) for t in self._grid[:-1]]]"
          ".to(dtype), a.new_ones(1)])", "previous timestep", "t − T // n"),
    Fault("the other fixed variance", DDPM, "ddpm/cifar-linear-fixedlarge-eps-2",
          "max_log if self._large_variance else min_log", "min_log if self._large_variance else max_log",
          "variance of the noise", "variance β̃_t, the original's β_t"),
]  # fmt: skip


def explained(case: str, implementation: Implementation | None = None) -> Explanation:
    return explain(open_library().get(case), implementation or ReferenceImplementation(), Settings())


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_the_cause_of_a_planted_fault_is_named_and_no_other(fault: Fault) -> None:
    found = explained(fault.case, WithScheduler(planted(fault.module, fault.old, fault.new)))

    assert found.result.verdict is Verdict.DIVERGENT
    assert set(found.causes) == {fault.cause}
    assert found.rivals == []
    assert found.hints[0].finding is Finding.CONFIRMED
    assert fault.statement in found.hints[0].statement
    assert found.hints[0].after * 100 <= found.hints[0].before


def test_every_cause_of_a_sampler_has_a_planted_fault() -> None:
    elsewhere = {"guidance order", "guidance scale"}  # of pipelines

    assert {fault.cause for fault in FAULTS} == {cause.name for cause in CAUSES} - elsewhere


@pytest.mark.parametrize("case", ["ddim/ddim-uniform-2-eta-1", "pndm/s-pndm-2", "ddim/network-pooling"])
def test_a_correct_implementation_gets_no_hint(case: str) -> None:
    found = explained(case)

    assert found.result.verdict.green
    assert (found.hints, found.trials, found.module, found.complete) == ([], 0, None, False)


@pytest.mark.parametrize(
    ("module", "case", "old", "new"),
    [
        (DDIM, "ddim/ddim-uniform-2-eta-0", "(x - c.sqrt_one_minus_abar", "(x + c.sqrt_one_minus_abar"),
        (DDIM, "ddim/ddim-uniform-2-eta-1", "sigma = eta * ((1 - a", "sigma = (1 + 1e-5) * eta * ((1 - a"),
        (PNDM, "pndm/s-pndm-4", "2: (2, (3, -1))", "2: (2, (3, 1))"),
    ],
)
def test_a_fault_that_is_no_known_cause_gets_no_hint(module: ModuleType, case: str, old: str, new: str) -> None:
    found = explained(case, WithScheduler(planted(module, old, new)))

    assert found.result.verdict is Verdict.DIVERGENT
    assert found.trials >= 10
    assert found.hints == []
    assert not found.complete


def test_a_table_made_by_another_recipe_is_named_where_the_fixture_holds_no_table() -> None:
    recipe = "alphas_cumprod = (1.0 - table).cumprod(dim=0)"
    faulty = planted(diffusers_ref.schedulers.betas, recipe, "alphas_cumprod = torch.from_numpy(exact)")

    with patch.object(diffusers_ref.schedulers.chain_scheduler, "NoiseTable", faulty.NoiseTable):
        found = explained("ddim/ddim-uniform-2-eta-1")

    assert found.causes == ["dtype of a table"]
    assert "the original makes its tables in float64 and rounded to float32 once" in found.hints[0].statement
    assert found.complete


def test_two_causes_are_found_one_after_the_other() -> None:
    faulty = planted(DDIM, "self._coefficients(dtype, float(eta))", "self._coefficients(dtype, 0.0)")
    faulty.DDIMScheduler.network_timestep = lambda self, t: t + 1

    found = explained("ddim/ddim-uniform-2-eta-1", WithScheduler(faulty))

    assert found.causes == ["timestep off by one", "eta"]
    assert found.complete
    assert found.final is not None
    assert [str(hint.then) for hint in found.hints] == ["step step 0", "None"]


def test_a_long_run_is_cut_where_it_is_tried() -> None:
    faulty = planted(DDIM, "self._coefficients(dtype, float(eta))", "self._coefficients(dtype, 1.0)")

    found = explained("ddim/ddim-uniform-13-eta-0.3", WithScheduler(faulty))
    with patch("conformance.explain.state.SHORT", 3):
        short = explained("ddim/ddim-uniform-13-eta-0.3", WithScheduler(faulty))

    assert (found.causes, found.rounds[0].calls) == (["eta"], None)
    assert (short.causes, short.rounds[0].calls) == (["eta"], 3)
    assert len(short.result.comparisons[0].observed) == 14  # what is reported is the whole run


def test_what_cannot_be_built_or_run_is_not_explained() -> None:
    class Broken(ReferenceImplementation):
        def scheduler(self, subject: object) -> None:
            raise RuntimeError("out of order")

    found = explained("ddim/ddim-uniform-2-eta-1", Broken())

    assert found.result.verdict is Verdict.ERROR
    assert (found.trials, found.causes) == (0, [])


def test_a_class_of_a_users_own_that_draws_itself() -> None:
    ports = Path(__file__).with_name("ported_schedulers.py")

    found = explained("ddpm/cifar-linear-fixedsmall-eps-2", open_implementation(f"{ports}:WithoutGenerator"))

    assert found.result.draws_match is False
    assert found.trials > 0
    assert found.hints == []  # no generator reaches its draws, so none of these trials can help


# --- HF diffusers: the real differences that README names ------------------------------------------------------------


@pytest.fixture(scope="module")
def hf() -> Implementation:
    pytest.importorskip("diffusers", reason="HF diffusers is an extra of the tests")
    return open_implementation("diffusers")


@pytest.mark.parametrize(
    ("case", "causes", "complete"),
    [
        ("ddim/ddim-uniform-2-eta-1", ["dtype of a table"], True),
        ("ddim/ddim-uniform-3-eta-0", ["grid rule", "dtype of a table", "RNG order"], True),
        ("improved-diffusion/ddim-fixed-large-3-eta-0.3", ["previous timestep"], False),
        ("pndm/f-pndm-10", ["index offset", "dtype of a table"], True),
    ],
)
def test_hf_diffusers(hf: Implementation, case: str, causes: list[str], complete: bool) -> None:
    found = explained(case, hf)

    assert (found.causes, found.rivals, found.complete) == (causes, [], complete)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def without_eta() -> Iterator[None]:
    faulty = planted(DDIM, "self._coefficients(dtype, float(eta))", "self._coefficients(dtype, 0.0)")
    with patch("conformance.implementations.open_implementation", lambda *named: WithScheduler(faulty)):
        yield


def test_the_command_prints_the_hint_and_what_was_tried(without_eta: None) -> None:
    result = CliRunner().invoke(app, ["explain", "ddim/ddim-uniform-2-eta-1"])

    assert result.exit_code == 1
    assert "first divergence: step at step 0 of 2 (network time 500)" in result.stdout
    assert " ulp\n" in result.stdout
    assert "hint: eta (confirmed)\n  the steps behave as with η = 0, not 1\n" in result.stdout
    assert "reproduced: the original's step η = 0 gives what this step gives to " in result.stdout
    assert "\ntried: " in result.stdout
    assert "dtype of a table" in result.stdout
    assert "left: " not in result.stdout


def test_the_command_writes_the_explanation_as_json(without_eta: None, tmp_path: Path) -> None:
    path = tmp_path / "explanation.json"

    result = CliRunner().invoke(app, ["explain", "ddim/ddim-uniform-2-eta-1", "--json", str(path)])
    data = json.loads(path.read_text(encoding="utf-8"))

    assert result.exit_code == 1
    assert (data["schema"], data["case"]["verdict"], data["complete"], data["rivals"]) == (1, "divergent", True, [])
    assert data["first_divergence"]["output"] == "step"
    assert [hint["cause"] for hint in data["hints"]] == ["eta"]
    assert data["hints"][0]["kind"] == "reproduction"
    assert data["hints"][0]["before"] > 0.01 > 1e-5 > data["hints"][0]["after"]
    assert set(data["tried"]) == {attempt["cause"] for turn in data["rounds"] for attempt in turn["attempts"]}
    assert {attempt["finding"] for turn in data["rounds"] for attempt in turn["attempts"]} >= {"confirmed", "refuted"}


def test_a_folder_that_is_missing_is_said_before_anything_runs() -> None:
    result = CliRunner().invoke(app, ["explain", "ddim/ddim-uniform-2-eta-1", "--json", "nowhere/at/all.json"])

    assert result.exit_code == 2
    assert "there is no such folder" in result.output


def test_no_hint_is_said_in_words() -> None:
    faulty = planted(DDIM, "(x - c.sqrt_one_minus_abar * epsilon)", "(x + c.sqrt_one_minus_abar * epsilon)")
    with patch("conformance.implementations.open_implementation", lambda *named: WithScheduler(faulty)):
        result = CliRunner().invoke(app, ["explain", "ddim/ddim-uniform-2-eta-0"])

    assert "hint: none; no known cause removes the divergence" in result.stdout
