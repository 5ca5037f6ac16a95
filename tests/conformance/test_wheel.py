"""The wheel: it carries fixtures, types and the suite, and runs where nothing of the checkout is to be seen."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.library import open_library

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("diffusers_ref", "conformance", "fixtures", "pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the source tree")


def python(*arguments: str, cwd: Path, path: list[Path] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python; with `path`, that is all it can import from (no .pth file is read, so no editable installation)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    options = []
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
        options = ["-S"]
    command = [sys.executable, *options, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources so that nothing is written into the checkout."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    if find_spec("hatchling") and find_spec("build"):
        command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(output)]
    else:
        command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(output)]
    built = python(*command, str(source), cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(output.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("target")
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-index", "--target", str(target)]
    done = python(*command, str(wheel), cwd=target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_the_wheel_carries_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    assert {"diffusers_ref/py.typed", "conformance/py.typed"} <= names
    assert {f"conformance/suite/{name}" for name in ("__init__.py", "test_fixtures.py", "pytest.ini")} <= names
    for case in open_library().ids():
        assert {f"conformance/_fixtures/{case}.json", f"conformance/_fixtures/{case}.safetensors"} <= names
    assert not [name for name in names if name.startswith(("tests/", "fixtures/")) or "__pycache__" in name]


def test_the_installed_wheel_replays_its_own_fixtures(installed: Path, tmp_path: Path) -> None:
    packages = [Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())]
    path = [installed, *(folder for folder in packages if folder.is_dir())]

    asked = python("-m", "conformance", "list", "nothing", cwd=tmp_path, path=path)
    ran = python("-m", "conformance", "run", "ddim/ddim-uniform-2*", "--json", "report.json", cwd=tmp_path, path=path)

    assert asked.stderr == f"conformance: no fixture matches 'nothing' in {installed / 'conformance' / '_fixtures'}\n"
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [case["verdict"] for case in report["cases"]] == ["bitwise", "bitwise"]
