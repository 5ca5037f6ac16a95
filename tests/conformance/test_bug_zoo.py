"""The bug zoo: divergences that public threads report (and some more), each caught by a contract's name or a fixture.

d# is github.com/huggingface/diffusers. `live`: HF diffusers 0.42.1 as it is. `planted`: the fault is put back, into HF
diffusers or into a class of ours. Where a quirk is the original's own, the exhibit says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import zoo_specimens as specimens

import diffusers_ref
from conformance.contracts.checks import contracts_for
from conformance.contracts.contract import Profile
from conformance.contracts.result import CheckResult, Status
from conformance.implementations import open_implementation
from conformance.library import open_library
from conformance.replay import Settings, replay
from diffusers_ref import ConfigError

LIVE, PLANTED = "live", "planted"


@dataclass(frozen=True)
class Exhibit:
    """A thread's symptom, the specimen that has it, the contract that catches it, and what the contract says."""

    threads: str
    symptom: str
    state: str
    specimen: Callable[[], Any]
    contract: str
    says: str


@dataclass(frozen=True)
class Named:
    """A scheduler class as a library has it: the class, or an object with these options."""

    name: str
    config: dict[str, Any]

    def of(self, library: Any) -> Any:
        cls = getattr(library, self.name)
        return cls(**self.config) if self.config else cls

    def __call__(self) -> Any:
        return self.of(diffusers)


def hf(name: str, **config: Any) -> Named:
    return Named(name, config)


EXHIBITS = [
    Exhibit("d14569", "DDPM fixed_large_log gives NaN", LIVE,
            hf("DDPMScheduler"), "option_pairs_run_or_are_refused",
            r"variance_type='fixed_large_log' .*NaN or infinite"),
    Exhibit("d14213", "NaN with squaredcos_cap_v2", LIVE,
            hf("EulerAncestralDiscreteScheduler", beta_schedule="squaredcos_cap_v2"),
            "option_pairs_run_or_are_refused", "NaN or infinite"),
    Exhibit("d14213", "NaN with squaredcos_cap_v2", LIVE,
            hf("KDPM2AncestralDiscreteScheduler", beta_schedule="squaredcos_cap_v2"), "runs_as_it_is",
            "NaN or infinite"),
    Exhibit("d13243", "the shift is applied twice", LIVE,
            hf("FlowMatchEulerDiscreteScheduler", shift=3.0), "full_grid_is_that_of_training",
            "1000 to 8.9.* instead of 1000 to 2.99"),
    Exhibit("d11347, d12633, d9261", "the previous timestep is t - T//n instead of the next of the list", LIVE,
            hf("DDIMScheduler", timestep_spacing="trailing"), "steps_land_on_their_levels",
            "after evaluation 0 .* but the next timestep has"),
    Exhibit("d11347, d12633, d9261", "the previous timestep is t - T//n instead of the next of the list", LIVE,
            hf("DDIMScheduler", timestep_spacing="linspace"), "steps_land_on_their_levels",
            "after evaluation 0 .* but the next timestep has"),
    Exhibit("d14411", "a single step divides by zero", LIVE,
            hf("FlowMatchEulerDiscreteScheduler", shift_terminal=0.1), "any_step_count_runs_or_is_refused",
            "IndexError|NaN or infinite"),
    Exhibit("d13778", "sde-dpmsolver of order 3 crashes", LIVE,
            hf("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver", solver_order=3,
               final_sigmas_type="sigma_min"), "runs_as_it_is", "UnboundLocalError"),
    Exhibit("d5687, d5746", "image-to-image starts one step late where timesteps repeat", LIVE,
            hf("DPMSolverMultistepScheduler", use_exponential_sigmas=True), "start_is_found_by_its_timestep",
            "beginning by the timestep 0, the step of entry"),
    Exhibit("d10003", "1000 steps: IndexError; CompVis' own code has it, too", LIVE,
            hf("DDIMScheduler", steps_offset=1), "longest_runs_end", "IndexError: index 1000"),
    Exhibit("d6068", "set_alpha_to_one=False is inherited from another class's file", LIVE,
            hf("DDIMScheduler"), "borrowed_config_brings_only_choices",
            "made from the file of .* instead of"),
    Exhibit("d9616", "noise is drawn only if gamma > 0", LIVE,
            hf("EulerDiscreteScheduler"), "draws_do_not_depend_on_options", "another amount of noise for s_churn=0"),
    Exhibit("d9090, d7217", "one timestep is doubled: n + 1 evaluations; PLMS' own warm-up", LIVE,
            hf("PNDMScheduler", skip_prk_steps=True), "each_step_is_one_evaluation",
            "are 5 evaluations instead of 4; visited more than once"),
    Exhibit("tt-metal#8196", "fewer than 4 steps: unclear ValueError", LIVE,
            hf("PNDMScheduler"), "any_step_count_runs_or_is_refused", "does not say what is wrong"),
    Exhibit("d4986, d5158", "add_noise rewritten: image-to-image broke", PLANTED,
            specimens.euler_that_adds_noise_by_training_timestep, "steps_land_on_their_levels", "after evaluation 0"),
    Exhibit("d5433, d5689, d6295, d6477", "the last sigma is repeated instead of 0", PLANTED,
            lambda: specimens.DpmSolverWithARepeatedLastSigma, "runs_end_at_the_data", "at most 0 can be left"),
    Exhibit("d1512", "Heun uses sigma_hat where sigma_next is due, with v_prediction only", PLANTED,
            specimens.heun_with_the_first_sigma_in_both_stages, "prediction_types_agree", "'v_prediction'"),
    Exhibit("d590", "a square is missing in the schedule of Karras VE", PLANTED,
            lambda: specimens.KarrasVe(squared=False), "starts_on_the_first_level", "init_noise_sigma is 100"),
    Exhibit("d3005", "the tables are cast to half precision for good", PLANTED,
            lambda: specimens.TablesCastForGood, "tables_are_constant", "alphas_cumprod.*torch.float16"),
    Exhibit("d6631, d8711, d4875, d5178", "the history of one run is kept for the next", PLANTED,
            specimens.dpm_solver_that_keeps_its_history, "second_run_equals_first", "the second run"),
    Exhibit("d13678", "the generator is ignored", PLANTED,
            specimens.flow_matching_that_ignores_the_generator, "same_seed_gives_the_same_result",
            "another global random state"),
    Exhibit("d14013, d14461", "custom timesteps are silently dropped", PLANTED,
            lambda: specimens.DdpmThatDropsCustomTimesteps, "explicit_timesteps_are_honoured", "the list given"),
    Exhibit("d9405", "the network's time is rounded to the dtype of the images", PLANTED,
            specimens.TimesInTheDtypeOfImages.tiny, "network_times_are_not_rounded", ""),
    Exhibit("d4055, d2659, d6222, d6233", "an image depends on the batch that it is in", PLANTED,
            lambda: specimens.OneGeneratorForTheWholeBatch, "batch_equals_singles", "sample 0 of a batch"),
    Exhibit("d671, d701, d6753, d6921, d6923", "weights that the network does not use are ignored", LIVE,
            lambda: specimens.tiny_hf_unet(), "unused_weights_raise", "accepts an unknown"),
    Exhibit("d671, d701, d6753, d6921, d6923", "weights that are missing stay at random values", LIVE,
            lambda: specimens.tiny_hf_unet(), "missing_weights_raise", "missing from the file"),
    Exhibit("d12508, d8673, d12294", "the attention mask is not applied", PLANTED,
            specimens.MaskDropped, "attention_masks_matter", ""),
    Exhibit("d12508, d8673, d12294", "the attention mask is applied at the wrong place", PLANTED,
            specimens.MaskOnTheTokens, "masked_tokens_do_not_matter", ""),
    Exhibit("d1607, d3199, d3213", "code comes with a folder and runs unasked", PLANTED,
            specimens.RunsWhatItFinds.tiny, "foreign_code_needs_consent", ""),
    Exhibit("d3116, d3128, d1866, d10738", "image-to-image begins inside a step of two evaluations", LIVE,
            hf("HeunDiscreteScheduler"), "start_within_a_step_is_refused_or_right", "beginning at entry 1"),
    Exhibit("d3005", "add_noise in half precision has no noise at t = 0", LIVE,
            hf("DDIMScheduler"), "half_precision_keeps_the_levels", "the level of the noise at timestep 0"),
    Exhibit("no thread", "set_timesteps changes the configuration for good", LIVE,
            hf("DPMSolverSinglestepScheduler", solver_order=3), "second_run_equals_first", "the second run"),
    Exhibit("no thread", "add_noise moves the place in the list of timesteps", LIVE,
            hf("FlowMatchHeunDiscreteScheduler"), "interruptions_leave_no_trace", "with `add_noise` before"),
    Exhibit("no thread", "explicit timesteps are shifted again", LIVE,
            hf("FlowMatchEulerDiscreteScheduler"), "explicit_timesteps_are_honoured",
            "the run over the default timesteps, given explicitly"),
    Exhibit("no thread", "a repeated timestep gives NaN", LIVE,
            hf("DPMSolverMultistepScheduler"), "longest_runs_end", "NaN or infinite"),
]  # fmt: skip


def hold(subject: Any, name: str) -> CheckResult:
    made, contracts = contracts_for(subject)
    return next(contract for contract in contracts if contract.name == name).hold(made, Profile(shrink=False))


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda e: f"{e.threads.split(',')[0]}-{e.contract}")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_exhibit_is_caught_by_name(exhibit: Exhibit) -> None:
    result = hold(exhibit.specimen(), exhibit.contract)

    assert result.status is Status.FAILED, f"{exhibit.threads}, {exhibit.symptom}: {result.status} {result.reason}"
    assert re.search(exhibit.says, result.reason), result.reason


@pytest.mark.parametrize(
    "exhibit",
    [e for e in EXHIBITS if isinstance(e.specimen, Named) and e.state == LIVE],
    ids=lambda e: f"{e.threads.split(',')[0]}-{e.contract}",
)
def test_our_class_does_not_have_the_fault(exhibit: Exhibit) -> None:
    assert isinstance(exhibit.specimen, Named)
    name = exhibit.specimen.name
    result = hold(exhibit.specimen.of(diffusers_ref), exhibit.contract)

    quirk = open_implementation().quirks.get(f"contract/{name}/{exhibit.contract}")
    if quirk is None:
        assert result.status is Status.PASSED, result.reason
    else:
        assert result.status is Status.FAILED


def test_a_step_count_that_does_not_divide_t_is_caught_by_a_fixture() -> None:
    """No thread: the original visits 8 timesteps for n = 7 and T = 1000, from 994 on; the port 7, from 852 on."""
    fixture = open_library().get("ddim/ddim-uniform-7-eta-0")

    result = replay(fixture, open_implementation("diffusers"), Settings())

    assert result.first_divergence is not None
    assert (result.first_divergence.output, result.first_divergence.step) == ("timesteps", 0)
    assert re.search(r"\(7,\) entries \[852, .* the original has \(8,\) \[994, ", result.first_divergence.detail)


@pytest.mark.parametrize(
    ("symptom", "old", "new"),
    [
        ("d2090: the range is taken in variances, not in their logarithms",
         "fraction * c.max_log + (1 - fraction) * c.min_log",
         "(fraction * math.exp(c.max_log) + (1 - fraction) * math.exp(c.min_log)).log()"),
        ("d3006: beta of the training step, although steps are skipped",
         "chain.log_posterior_variance, chain.log_beta)",
         "chain.log_posterior_variance, np.log(self._table.exact_betas[self._grid]))"),
    ],
)  # fmt: skip
def test_a_wrong_learned_range_is_caught_by_a_fixture(symptom: str, old: str, new: str) -> None:
    module = specimens.planted(diffusers_ref.schedulers.ddpm, old, new)
    fixture = open_library().get("improved-diffusion/ddpm-learned-range-7")

    result = replay(fixture, specimens.WithScheduler(module), Settings())

    assert result.first_divergence is not None
    assert result.first_divergence.output == "step"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_noise_drawn_in_another_order_is_caught_by_the_counts_of_the_original() -> None:
    """d5111: k-diffusion's `sample_dpm_2_ancestral` draws once in a step of two evaluations, and not in the last."""
    recorded = [0, 1, 0, 1, 0, 1, 0]

    assert specimens.draws_per_evaluation(diffusers.KDPM2AncestralDiscreteScheduler, steps=4) == recorded
    assert specimens.draws_per_evaluation(specimens.kdpm2_ancestral_that_draws_in_both_stages(), steps=4) != recorded


def test_code_of_a_repository_runs_only_at_a_pinned_commit_and_when_asked_for(tmp_path: Path) -> None:
    """d1607, d3199, d3213: community code that was loaded from main changed overnight."""
    specimens.SoundPipeline.tiny().save_pretrained(tmp_path)

    with pytest.raises(ConfigError, match="trust_remote_code"):
        diffusers_ref.DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline="owner/community-pipeline")
    with pytest.raises(ConfigError, match="commit"):
        diffusers_ref.DiffusionPipeline.from_pretrained(
            tmp_path, custom_pipeline="owner/community-pipeline", trust_remote_code=True, custom_revision="main"
        )
