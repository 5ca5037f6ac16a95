"""`conformance new`: a folder that is green from the start, and red as soon as the port is wrong."""

from __future__ import annotations

import io
import os
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import conformance.scaffold
from conformance.cli import app
from conformance.errors import ConformanceError
from conformance.implementations.user_class import UserImplementation
from conformance.library import open_library
from conformance.recorders import load_recorder
from conformance.recorders.folder import content_digest
from conformance.recorders.recording import record
from conformance.scaffold import ProjectName, write_project
from diffusers_ref import DiffusionPipeline

FILES = ("README.md", "expectations.toml", "fixtures", "original", "pipeline.py", "recorder.py", "requirements.txt",
         "test_parity.py")  # fmt: skip


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_pytest(folder: Path, *arguments: str) -> tuple[int, str]:
    """`pytest` on the folder's own test; exit code and output."""
    output = io.StringIO()
    absent = ("cacheprovider", "xdist", "unraisableexception", "hypothesispytest")
    options = ["-q", "-c", os.devnull, f"--rootdir={folder}", "--import-mode=importlib"]
    options += [f"-pno:{plugin}" for plugin in absent]
    with redirect_stdout(output):
        code = pytest.main([str(folder / "test_parity.py"), *options, *arguments])
    sys.modules.pop("test_parity", None)  # the next folder has a module of this name, too
    return int(code), output.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the command writes it; tests that change something take a `project`."""
    folder = tmp_path_factory.mktemp("new") / "my-sampler"
    result = command("new", "my-sampler", "--folder", folder)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, f"{folder}: {', '.join(FILES)}"), result.output
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder."""
    return shutil.copytree(made, tmp_path / "project")


def test_the_folder_is_complete(made: Path) -> None:
    assert tuple(sorted(path.name for path in made.iterdir())) == FILES
    assert [path.name for path in made.parent.iterdir()] == ["my-sampler"]  # no draft is left beside it
    text = "".join(path.read_text(encoding="utf-8") for path in made.iterdir() if path.is_file())
    assert "class MySamplerPipeline(DiffusionPipeline)" in text
    assert "{{" not in text
    assert "diffusers-ref==0.1.0" in text


def test_the_fixtures_are_of_the_placeholder_and_say_so(made: Path) -> None:
    library = open_library(made / "fixtures")

    assert [name.split("/")[0] for name in library.ids()] == ["my-sampler"] * 6
    reference = library.get("my-sampler/steps-7-eta-0.6").manifest.reference
    assert reference.repository == "placeholder (original/sampler.py)"
    assert reference.commit == content_digest(made / "original")
    assert reference.modified is False


def test_it_is_green_from_the_start(made: Path) -> None:
    code, output = run_pytest(made, "-k", "original")

    assert code == 0, output
    assert "6 passed" in output


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("x0 = (x - (1 - abar)", "x0 = (x + (1 - abar)", "divergent: step at step 0: largest difference"),
        ("abar_prev.sqrt() * x0 +", "abar_prev.sqrt() * x0 -", "divergent: step at step 0: largest difference"),
        ("self._times[index + 1]]", "self._times[index + 1] - 1]", "divergent: step at step 0: largest difference"),
        ("        if not is_last:", "        if True:", "divergent: draws: the generator is not consumed as"),
        ("num_train_timesteps, dtype=torch.float64)", "num_train_timesteps)", "alphas_cumprod at step "),
    ],
)
def test_it_is_red_when_the_port_is_wrong(project: Path, right: str, wrong: str, said: str) -> None:
    port = (project / "pipeline.py").read_text(encoding="utf-8")
    assert port.count(right) == 1
    (project / "pipeline.py").write_text(port.replace(right, wrong), encoding="utf-8")

    code, output = run_pytest(project, "-k", "steps-7-eta-0.6")

    assert code == 1
    assert said in output


def test_an_expectation_must_fail(project: Path) -> None:
    entry = '[[expect]]\ncase = "my-sampler/steps-1-*"\nreason = "a story"\n'
    (project / "expectations.toml").write_text(entry, encoding="utf-8")

    code, output = run_pytest(project, "-k", "steps-1-eta")

    assert code == 1
    assert "[XPASS(strict)] a story" in output


def test_the_recorder_writes_the_same_bytes_again(made: Path, tmp_path: Path) -> None:
    result = command("record", made / "recorder.py", "steps-2-*", "--source", made / "original", "--output", tmp_path)

    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/my-sampler/steps-2-eta-0.json\n"), result.output
    for name in ("steps-2-eta-0.json", "steps-2-eta-0.safetensors"):
        written, there = (folder / "my-sampler" / name for folder in (tmp_path, made / "fixtures"))
        assert written.read_bytes() == there.read_bytes()


def test_another_original_is_refused_until_the_recorder_names_it(project: Path, tmp_path: Path) -> None:
    pinned = content_digest(project / "original")
    with (project / "original" / "sampler.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    arguments = (str(project / "recorder.py"), project / "original", tmp_path, ("steps-2-*",))

    with pytest.raises(ConformanceError) as caught:
        list(record(*arguments))
    found = content_digest(project / "original")
    assert f"its content is {found}, the recorder is written against {pinned}. Pass --allow-m" in str(caught.value)

    list(record(*arguments, allow_modified=True))
    reference = open_library(tmp_path).get("my-sampler/steps-2-eta-0").manifest.reference
    assert (reference.commit, reference.modified) == (found, True)


def test_the_content_digest_sees_names_and_bytes_and_no_byte_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x", encoding="utf-8")
    first = content_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_bytes(b"")
    assert content_digest(tmp_path) == first

    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert content_digest(tmp_path) != first
    (tmp_path / "b.py").rename(tmp_path / "a.py")
    assert content_digest(tmp_path) == first
    (tmp_path / "a.py").write_text("y", encoding="utf-8")
    assert content_digest(tmp_path) != first


def test_the_pipeline_is_a_custom_pipeline(made: Path, tmp_path: Path) -> None:
    port = UserImplementation(f"{made / 'pipeline.py'}:MySamplerPipeline")
    pipeline = port.subjects()["MySamplerPipeline"]()
    pipeline.save_pretrained(tmp_path / "saved")

    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved", custom_pipeline=made / "pipeline.py")
    loaded.set_progress_bar_config(disable=True)

    assert (type(loaded).__name__, type(loaded.scheduler).__name__) == ("MySamplerPipeline", "MySamplerScheduler")
    one, other = (
        each(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for each in (pipeline, loaded)
    )
    assert torch.equal(one, other)


# --- names and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "system", "words", "camel"),
    [
        ("my-sampler", "my-sampler", "My Sampler", "MySampler"),
        ("my_sampler", "my-sampler", "My Sampler", "MySampler"),
        ("MySampler", "my-sampler", "My Sampler", "MySampler"),
        ("v-diffusion", "v-diffusion", "V Diffusion", "VDiffusion"),
        ("EDM2", "edm2", "EDM2", "EDM2"),
        ("fast-EDM-solver", "fast-edm-solver", "Fast EDM Solver", "FastEDMSolver"),
    ],
)
def test_a_name_in_its_three_forms(name: str, system: str, words: str, camel: str) -> None:
    assert ProjectName.parse(name) == ProjectName(system, words, camel)


@pytest.mark.parametrize("name", ["", "2d", "my sampler", "../x", "a--b", "-a", "a-", "my.sampler", "ü"])
def test_what_is_no_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConformanceError, match="allowed: letters and digits, in words joined by - or _"):
        write_project(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_name_that_is_taken() -> None:
    with pytest.raises(ConformanceError, match="diffusers_ref has DDIMPipeline, DDIMScheduler already"):
        ProjectName.parse("DDIM")


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("mine", encoding="utf-8")

    full, file = command("new", "x", "--folder", tmp_path / "full"), command("new", "x", "--folder", tmp_path / "file")

    assert (full.exit_code, file.exit_code) == (2, 2)
    assert f"{tmp_path / 'full'} exists and is not empty; choose another" in full.stderr
    assert f"{tmp_path / 'file'} exists and is a file; choose another" in file.stderr
    assert (tmp_path / "full" / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert (write_project("x", tmp_path / "empty") / "pipeline.py").is_file()


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conformance.scaffold, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_project("x", tmp_path / "x")

    assert list(tmp_path.iterdir()) == []


# --- recorder files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such recorder file"),
        ("ORIGINAL = cases = 1", "is no recorder: it has no original; needed: ORIGINAL, original, cases"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError: No module named 'nothing_of"),
    ],
)
def test_what_is_no_recorder(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")

    with pytest.raises(ConformanceError) as caught:
        load_recorder(str(path))

    assert said in str(caught.value)
