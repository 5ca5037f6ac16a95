"""The tutorial's port, `examples/v-diffusion`: bitwise, and faults in it are seen, in its sampler and in its loop."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_new import run_pytest

from conformance.compare import Verdict
from conformance.implementations.user_class import UserImplementation
from conformance.library import open_library
from conformance.recorders import load_recorder
from conformance.replay import Settings, replay

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "v-diffusion"
TUTORIAL = ROOT / "docs" / "tutorial.md"
CASE = "v-diffusion/spliced-7-eta-0.5"

pytestmark = pytest.mark.skipif(not EXAMPLE.is_dir(), reason="needs the source tree")


def test_the_example_is_green() -> None:
    code, output = run_pytest(EXAMPLE, "-k", "original or draws")  # all its contracts take longer

    assert code == 0, output
    assert "1 xfailed" in output  # the original draws only where eta > 0


def test_the_fixtures_are_of_the_original_at_its_commit() -> None:
    library = open_library(EXAMPLE / "fixtures")
    original = load_recorder(str(EXAMPLE / "recorder.py")).ORIGINAL

    assert len(library.ids()) == 9
    for reference in (library.get(name).manifest.reference for name in library.ids()):
        assert (reference.repository, reference.commit) == (original.repository, original.commit)
        assert reference.repository == "crowsonkb/v-diffusion-pytorch"
        assert reference.modified is False
    assert sum(path.stat().st_size for path in library.root.rglob("*")) < 150_000


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        # The sampler.
        ("x0 = x * alphas[index] - v", "x0 = x * alphas[index] + v", "step at step 0: largest difference 0.5"),
        ("            if eta:", "            if eta < 0:", "step at step 0: largest difference"),
        ("t * (1 + cosine_crossover - ddpm", "t * (1 - cosine_crossover + ddpm", "timesteps at step 0: 7 of 7 entries"),
        ("self.sigmas = torch.cos(times * math.pi", "self.sigmas = torch.cos(times * 3.14159", "alphas at step "),
        ("(1 - a**2 / a_next**2).sqrt()", "(1 - a / a_next).sqrt()", "step at step 0: largest difference"),
        # What the pipeline does around it.
        ("scale_model_input(x, t), t).sample", "scale_model_input(x, t), t / 2).sample", "loop.timesteps at step 0: 7"),
        ("generator=generator).prev_sample", "generator=generator).prev_sample * 1.0001", "sample.loop at step 0: l"),
        ("self.scheduler.init_noise_sigma * randn", "1.001 * randn", "sample.loop at step 0: largest difference"),
        ("eta=eta, generator=generator)", "generator=generator)", "sample.loop at step 0: largest difference"),
        ("eta=eta, generator=generator)", "eta=eta)", "draws: the generator is not consumed as the original"),
        ("timesteps=timesteps)\n        x =", "timesteps=timesteps)\n        randn((1,), generator)\n        x =",
         "RuntimeError: the run asks for a draw of (1,)"),
    ],
)  # fmt: skip
def test_a_fault_is_seen(tmp_path: Path, right: str, wrong: str, said: str) -> None:
    port = (EXAMPLE / "pipeline.py").read_text(encoding="utf-8")
    assert port.count(right) == 1
    (tmp_path / "pipeline.py").write_text(port.replace(right, wrong), encoding="utf-8")
    broken = UserImplementation(f"{tmp_path / 'pipeline.py'}:VDiffusionPipeline")

    result = replay(open_library(EXAMPLE / "fixtures").get(CASE), broken, Settings())

    assert result.verdict in (Verdict.DIVERGENT, Verdict.ERROR)
    assert said in result.message


def test_a_draw_without_effect_is_seen(tmp_path: Path) -> None:
    port = (EXAMPLE / "pipeline.py").read_text(encoding="utf-8").replace("            if eta:", "            if True:")
    (tmp_path / "pipeline.py").write_text(port, encoding="utf-8")
    broken = UserImplementation(f"{tmp_path / 'pipeline.py'}:VDiffusionPipeline")

    result = replay(open_library(EXAMPLE / "fixtures").get("v-diffusion/spliced-7-eta-0"), broken, Settings())

    assert (result.verdict, result.draws_match) == (Verdict.DIVERGENT, False)
    assert result.message == "draws: the generator is not consumed as the original consumes it"


def test_the_tutorial_names_what_is_there() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    commands = re.findall(r"^\$ conformance (\w+)", text, re.MULTILINE)

    assert {"new", "record", "explain", "verify"} == set(commands)
    for case in re.findall(r"v-diffusion/((?:spliced|linear|ddpm)-[\w.-]+\d)", text):
        case = case.removesuffix(".json")
        assert (EXAMPLE / "fixtures" / "v-diffusion" / f"{case}.json").is_file(), case
    assert load_recorder(str(EXAMPLE / "recorder.py")).ORIGINAL.commit in text
