"""The table of known causes, a file each (or several that share their trials), in the order in which they are tried."""

from __future__ import annotations

from conformance.explain.causes import (
    arithmetic,
    clipping,
    draws,
    eta,
    grid,
    guidance,
    index,
    last_level,
    network_time,
    previous_step,
    tables,
    variance,
)
from conformance.explain.trial import Cause

CAUSES: tuple[Cause, ...] = (
    *network_time.CAUSES,
    *grid.CAUSES,
    draws.CAUSE,
    *guidance.CAUSES,
    eta.CAUSE,
    clipping.CAUSE,
    previous_step.CAUSE,
    last_level.CAUSE,
    index.CAUSE,
    variance.CAUSE,
    arithmetic.CAUSE,
    tables.CAUSE,
)
