"""`conformance verify`: one verdict about anyone's class, never green without evidence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import conformance.contracts.scheduler
import conformance.library
import diffusers_ref.custom_code
from conformance.cli import app
from conformance.compare import Verdict
from conformance.contracts.contract import Contract, Given
from conformance.contracts.result import CheckResult, NotApplicable, Status, Violation
from conformance.errors import ConformanceError
from conformance.fixture import Subject
from conformance.implementations.user_class import UserImplementation, kind_of
from conformance.library import open_library
from conformance.replay import CaseResult, Settings, replay
from conformance.verify import Verification, open_target, verify
from diffusers_ref import DDIMPipeline, DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel

PORTS = Path(__file__).with_name("ported_schedulers.py")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def holds(subject: Any, given: Given) -> None:
    """It does."""


def has_nothing(subject: Any, given: Given) -> None:
    """It does not apply."""
    raise NotApplicable("nothing to look at")


def breaks(subject: Any, given: Given) -> None:
    """It does not."""
    raise Violation("0.2 instead of 0.1", max_abs=0.1)


def give_contracts(monkeypatch: pytest.MonkeyPatch, *checks: Any) -> None:
    monkeypatch.setattr(conformance.contracts.scheduler, "CONTRACTS", tuple(map(Contract, checks)))


@pytest.fixture(autouse=True)
def few_fixtures_and_contracts(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three bundled fixtures (two of DDIM), and two contracts."""
    monkeypatch.setattr(conformance.library, "_bundled", lambda: fixtures)
    give_contracts(monkeypatch, holds, has_nothing)


def run(target: object, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["verify", str(target), *map(str, arguments)])


def verdict(result: Result) -> tuple[int, str]:
    """The exit code and the last line."""
    return result.exit_code, (result.stdout.splitlines() or [result.stderr])[-1]


def expect(folder: Path, *entries: tuple[str, str]) -> Path:
    path = folder / "expectations.toml"
    text = "".join(f'[[expect]]\ncase = "{case}"\nreason = "{reason}"\n' for case, reason in entries)
    path.write_text(text, encoding="utf-8")
    return path


# --- the verdict -----------------------------------------------------------------------------------------------------


def test_a_good_port_conforms() -> None:
    result = run(f"{PORTS}:GoodDDIMScheduler")

    assert verdict(result) == (0, "conforms: 1 checks passed, 1 not applicable, 2 fixtures bitwise")
    assert "not applicable GoodDDIMScheduler, nothing to look at: has_nothing" in result.stdout


def test_a_drifted_port_does_not() -> None:
    result = run(f"{PORTS}:DriftedDDIMScheduler")

    assert verdict(result) == (1, "does not conform: 1 checks passed, 1 not applicable, 2 fixtures divergent")
    assert "divergent ddim/ddim-uniform-2-eta-0: step at step 0: largest difference " in result.stdout


def test_an_error_in_the_port_does_not_stop_the_verdict() -> None:
    result = run(f"{PORTS}:BrokenDDIMScheduler")

    assert verdict(result) == (1, "does not conform: 1 checks passed, 1 not applicable, 2 fixtures with an error")
    assert "error ddim/ddim-uniform-2-eta-0: IndexError: index 14 is out of bounds" in result.stdout


def test_a_broken_contract_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    give_contracts(monkeypatch, holds, breaks)

    result = run("diffusers_ref:DDIMScheduler")

    assert verdict(result) == (1, "does not conform: 1 of 2 checks passed, 1 failed, 2 fixtures bitwise")
    assert "failed contract/DDIMScheduler/breaks: 0.2 instead of 0.1" in result.stdout


def test_without_a_fixture_nothing_is_proven() -> None:
    result = run("diffusers_ref:DDPMScheduler")
    alone = run("diffusers_ref:DDPMScheduler", "--contracts-only")

    assert verdict(result) == (
        1, "not proven; contracts hold, no fixture applies: 1 checks passed, 1 not applicable"
    )  # fmt: skip
    assert verdict(alone) == (0, "contracts hold: 1 checks passed, 1 not applicable")


def test_contracts_that_all_do_not_apply_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    give_contracts(monkeypatch, has_nothing)

    assert verdict(run("diffusers_ref:DDIMScheduler"))[0] == 1
    assert verdict(run("diffusers_ref:DDPMScheduler", "--contracts-only"))[0] == 1


def test_a_report_as_json(tmp_path: Path) -> None:
    result = run(f"{PORTS}:DriftedDDIMScheduler", "--json", tmp_path / "report.json")

    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(report) == ["schema", "subject", "green", "verdict", "checks", "cases", "complaints"]
    assert (report["schema"], report["green"], report["verdict"]) == (1, False, verdict(result)[1])
    assert [(check["name"], check["status"], check["waived"]) for check in report["checks"]] == [
        ("holds", "passed", False),
        ("has_nothing", "not applicable", False),
    ]
    assert [case["verdict"] for case in report["cases"]] == ["divergent", "divergent"]


def test_the_line_counts_every_kind() -> None:
    checks = [CheckResult("a", "X", Status.PASSED), CheckResult("b", "X", Status.FAILED)]
    cases = [CaseResult("s/1", "scheduler", Verdict.BITWISE), CaseResult("s/2", "scheduler", Verdict.WAIVED)]

    waived = Verification("X", checks, cases, waived=frozenset({"contract/X/b"}))
    only_waived = Verification("X", checks[:1], cases[1:])

    assert (waived.green, waived.line) == (
        True, "conforms: 1 checks passed, 1 waived, 1 fixture bitwise, 1 fixture waived"
    )  # fmt: skip
    assert only_waived.green is False  # a waiver is no evidence
    assert Verification("X", [], []).line == "does not conform: nothing was checked"


# --- fixtures of the user's own, names, expectations -----------------------------------------------------------------


@pytest.fixture
def own_fixtures(fixtures: Path, tmp_path: Path) -> Path:
    """A folder with the fixture of another class."""
    (tmp_path / "own").mkdir()
    return Path(shutil.move(fixtures / "pndm", tmp_path / "own" / "pndm")).parent


def test_every_fixture_that_is_named_counts(own_fixtures: Path) -> None:
    result = run("diffusers_ref:DDIMScheduler", "--fixtures", own_fixtures)

    assert verdict(result)[0] == 1
    assert verdict(result)[1].endswith("2 fixtures bitwise, 1 fixture unsupported")
    assert "unsupported pndm/s-pndm-2: DDIMScheduler does not stand for PNDMScheduler" in result.stdout


def test_a_reason_waives_a_fixture(own_fixtures: Path, tmp_path: Path) -> None:
    known = expect(tmp_path, ("pndm/*", "it is another"))

    result = run("diffusers_ref:DDIMScheduler", "--fixtures", own_fixtures, "--expectations", known)

    assert verdict(result)[0] == 0
    assert verdict(result)[1].endswith("2 fixtures bitwise, 1 fixture waived")
    assert "waived pndm/s-pndm-2: waived (it is another); unsupported: DDIMScheduler does" in result.stdout


def test_a_reason_waives_a_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give_contracts(monkeypatch, holds, breaks)

    known = expect(tmp_path, ("contract/DDIMScheduler/breaks", "as it is"))

    result = run("diffusers_ref:DDIMScheduler", "--expectations", known)

    assert verdict(result) == (0, "conforms: 1 checks passed, 1 waived, 2 fixtures bitwise")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("contract/*/holds", "expectation 'contract/*/holds' is no longer needed: all 1 matching cases pass"),
        ("toy/gone", "expectation 'toy/gone' matches no case of this run"),
    ],
)
def test_an_expectation_without_a_cause_fails(tmp_path: Path, case: str, said: str) -> None:
    result = run("diffusers_ref:DDIMScheduler", "--expectations", expect(tmp_path, (case, "once")))

    assert verdict(result)[0] == 1
    assert said in result.stdout


def test_a_class_of_another_name_says_what_it_stands_for(tmp_path: Path) -> None:
    text = (
        "import diffusers_ref\nclass Base(diffusers_ref.DDIMScheduler): pass\n"
        "class Mine(Base): stands_for = ('Other', 'PNDMScheduler')\n"
        "class Renamed:\n    def __init__(self, **options): self._inner = diffusers_ref.DDIMScheduler(**options)\n"
        "    def set_timesteps(self, n, device=None): self._inner.set_timesteps(n)\n"
        "    def step(self, *a, **k): return self._inner.step(*a, **k)\n"
    )
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    ddim, pndm = (Subject(name, {}) for name in ("DDIMScheduler", "PNDMScheduler"))

    def stands(name: str, *stands_for: str) -> list[bool]:
        port = UserImplementation(f"{tmp_path / 'mine.py'}:{name}", stands_for)
        return [port.serves(subject, "scheduler") for subject in (ddim, pndm)]

    assert stands("Base") == [True, False]  # by its base
    assert stands("Mine") == [False, True]  # by its attribute, which counts alone
    assert stands("Renamed") == [False, False]
    assert stands("Renamed", "DDIMScheduler") == [True, False]
    result = run(f"{tmp_path / 'mine.py'}:Mine", "--as", "DDIMScheduler")
    assert verdict(result)[1].endswith("2 fixtures bitwise")


# --- networks and pipelines ------------------------------------------------------------------------------------------

BUNDLED = open_library()  # before the tests replace it


class Community(DiffusionPipeline):
    """A pipeline without `from_single_file`, whose name says what it is: DDIMPipeline."""

    stands_for = ("DDIMPipeline", "DDIMScheduler")
    scheduler_class = DDIMScheduler
    from_single_file = None

    def __init__(self, unet: Any, scheduler: Any) -> None:
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, **options: Any) -> Any:
        return DDIMPipeline(self.unet, self.scheduler)(**options)


def test_kinds() -> None:
    assert [kind_of(cls) for cls in (DDIMScheduler, UNet2DModel, DDIMPipeline, Community)] == [
        "scheduler", "model", "pipeline", "pipeline"
    ]  # fmt: skip
    with pytest.raises(ConformanceError, match="Path is neither a scheduler"):
        kind_of(Path)


def test_a_network_class_is_given_the_converted_weights() -> None:
    class MyUNet2DModel(UNet2DModel):
        pass

    fixture = BUNDLED.get("ddim/network-tiny")

    assert fixture.manifest.kind == "model"
    assert replay(fixture, UserImplementation(MyUNet2DModel), Settings()).verdict.green
    other = replay(fixture, UserImplementation(DDIMScheduler), Settings())
    assert (other.verdict, other.message) == (Verdict.UNSUPPORTED, "DDIMScheduler does not stand for UNet2DModel")


def test_a_pipeline_is_made_of_its_librarys_components(fixtures: Path) -> None:
    del Community.from_single_file
    port = UserImplementation(Community)

    images = replay(BUNDLED.get("ddim/pipeline-ddim-7-eta-0.5"), port, Settings())
    sampler = replay(open_library(fixtures).get("ddim/ddim-uniform-2-eta-1"), port, Settings())

    assert images.verdict.green, images.message
    assert sampler.verdict is Verdict.BITWISE, sampler.message
    assert [c.output for c in sampler.comparisons if "loop" in c.output] == [
        "loop.timesteps", "sample.loop", "sample.loop.f64", "seeded.loop"
    ]  # fmt: skip


def test_a_pipeline_that_takes_other_arguments_is_unsupported(fixtures: Path) -> None:
    class Other(Community):
        def __call__(self, batch_size: int, num_inference_steps: int, generator: Any, output_type: str) -> Any: ...

    result = replay(open_library(fixtures).get("ddim/ddim-uniform-2-eta-1"), UserImplementation(Other), Settings())

    assert (result.verdict, result.message.split(".")[-1]) == (Verdict.UNSUPPORTED, "__call__ takes no eta")


def test_a_pipeline_names_its_scheduler_by_attribute_or_by_type() -> None:
    class Annotated(Community):
        scheduler_class = None

        def __init__(self, unet: Any, scheduler: DDPMScheduler) -> None:
            super().__init__(unet, scheduler)

    class Silent(Community):
        scheduler_class = None

    assert UserImplementation(Community).scheduler_classes == [DDIMScheduler]
    assert UserImplementation(Annotated).scheduler_classes == [DDPMScheduler]
    assert isinstance(UserImplementation(Annotated).subjects()["Annotated"]().scheduler, DDPMScheduler)
    with pytest.raises(ConformanceError, match="neither a scheduler_class nor a type of `scheduler` says what"):
        UserImplementation(Silent).subjects()["Silent"]()


def test_a_network_is_made_small() -> None:
    network = UserImplementation(UNet2DModel).subjects()["UNet2DModel"]()

    assert sum(parameter.numel() for parameter in network.parameters()) < 50_000
    assert network.training is False


def test_a_pipeline_of_other_components_needs_an_example_of_its_own() -> None:
    class Wide(Community):
        def __init__(self, unet: Any, scheduler: Any, text_encoder: Any) -> None: ...

    with pytest.raises(ConformanceError) as caught:
        UserImplementation(Wide).subjects()["Wide"]()
    assert "no small Wide can be made for its contracts" in str(caught.value)
    assert "its constructor needs text_encoder); give the class a class method conformance_subject()" in str(
        caught.value
    )

    Wide.conformance_subject = classmethod(lambda cls: "an instance")  # type: ignore[attr-defined]
    assert UserImplementation(Wide).subjects()["Wide"]() == "an instance"


def test_a_step_that_lacks_an_option_is_unsupported(fixtures: Path) -> None:
    class Plain:
        def set_timesteps(self, num_inference_steps: int) -> None:
            self.timesteps = torch.tensor([500, 0])

        def step(self, model_output: Any, timestep: Any, sample: Any) -> Any: ...

    port = UserImplementation(Plain, ["DDIMScheduler"])
    result = replay(open_library(fixtures).get("ddim/ddim-uniform-2-eta-1"), port, Settings())

    assert result.verdict is Verdict.UNSUPPORTED
    assert result.message.endswith("Plain.step takes no eta")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("diffusers_ref",), "'diffusers_ref' names no class; allowed: path/to/file.py:Class, package.module:Class"),
        (("nothing.py:X",), "nothing.py: no such file"),
        (("diffusers_ref:DDIMScheduler", "--tier", "huge"), "tier 'huge'; allowed: default, full, hub"),
        (("diffusers_ref:DDIMScheduler", "--dtype", "int8"), "dtype 'int8'; allowed: float32, float64"),
        (("diffusers_ref:DDIMScheduler", "--fixtures", "nowhere"), "nowhere: no such fixture folder"),
        (("diffusers_ref:DDIMScheduler", "--contracts-only", "--fixtures", "x"), "--contracts-only replays no fix"),
        (("diffusers_ref:DDIMScheduler", "--json", "nowhere/x.json"), "--json nowhere/x.json: there is no such folder"),
        (("diffusers_ref:Config",), "Config is neither a scheduler (set_timesteps, step), nor a network"),
        ((f"hub:a/b@{COMMIT}",), "would run code from the Hub: read it, then pass trust_remote_code=True (here: --tr"),
        (("hub:a/b", "--trust-remote-code"), "custom_revision must be a commit hash of 40 digits, not None"),
        (("hub:a/b@main", "--trust-remote-code"), "custom_revision must be a commit hash of 40 digits, not 'main'"),
        (("hub:a/b@v1.0:X", "--trust-remote-code"), "must be a commit hash of 40 digits, not 'v1.0'"),
        ((f"hub:a/b@{COMMIT[:12]}", "--trust-remote-code"), "must be a commit hash of 40 digits, not '0123456789ab'"),
        (("hub:a", "--trust-remote-code"), "'hub:a'; allowed: hub:owner/name@commit[:Class]"),
    ],
)
def test_a_mistake_is_exit_code_2(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert result.stderr.startswith("conformance: ")
    assert said in result.stderr


def test_a_local_folder_does_not_stand_in_for_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "pipeline.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConformanceError, match="there is a local folder a/b here"):
        open_target(f"hub:a/b@{COMMIT}", trust_remote_code=True)


@pytest.mark.parametrize(
    ("classes", "suffix", "said"),
    [
        (("MinePipeline",), "", "MinePipeline"),
        (("MinePipeline", "OtherPipeline"), ":OtherPipeline", "OtherPipeline"),
        (("MinePipeline", "OtherPipeline"), "", "defines MinePipeline, OtherPipeline; say which with hub:owner/name@"),
        ((), "", "defines no class whose name ends in Pipeline; say which"),
    ],
)
def test_a_repository_at_a_commit_with_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...], suffix: str, said: str
) -> None:
    file = tmp_path / "pipeline.py"
    body = "(DiffusionPipeline):\n    def __call__(self): ...\n"
    file.write_text(
        "from diffusers_ref import DiffusionPipeline\n" + "".join(f"class {c}{body}" for c in classes), encoding="utf-8"
    )
    asked: list[object] = []

    def find(name: str, **options: object) -> Path:
        asked.append((name, options))
        return file

    monkeypatch.setattr(diffusers_ref.custom_code, "find_pipeline_file", find)
    if " " in said:
        with pytest.raises(ConformanceError, match=said.split(";")[0]):
            open_target(f"hub:a/b@{COMMIT}{suffix}", trust_remote_code=True)
        return

    assert open_target(f"hub:a/b@{COMMIT}{suffix}", trust_remote_code=True).cls.__name__ == said
    assert asked == [("a/b", {"trust_remote_code": True, "revision": COMMIT})]


def test_the_library_twin_tells_what_it_does(fixtures: Path) -> None:
    told: list[str] = []

    found = verify(UserImplementation(DDIMScheduler), [open_library(fixtures)], progress=told.append)

    assert told == ["holds", "has_nothing", "ddim/ddim-uniform-2-eta-0", "ddim/ddim-uniform-2-eta-1"]
    assert found.green
