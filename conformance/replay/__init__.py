"""Replays: run an implementation on a fixture's inputs and noise, and compare with what the original computed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module

import torch

from conformance.compare import EMBEDDING, FLOAT64, Comparison, Policy, Verdict, worst
from conformance.errors import ConformanceError, Unsupported
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """Where and in what precision to replay."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, device: str = "cpu", dtype: str = "float32") -> Settings:
        """Validated settings.

        Raises:
            ConformanceError: an unknown dtype or device, or a device that this machine does not have.
        """
        if dtype not in DTYPES:
            raise ConformanceError(f"dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConformanceError(f"device {device!r} cannot be used on this machine: {reason}") from None
        return cls(device, DTYPES[dtype])

    @property
    def policy(self) -> Policy:
        return Policy.of(self.device, self.dtype)

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.dtype)


@dataclass(frozen=True)
class CaseResult:
    """The outcome of one fixture on one implementation."""

    id: str
    kind: str
    verdict: Verdict
    comparisons: list[Comparison] = field(default_factory=list)
    draws_match: bool | None = None
    seconds: float = 0.0
    message: str = ""

    @property
    def rho(self) -> float | None:
        """The largest parity ratio of the float32 comparisons."""
        return max((c.rho for c in self._in_float32), default=None)

    @property
    def max_error(self) -> float | None:
        """The largest relative error; that of the embedding, a table of its own, is left out."""
        return max((c.error for c in self.comparisons if c.output != EMBEDDING), default=None)

    @property
    def noise_floor(self) -> float | None:
        return max((c.floor for c in self._in_float32 if c.rho and c.output != EMBEDDING), default=None)

    @property
    def result_error(self) -> float | None:
        """How far the result of a sampler's whole run is from the original's, relative; None where it is not known."""
        return next((c.last for c in self.comparisons if c.output in ("sample", "result")), None)

    @property
    def _in_float32(self) -> list[Comparison]:
        return [c for c in self.comparisons if not c.output.endswith(FLOAT64)]

    @property
    def first_divergence(self) -> Comparison | None:
        """Where to look: times, then a step alone, then the whole run; a table only if nothing else differs."""
        divergent = [c for c in self.comparisons if not c.verdict.green]
        return next((c for c in divergent if c.level != "table"), divergent[0] if divergent else None)

    def to_dict(self) -> dict[str, object]:
        """The case as it stands in the JSON report; infinite figures become null."""
        first = self.first_divergence
        return {
            "id": self.id,
            "kind": self.kind,
            "verdict": self.verdict.value,
            "rho": _finite(self.rho),
            "max_error": _finite(self.max_error),
            "result_error": _finite(self.result_error),
            "noise_floor": _finite(self.noise_floor),
            "first_divergence": {"step": first.step, "tap": first.output} if first else None,
            "draws_match": self.draws_match,
            "seconds": round(self.seconds, 4),
            "message": self.message,
        }


def replay(fixture: Fixture, implementation: Implementation, settings: Settings) -> CaseResult:
    """Replay one fixture; whatever goes wrong inside the implementation becomes the verdict `unsupported` or `error`.

    Raises:
        FixtureError: the fixture itself is damaged.
    """
    compare = import_module(f"conformance.replay.{fixture.manifest.kind}").compare
    fixture.tensors  # noqa: B018 - a damaged fixture is our error, not the implementation's
    start = time.perf_counter()
    draws_match: bool | None = None
    comparisons: Sequence[Comparison] = ()
    message = ""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), as_recorded(fixture.manifest.environment.threads):
            comparisons, draws_match = compare(fixture, implementation, settings)
        verdict = worst(comparisons)
    except Unsupported as error:
        verdict, message = Verdict.UNSUPPORTED, str(error)
    except Exception as error:  # noqa: BLE001 - any failure of the code under test is a result, not a crash of the harness
        verdict, message = Verdict.ERROR, f"{type(error).__name__}: {error}"
    if draws_match is False and verdict in (Verdict.BITWISE, Verdict.EQUIVALENT):
        verdict = Verdict.DIVERGENT
    result = CaseResult(
        fixture.id,
        fixture.manifest.kind,
        verdict,
        list(comparisons),
        draws_match,
        time.perf_counter() - start,
        message,
    )
    return result if message else _explained(result)


@contextmanager
def as_recorded(threads: int) -> Iterator[None]:
    """Run torch as the recording did: with as many CPU threads (others sum in another order), and without TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.get_num_threads(), matmul.allow_tf32, cudnn.allow_tf32
    torch.set_num_threads(threads)
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        matmul.allow_tf32, cudnn.allow_tf32 = before[1:]


def _explained(result: CaseResult) -> CaseResult:
    """The result with a message that says what diverged first, and what else did."""
    first = result.first_divergence
    divergent = [c for c in result.comparisons if not c.verdict.green]
    divergent.sort(key=lambda c: c is not first)
    parts = []
    for comparison in divergent[:3]:
        at = "" if comparison.step is None else f" at step {comparison.step}"
        parts.append(f"{comparison.output}{at}: {comparison.detail}")
    if len(divergent) > 3:
        parts.append(f"and {len(divergent) - 3} more")
    if result.draws_match is False:
        parts.append("draws: the generator is not consumed as the original consumes it")
    return dataclasses.replace(result, message="; ".join(parts))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
