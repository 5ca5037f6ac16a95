"""Settings of every test run."""

from __future__ import annotations

import os

# Before torch is imported: with one worker a core, more threads only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
