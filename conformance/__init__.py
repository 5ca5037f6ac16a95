"""Replays recordings of original paper code on an implementation: is it 1-to-1, and if not, from which step and module?"""

from __future__ import annotations

__version__ = "0.1.0"
