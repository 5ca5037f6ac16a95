"""The machine that a fixture is recorded on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import conformance
from conformance.fixture import Environment, Recorder

PACKAGES = ("torch", "numpy", "tensorflow-cpu", "safetensors")


def environment() -> Environment:
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return Environment(
        python=platform.python_version(),
        packages=packages,
        cpu=_cpu(),
        threads=torch.get_num_threads(),
        flags={
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "default_dtype": str(torch.get_default_dtype()),
        },
    )


def recorder(name: str) -> Recorder:
    return Recorder(name, conformance.__version__)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
