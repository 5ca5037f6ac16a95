"""Replays recordings of original paper code on an implementation: is it 1-to-1? If not, from which step on?"""

from __future__ import annotations

__version__ = "0.1.0"
