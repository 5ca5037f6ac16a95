"""How much noise a step adds: β_t or β̃_t, and whether the last step adds any."""

from __future__ import annotations

from collections.abc import Iterator

from conformance.explain.state import State
from conformance.explain.textbook import reproductions
from conformance.explain.trial import Cause, Trial


def trials(state: State) -> Iterator[Trial]:
    if state.fixture.manifest.subject.cls != "DDPMScheduler" or not state.at("step", "sample"):
        return
    yield from reproductions(
        state,
        ("the noise has variance β_t, the original's β̃_t", "with variance β_t", {"large": True}),
        ("the noise has variance β̃_t, the original's β_t", "with variance β̃_t", {"large": False}),
        ("the last step adds noise", "with noise in the last step", {"noise_at_end": True}),
    )


CAUSE = Cause("variance of the noise", trials)
