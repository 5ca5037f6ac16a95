"""Probes: what goes in is the same in every precision, and everything that comes out is kept."""

from __future__ import annotations

from pathlib import Path

import torch
from gate_toy import SOURCE

import diffusers_ref
from conformance.gate.choices import factors
from conformance.gate.driver import observe
from conformance.gate.probes import Probe, plan, scheduler_classes
from conformance.implementations import open_implementation
from diffusers_ref.registry import CLASSES


def toy() -> type:
    space: dict[str, object] = {}
    exec(SOURCE, space)
    return space["ToyScheduler"]  # type: ignore[return-value]


def test_float32_and_float64_see_the_same_noise() -> None:
    found = observe(toy(), {"step.eta": 0.6}, torch.float32)
    gap = (found["sample"].double() - found["sample.f64"]).norm() / found["sample.f64"].norm()  # type: ignore[union-attr,operator]
    assert 1e-9 < gap < 1e-6
    assert torch.equal(found["draws"], found["draws.f64"])  # type: ignore[arg-type]


def test_the_log_of_draws_says_when_how_many_and_whose() -> None:
    log = observe(toy(), {"steps": 2}, torch.float64)["draws"]
    assert log[:6].tolist() == [0, 24, 1, 1, 24, 1]  # type: ignore[index]


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    observe(toy(), {}, torch.float32)
    assert torch.equal(torch.get_rng_state(), before) and torch.randn.__module__ != "conformance.gate.driver"


def test_an_exception_is_an_outcome_and_what_came_before_it_is_kept() -> None:
    assert observe(toy(), {"config.timestep_spacing": "linspace"}, torch.float64)["raises"] == "ValueError"
    late = observe(toy(), {"steps": 1001}, torch.float64)  # divides 1000 by 1001 steps
    assert "made.alphas_cumprod" in late and "table.timesteps" in late


def test_factors_are_read_off_the_class() -> None:
    found = factors(diffusers_ref.DDIMScheduler)
    assert found["config.clip_sample"] == ("(default)", False)
    assert found["config.timestep_spacing"] == ("(default)", "linspace", "trailing", "ddim_uniform", "ddim_quad",
                                                "improved_diffusion")  # fmt: skip
    assert found["step.eta"] == ("(default)", 0.6)
    assert found["grid"] == ("steps", "timesteps")
    assert found["start"] == ("first", "begin_index", "later")


def test_a_plan_has_stable_ids_and_holds_what_does_not_work_too() -> None:
    probes = plan("ToyScheduler", toy())
    assert probes[0] == Probe("ToyScheduler", {})
    assert probes[0].id == "probe/ToyScheduler/44136fa3"
    assert [p.id for p in plan("ToyScheduler", toy())] == [p.id for p in probes]
    refused = [p.title for p in probes if "linspace" in p.title]
    assert refused == ["config.timestep_spacing=linspace"]


def test_scheduler_classes_of_a_library_and_of_a_file(tmp_path: Path) -> None:
    assert sorted(scheduler_classes(open_implementation())) == sorted(CLASSES["scheduler_config.json"])
    (tmp_path / "toy.py").write_text(SOURCE)
    assert list(scheduler_classes(open_implementation(f"{tmp_path / 'toy.py'}:ToyScheduler"))) == ["ToyScheduler"]


TOKENS = """
class TokenScheduler:
    def __init__(self, mask_token_id: int): self.mask = mask_token_id
    def set_timesteps(self, num_inference_steps): self.timesteps = torch.arange(num_inference_steps).flip(0)
    def step(self, model_output, timestep, sample: torch.LongTensor, generator=None):
        best = model_output.argmax(-1)
        keep = torch.arange(sample.shape[-1]) % len(self.timesteps) >= timestep
        return torch.where(keep, best, sample), None
"""


def test_a_scheduler_over_tokens_is_given_tokens() -> None:
    space: dict[str, object] = {"torch": torch}
    exec(TOKENS, space)
    found = observe(space["TokenScheduler"], {"config.mask_token_id": 5, "steps": 3}, torch.float32)  # type: ignore[arg-type]
    sample = found["sample"]
    assert isinstance(sample, torch.Tensor)
    assert (sample.dtype, tuple(sample.shape)) == (torch.int64, (3, 2, 12))
    assert [int((row == 5).sum()) for row in sample] == [16, 8, 0]
