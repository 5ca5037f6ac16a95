"""Recording: a small original in a git repository of its own, through the real machinery."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import conformance.fixture
from conformance.cli import app
from conformance.compare import Verdict
from conformance.errors import ConformanceError
from conformance.fixture import Fixture, Subject
from conformance.implementations.base import Implementation
from conformance.library import open_library
from conformance.network import AnalyticNetwork
from conformance.recorders import RECORDERS, load_recorder
from conformance.recorders.checkout import Original, importing
from conformance.recorders.recording import record
from conformance.recorders.scheduler_case import Run, SchedulerCase
from conformance.replay import Settings, replay

ORIGINAL_CODE = """
import torch

runs = 0

def steady(x, network):
    for t in (30, 20, 10):
        x = x - 0.1 * network(x, torch.full((len(x),), t)) + 0.05 * torch.randn_like(x)
    return x

def ill_conditioned(x, network):
    x = x + 1e6 - 1e6
    return x - 0.1 * network(x, torch.full((len(x),), 30))

def forgetful(x, network):
    global runs
    runs += 1
    return x - 0.1 * network(x, torch.full((len(x),), 30)) + runs
"""


class ToyScheduler:
    """What a port of `steady` looks like."""

    def __init__(self) -> None:
        self.timesteps = torch.tensor([30, 20, 10])

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None: ...

    def step(self, output: Any, t: Any, sample: Any, generator: Any = None, variance_noise: Any = None) -> Any:
        if variance_noise is None:
            variance_noise = torch.randn(sample.shape, generator=generator, dtype=sample.dtype)
        step = ModuleType("step")
        step.prev_sample = sample - 0.1 * output + 0.05 * variance_noise  # type: ignore[attr-defined]
        return step


class ToyImplementation(Implementation):
    name, version = "toy", "1"

    def scheduler(self, subject: Subject) -> Any:
        return ToyScheduler()


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with the original in it."""
    folder = tmp_path / "original"
    folder.mkdir()
    (folder / "toy_sampler.py").write_text(ORIGINAL_CODE, encoding="utf-8")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "original")
    return folder


@pytest.fixture
def recorder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A recorder of it, as the system `toy`."""
    module = ModuleType("conformance.recorders.toy_recorder")

    @contextmanager
    def original(source: Path) -> Iterator[ModuleType]:
        with importing(source, ("toy_sampler",), stubs=("a_library_that_is_missing",)) as (code,):
            yield code

    def case(code: ModuleType, name: str, tier: str = "default") -> SchedulerCase:
        def run(network: Callable[..., torch.Tensor], shape: Any, dtype: torch.dtype) -> Run:
            return Run(getattr(code, name)(torch.randn(shape, dtype=dtype), network))

        return SchedulerCase(name.replace("_", "-") + ("" if tier == "default" else f"-{tier}"), "a toy", "section 1",
                             "ToyScheduler", {}, {"num_inference_steps": 3}, run, ["toy_sampler.py"],
                             network=AnalyticNetwork(40), seed=3, tier=tier)  # fmt: skip

    def cases(code: ModuleType) -> Iterator[SchedulerCase]:
        for name in ("steady", "ill_conditioned", "forgetful"):
            yield case(code, name)
        yield case(code, "steady", "full")

    module.ORIGINAL = Original("toy", "someone/toy", git(checkout, "rev-parse", "HEAD"), "MIT", "A Paper", "2010.02502")
    module.original, module.cases = original, cases
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(RECORDERS, "toy", "toy_recorder")
    return module


def recorded(checkout: Path, output: Path, *select: str, **options: Any) -> Fixture:
    """Record one case; returns it as it is read back."""
    (path,) = record("toy", checkout, output, select or ("steady",), **options)
    return open_library(output).get(f"toy/{path.stem}")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_recording_is_a_valid_fixture(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    fixture = recorded(checkout, tmp_path / "out")
    manifest = fixture.manifest

    assert sorted(contents(tmp_path / "out")) == ["toy/steady.json", "toy/steady.safetensors"]
    assert (manifest.id, manifest.kind, manifest.tier) == ("toy/steady", "scheduler", "default")
    assert manifest.repeatable is True
    assert manifest.reference.commit == recorder.ORIGINAL.commit
    assert manifest.reference.modified is False
    assert (manifest.paper.arxiv, manifest.recorder.name) == ("2010.02502", "toy")
    assert manifest.environment.threads == 1
    assert [draw.name for draw in manifest.tape.draws] == ["initial", "noise_0", "noise_1", "noise_2"]
    assert fixture.tensors["times"].tolist() == [30.0, 20.0, 10.0]
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(fixture.tensors["draws"][0], torch.randn(2, 3, 4, 2, generator=generator))
    assert [output.name for output in manifest.outputs] == ["timesteps", "step", "sample"]
    assert all(2**-24 <= output.noise_floor < 1e-6 for output in manifest.outputs[1:])
    assert manifest.information["time_shift_effect"] > 1e-4


def test_the_recording_can_be_replayed(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    result = replay(recorded(checkout, tmp_path / "out"), ToyImplementation(), Settings())

    assert (result.verdict, result.draws_match) == (Verdict.BITWISE, True), result.message


def test_recording_again_gives_the_same_bytes(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    recorded(checkout, tmp_path / "once")
    recorded(checkout, tmp_path / "again")

    assert contents(tmp_path / "once") == contents(tmp_path / "again")


def test_a_tier_is_recorded_and_selected(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    fixture = recorded(checkout, tmp_path / "out", "*", tier="full")

    assert (fixture.id, fixture.manifest.tier) == ("toy/steady-full", "full")


def test_nothing_is_left_behind(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    torch.rand(3)
    before = contents(checkout)
    state = torch.get_rng_state(), list(sys.path), sys.dont_write_bytecode, torch.get_num_threads(), set(sys.modules)

    recorded(checkout, tmp_path / "out")

    assert contents(checkout) == before
    assert git(checkout, "status", "--porcelain", "--ignored") == ""
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (list(sys.path), sys.dont_write_bytecode, torch.get_num_threads()) == state[1:4]
    assert not {"toy_sampler", "a_library_that_is_missing"} & set(sys.modules)


def test_the_command_records(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["record", "toy", "steady", "--source", str(checkout), "--output", str(output)]

    result = CliRunner().invoke(app, arguments)

    assert (result.exit_code, result.stdout) == (0, f"{output}/toy/steady.json\n")


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(checkout: Path, output: Path, *select: str, **options: Any) -> str:
    with pytest.raises(ConformanceError) as caught:
        recorded(checkout, output, *select, **options)
    assert not output.exists() or contents(output) == {}
    return str(caught.value)


def test_a_dirty_checkout_is_refused(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    (checkout / "toy_sampler.py").write_text(ORIGINAL_CODE + "\n", encoding="utf-8")

    message = refused(checkout, tmp_path / "out")

    assert message.startswith(f"{checkout}: it has local changes (M toy_sampler.py …). Pass --allow-modified")


def test_an_untracked_module_is_refused_and_other_files_are_not(
    recorder: ModuleType, checkout: Path, tmp_path: Path
) -> None:
    (checkout / "notes.txt").write_text("", encoding="utf-8")
    assert recorded(checkout, tmp_path / "fine").manifest.reference.modified is False

    (checkout / "lib").mkdir()
    (checkout / "lib" / "shadow.py").write_text("", encoding="utf-8")
    assert "it has local changes (?? lib/shadow.py …)" in refused(checkout, tmp_path / "out")


def test_another_commit_is_refused(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    git(checkout, "commit", "-q", "--allow-empty", "-m", "later")

    message = refused(checkout, tmp_path / "out")

    found = git(checkout, "rev-parse", "HEAD")
    assert f"it is at commit {found}, the recorder is written against {recorder.ORIGINAL.commit}." in message


@pytest.mark.parametrize("change", ["dirty", "later"])
def test_what_is_modified_by_request_says_so(recorder: ModuleType, checkout: Path, tmp_path: Path, change: str) -> None:
    if change == "dirty":
        (checkout / "toy_sampler.py").write_text(ORIGINAL_CODE + "\n", encoding="utf-8")
    else:
        git(checkout, "commit", "-q", "--allow-empty", "-m", "later")

    reference = recorded(checkout, tmp_path / "out", allow_modified=True).manifest.reference

    assert reference.modified is True
    assert reference.commit == git(checkout, "rev-parse", "HEAD")


def test_a_folder_that_is_no_checkout_is_refused(recorder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()

    assert "plain: not a git checkout (fatal: " in refused(tmp_path / "plain", tmp_path / "out")
    assert "absent: no such checkout of someone/toy" in refused(tmp_path / "absent", tmp_path / "out")


def test_an_ill_conditioned_case_is_refused(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    message = refused(checkout, tmp_path / "out", "ill-conditioned")

    assert message.startswith("ill-conditioned: noise floor 0.0")
    assert message.endswith("is above 0.0001: ill conditioned")


def test_a_case_that_does_not_repeat_is_refused(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    assert refused(checkout, tmp_path / "out", "forgetful") == "forgetful: two runs of the original differ"


def test_a_selection_that_matches_nothing_is_refused(recorder: ModuleType, checkout: Path, tmp_path: Path) -> None:
    assert refused(checkout, tmp_path / "out", "nothing") == "no default case of 'toy' matches nothing"
    assert refused(checkout, tmp_path / "out", "*", tier="hub") == "no hub case of 'toy' matches *"


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(ConformanceError, match="no recorder for 'toy'; known systems: ") as refusal:
        load_recorder("toy")
    assert ", ".join(RECORDERS) in str(refusal.value)


def test_an_interrupted_recording_leaves_no_fixture(
    recorder: ModuleType, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conformance.files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recorded(checkout, tmp_path / "out")

    assert contents(tmp_path / "out") == {}
    assert "toy_sampler" not in sys.modules


# --- who imports whom ------------------------------------------------------------------------------------------------

PACKAGE = Path(conformance.fixture.__file__).parent
GROUND_FLOOR = (
    "errors",
    "files",
    "fixture",
    "library",
    "weights",
    "sketch",
    "network",
    "tape",
    "ulp",
    "compare",
    "expectations",
)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions; a name from a package counts as its module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_from(path: Path, package: str) -> set[str]:
    return {name for name in imported(path) if name == package or name.startswith(f"{package}.")}


def python_files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.py"))
    assert len(files) >= 10
    return files


def test_recorders_never_import_the_library_under_test() -> None:
    for path in python_files(PACKAGE / "recorders"):
        for package in ("diffusers_ref", "diffusers", "conformance.replay", "conformance.implementations"):
            assert not imports_from(path, package), path


def test_the_library_under_test_never_imports_the_harness() -> None:
    for path in python_files(PACKAGE.parent / "diffusers_ref"):
        assert not imports_from(path, "conformance"), path
        assert not imports_from(path, "diffusers"), path


def test_the_ground_floor_imports_nothing_above_it() -> None:
    allowed = {f"conformance.{name}" for name in GROUND_FLOOR}
    for name in GROUND_FLOOR:
        used = imports_from(PACKAGE / f"{name}.py", "conformance")
        assert {".".join(module.split(".")[:2]) for module in used} <= allowed, name
        assert not imports_from(PACKAGE / f"{name}.py", "diffusers_ref"), name
