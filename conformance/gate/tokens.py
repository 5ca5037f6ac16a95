"""What schedulers over tokens are given: tokens, and logits in closed form."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from conformance.gate.driver import Run

LENGTH, VOCABULARY, MASK = 12, 5, 5


def is_token_scheduler(cls: type) -> bool:
    """Whether `step` takes tokens, by its annotation."""
    step = getattr(cls, "step", None)
    sample = inspect.signature(step).parameters.get("sample") if step is not None else None
    return sample is not None and "LongTensor" in str(sample.annotation)


class TokenModel:
    """Logits over a vocabulary of five for sequences (2, 12), from the tokens around and the time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.columns_first = "num_vec_classes" in inspect.signature(run.cls).parameters  # (B, V, L), log-probabilities
        self.masked = self.columns_first or "mask_token_id" in str(inspect.signature(run.cls)) + str(
            inspect.signature(run.cls.step)  # type: ignore[attr-defined]
        )

    def __call__(self, sample: torch.Tensor, t: Any) -> torch.Tensor:
        around = (sample + 2 * sample.roll(1, dims=-1)).to(self.run.dtype)[..., None]
        place = torch.arange(sample.shape[-1], dtype=self.run.dtype)[:, None]
        words = torch.arange(VOCABULARY, dtype=self.run.dtype)
        logits = 2.0 * torch.sin(1.3 * around + 0.7 * place * (words + 1) + 0.05 * float(t) + words)
        return logits.log_softmax(-1).transpose(1, 2) if self.columns_first else logits

    def initial(self, scheduler: Any) -> torch.Tensor:
        if self.masked:
            return torch.full((2, LENGTH), MASK)
        return torch.arange(2 * LENGTH).reshape(2, LENGTH) * 3 % VOCABULARY

    def extra(self, scheduler: Any, accepted: Mapping[str, Any], index: int) -> dict[str, Any]:
        return {"mask_token_id": MASK} if "mask_token_id" in accepted else {}
