"""The table of known causes, one file each or a few that share their trials. Order is that of the report."""

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
    tables.CAUSE,
    index.CAUSE,
    last_level.CAUSE,
    previous_step.CAUSE,
    clipping.CAUSE,
    eta.CAUSE,
    variance.CAUSE,
    arithmetic.CAUSE,
    *guidance.CAUSES,
    draws.CAUSE,
)
