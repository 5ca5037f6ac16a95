"""What a check says: passed, failed with figures, or not applicable with a reason."""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass
from typing import Any

CONTRACT = "contract"


class Status(enum.Enum):
    """Outcome of one check."""

    PASSED = "passed"
    FAILED = "failed"
    WAIVED = "waived"
    """Failed, as an expectation with a reason says that it does."""
    NOT_APPLICABLE = "not applicable"
    """The subject has nothing that the check could look at; the reason says what is missing. Counted and shown."""


@dataclass(frozen=True)
class CheckResult:
    """One contract held against one subject.

    Attributes:
        name: of the contract, such as `batch_equals_singles`.
        subject: name of the class.
        status: the outcome.
        reason: what was wanted and what was found, or why the check does not apply; empty if it passed.
        example: the smallest configuration and inputs that show it, as `name=value` pairs.
        max_abs, max_rel, max_ulp: largest error, where the check compares tensors.
        index: where in the tensor the largest error is.
        step: the first step of the run that shows it.
        seconds: how long the check took.
    """

    name: str
    subject: str
    status: Status
    reason: str = ""
    example: str = ""
    max_abs: float | None = None
    max_rel: float | None = None
    max_ulp: float | None = None
    index: tuple[int, ...] | None = None
    step: int | None = None
    seconds: float = 0.0

    @property
    def id(self) -> str:
        """The name by which an expectation waives it: `contract/<subject>/<name>`."""
        return f"{CONTRACT}/{self.subject}/{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data; figures that are not finite become null."""
        data = asdict(self)
        for name in ("max_abs", "max_rel", "max_ulp"):
            if data[name] is not None and not math.isfinite(data[name]):
                data[name] = None
        return {**data, "status": self.status.value, "index": list(self.index) if self.index else None}


class Violation(AssertionError):  # noqa: N818 - what a contract raises is no malfunction
    """A contract does not hold. Raised by checks; carries the figures of `CheckResult`."""

    def __init__(self, reason: str, *, step: int | None = None, **figures: Any) -> None:
        super().__init__(reason)
        self.reason, self.step, self.figures = reason, step, figures


class NotApplicable(Exception):  # noqa: N818
    """The subject has nothing that this check could look at; the message says what is missing."""
