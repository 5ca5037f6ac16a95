"""Replays recordings of original paper code on an implementation and says, per step and per module, whether it is 1-to-1."""

from __future__ import annotations

__version__ = "0.1.0"
