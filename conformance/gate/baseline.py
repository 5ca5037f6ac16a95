"""The baseline: every output of a run, exactly, in one safetensors file with one metadata key that holds JSON.

Equal tensors are stored once, under a digest of their content; the JSON says which case's which output is which. The
same run on the same machine gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from conformance.errors import ConformanceError
from conformance.files import write_atomically
from conformance.gate.driver import Outcome

FORMAT = 1
KEY = "conformance_gate"


@dataclass(frozen=True)
class Case:
    """What one fixture or one probe gave.

    Attributes:
        outputs: by name, in the order of explanation; the name of an exception's type where one was raised.
        verdict: of a fixture's replay; empty for a probe.
        exact: names of outputs that must not change at all: tables, times, integers.
        cls, choices: of a probe.
    """

    outputs: dict[str, Outcome]
    verdict: str = ""
    exact: tuple[str, ...] = ()
    cls: str = ""
    choices: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """One run of the gate: what was run, where, and what came out."""

    implementation: str
    version: str
    device: str
    dtype: str
    select: tuple[str, ...]
    environment: dict[str, str]
    cases: dict[str, Case]

    def write(self, path: Path) -> None:
        """Write the file atomically. Raises ConformanceError if the folder does not exist or cannot be written."""
        from safetensors.torch import save

        tensors: dict[str, torch.Tensor] = {}
        header = {
            "format": FORMAT,
            "implementation": {"name": self.implementation, "version": self.version},
            "device": self.device,
            "dtype": self.dtype,
            "select": list(self.select),
            "environment": self.environment,
            "cases": {name: _pack(case, tensors) for name, case in sorted(self.cases.items())},
        }
        payload = save(dict(sorted(tensors.items())), {KEY: json.dumps(header, separators=(",", ":"))})
        write_atomically(path, payload)


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        ConformanceError: missing, damaged, no baseline, or of another format version.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise ConformanceError(f"baseline {path}: no such file; make it with --update, on the code before the change")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        header = json.loads(metadata[KEY]) if KEY in metadata else None
    except Exception as error:  # noqa: BLE001 - safetensors raises its own Rust error types for every kind of damage
        raise ConformanceError(f"baseline {path}: not a readable baseline: {error}") from None
    if header is None:
        raise ConformanceError(f"baseline {path}: a safetensors file, but not written by `conformance gate --update`")
    if header.get("format") != FORMAT:
        raise ConformanceError(f"baseline {path}: format {header.get('format')!r}; this version reads {FORMAT}")
    damaged = [name for name, tensor in tensors.items() if _digest(tensor) != name]
    if damaged:
        raise ConformanceError(
            f"baseline {path}: damaged: {len(damaged)} of {len(tensors)} tensors have other contents"
        )
    try:
        return Baseline(
            header["implementation"]["name"],
            header["implementation"]["version"],
            header["device"],
            header["dtype"],
            tuple(header["select"]),
            header["environment"],
            {name: _unpack(case, tensors) for name, case in header["cases"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ConformanceError(f"baseline {path}: damaged: {type(error).__name__}: {error}") from None


def _pack(case: Case, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    for name, value in case.outputs.items():
        if isinstance(value, torch.Tensor):
            tensor = value.detach().to("cpu").contiguous().clone()
            key = _digest(tensor)
            tensors[key] = tensor
            outputs[name] = key
        else:
            outputs[name] = {"raised": value}
    packed: dict[str, Any] = {"outputs": outputs}
    for name in ("verdict", "exact", "cls", "choices"):
        if value := getattr(case, name):
            packed[name] = value
    return packed


def _unpack(data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Case:
    outputs = {
        name: value["raised"] if isinstance(value, dict) else tensors[value] for name, value in data["outputs"].items()
    }
    rest = {name: value for name, value in data.items() if name != "outputs"}
    return Case(outputs, **{**rest, "exact": tuple(rest.get("exact", ()))})


def _digest(tensor: torch.Tensor) -> str:
    """32 hex digits of SHA-256 over dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    digest.update(raw(tensor).numpy().tobytes())
    return digest.hexdigest()[:32]


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """(n,) uint8: the bytes of a CPU tensor, row major."""
    return tensor.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)
