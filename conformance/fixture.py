"""The fixture format: one recorded run of an original, as a manifest (JSON) and its tensors (safetensors).

`<case>.json` holds provenance and the description of what to build; `<case>.safetensors` holds inputs, draws and
outputs. Parsing is strict: an unknown or missing key is an error that names it. Tensors are checked against the
SHA-256 of the file and of each tensor (safetensors itself loads flipped bits without complaint). Files are written
atomically.

Reading a manifest does not import torch; reading tensors does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from conformance.errors import FixtureError
from conformance.files import write_atomically

if TYPE_CHECKING:
    import torch

FORMAT = 1
KINDS = ("scheduler", "model", "pipeline")
TIERS = ("default", "full", "hub")


@dataclass(frozen=True)
class Paper:
    """Where the algorithm is published: title, arXiv number, and the algorithm or equations that the case runs."""

    title: str
    arxiv: str
    location: str


@dataclass(frozen=True)
class Reference:
    """The original code: repository, commit, licence, functions that ran, and every change made to it at run time."""

    repository: str
    commit: str
    modified: bool  # True: recorded from a checkout that was dirty or at another commit, by explicit request.
    licence: str
    functions: list[str]
    changes: list[str]
    lifted: list[str]  # float32 casts of the original that the float64 oracle lifts
    float32_parts: list[str]  # what stays float32 in the oracle too, because it is part of the definition


@dataclass(frozen=True)
class Recorder:
    name: str
    version: str


@dataclass(frozen=True)
class Environment:
    """The machine that recorded the case."""

    python: str
    packages: dict[str, str]
    cpu: str
    threads: int
    flags: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What to build and how to call it, in API terms.

    kind `scheduler`: `cls`, `config`, `set_timesteps`, `step` (keyword arguments) and the analytic `network`.
    kind `model`: `cls`, `original` (checkpoint format) and `config` (the original's own configuration), `call`.
    kind `pipeline`: `cls`, `original`, `config`, `checkpoint` (form of the original file), `call`, and `scheduler`:
    options that the original's command line chooses beside its configuration.
    """

    cls: str
    config: dict[str, Any]
    original: str | None = None
    checkpoint: str | None = None
    network: dict[str, Any] | None = None
    set_timesteps: dict[str, Any] | None = None
    step: dict[str, Any] | None = None
    call: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None


@dataclass(frozen=True)
class Weights:
    """Synthetic weights: the rule, its seed, and which parameters are stored as tensors `weights.<name>` instead."""

    rule: str
    seed: int
    overrides: list[str]


@dataclass(frozen=True)
class Draw:
    """One random draw of the original, in order. Its values are row `index` of the tensor `draws.<group>`."""

    name: str
    shape: list[int]
    dtype: str


@dataclass(frozen=True)
class Tape:
    seed: int
    generator: str
    draws: list[Draw]


@dataclass(frozen=True)
class Output:
    """One recorded output. `noise_floor` (by norm) and `noise_floor_max` (by element) are the largest over its steps.

    level `table`: part of the definition, compared exactly; `step`: one row per network evaluation; `tap`: sketches
    of a module's output; `final`: what the original returns.
    """

    name: str
    level: Literal["table", "step", "tap", "final"]
    noise_floor: float
    noise_floor_max: float


@dataclass(frozen=True)
class TensorFile:
    file: str
    sha256: str
    entries: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """Everything about a fixture except its tensors."""

    format: int
    id: str
    kind: Literal["scheduler", "model", "pipeline"]
    tier: Literal["default", "full", "hub"]
    title: str
    paper: Paper
    reference: Reference
    recorder: Recorder
    environment: Environment
    subject: Subject
    weights: Weights | None
    tape: Tape
    outputs: list[Output]
    repeatable: bool
    float64_tolerance: float
    information: dict[str, float]
    tensors: TensorFile

    @property
    def system(self) -> str:
        return self.id.split("/", 1)[0]

    def output(self, name: str) -> Output:
        """The declared output `name`."""
        return next(output for output in self.outputs if output.name == name)


@dataclass(frozen=True)
class Fixture:
    """A manifest with the folder it lies in; tensors are read, and checked, on first use."""

    manifest: Manifest
    path: Path
    _tensors: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, checked against the manifest's hashes.

        Raises:
            FixtureError: the file is missing, truncated, or a hash differs; names the file, what was expected and
                found.
        """
        if not self._tensors:
            self._tensors.update(_read_tensors(self.path.parent / self.manifest.tensors.file, self.manifest.tensors))
        return self._tensors


def read_manifest(path: Path) -> Manifest:
    """Parse `<case>.json`.

    Raises:
        FixtureError: no such file, not JSON, an unknown format version, or an unknown, missing or mistyped key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FixtureError(f"{path}: no such fixture manifest") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FixtureError(f"{path}: not a JSON manifest ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise FixtureError(f"{path}: fixture format {found!r}; this version reads format {FORMAT}")
    manifest: Manifest = _parse(Manifest, data, str(path))
    if manifest.tensors.file != f"{path.stem}.safetensors":
        raise FixtureError(f"{path}: tensors: file: {manifest.tensors.file!r}; allowed: '{path.stem}.safetensors'")
    return manifest


def read_fixture(path: Path) -> Fixture:
    """The fixture whose manifest is `path`; its tensors are read when asked for."""
    return Fixture(read_manifest(path), path)


def write_fixture(folder: Path, manifest: Manifest, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a fixture under `folder/<system>/`, each file atomically, tensors first; returns the manifest's path.

    The manifest's `tensors` entry is filled in here. A reader never sees a manifest without its tensors, and a write
    that is interrupted by an exception leaves an earlier fixture as it was.
    """
    from safetensors.torch import save

    path = folder / f"{manifest.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in sorted(tensors.items())}
    payload = save(tensors)
    tensor_file = TensorFile(
        file=f"{path.stem}.safetensors",
        sha256=hashlib.sha256(payload).hexdigest(),
        entries={name: tensor_digest(name, tensor) for name, tensor in tensors.items()},
    )
    manifest = dataclasses.replace(manifest, tensors=tensor_file)
    text = to_json(dataclasses.asdict(manifest)) + "\n"
    tensors_path = path.parent / tensor_file.file
    previous = tensors_path.read_bytes() if tensors_path.exists() else None
    write_atomically(tensors_path, payload)
    try:
        write_atomically(path, text)
    except BaseException:  # the earlier manifest stands, so the earlier tensors must
        if previous is None:
            tensors_path.unlink()
        else:
            write_atomically(tensors_path, previous)
        raise
    return path


def to_json(data: dict[str, Any]) -> str:
    """Indented JSON in which short lists, and short objects without objects inside, stand on one line."""

    def on_one_line(match: re.Match[str]) -> str:
        line = re.sub(r"\n *", " ", match.group())
        return line if len(line) <= 120 else match.group()

    text = json.dumps(data, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[^\[\]{}]*\]", on_one_line, text)
    return re.sub(r"\{[^{}]*\}", on_one_line, text)


def tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """SHA-256 over name, dtype, shape and bytes (little endian, row major) of a CPU tensor."""
    digest = hashlib.sha256(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_tensors(path: Path, expected: TensorFile) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        raise FixtureError(f"{path}: tensors are missing (expected sha256 {expected.sha256[:16]}…)") from None
    found = hashlib.sha256(payload).hexdigest()
    tensors: dict[str, torch.Tensor] = {}
    try:
        tensors = load(payload)
    except Exception as error:  # noqa: BLE001 - safetensors raises its own Rust error types for every kind of damage
        raise FixtureError(f"{path}: not a readable safetensors file ({len(payload)} bytes): {error}") from None
    damaged = [name for name, tensor in tensors.items() if expected.entries.get(name) != tensor_digest(name, tensor)]
    missing = sorted(set(expected.entries) - set(tensors))
    if damaged or missing:
        raise FixtureError(f"{path}: tensors differ from the manifest: changed {damaged[:5]}, missing {missing[:5]}")
    if found != expected.sha256:
        raise FixtureError(f"{path}: sha256 is {found}, the manifest says {expected.sha256}")
    return tensors


def _parse(kind: Any, value: Any, *where: str) -> Any:
    """Build the dataclass tree `kind` from JSON data, strictly; `where` locates a mistake."""
    if kind is Any:
        return value
    if isinstance(kind, type) and not dataclasses.is_dataclass(kind):
        accepted, wanted = ((int, float), "a number") if kind is float else (kind, kind.__name__)
        _require(isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)), wanted, value, where)
        return float(value) if kind is float else value
    if isinstance(kind, type):
        _require(isinstance(value, dict), "an object", value, where)
        hints, required = _fields(typing.cast(Any, kind))
        if unknown := sorted(value.keys() - hints.keys()):
            raise _error(f"unknown key {unknown[0]!r}; allowed: {', '.join(sorted(hints))}", where)
        if missing := sorted(required - value.keys()):
            raise _error(f"missing key {missing[0]!r}", where)
        return kind(**{name: _parse(hints[name], item, *where, name) for name, item in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise _error(f"{value!r} is not one of {', '.join(map(repr, arguments))}", where)
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _parse(arguments[0], value, *where)
    _require(isinstance(value, origin), "a list" if origin is list else "an object", value, where)
    if origin is list:
        return [_parse(arguments[0], item, *where, f"[{i}]") for i, item in enumerate(value)]
    return {name: _parse(arguments[1], item, *where, name) for name, item in value.items()}


@lru_cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Type hints of a dataclass, and the fields without a default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    required = {f.name for f in fields if f.default is missing and f.default_factory is missing}
    return typing.get_type_hints(kind), frozenset(required)


def _require(condition: bool, wanted: str, value: Any, where: tuple[str, ...]) -> None:
    if not condition:
        raise _error(f"expected {wanted}, found {type(value).__name__}", where)


def _error(message: str, where: tuple[str, ...]) -> FixtureError:
    return FixtureError(f"{': '.join(where).replace(': [', '[')}: {message}")
