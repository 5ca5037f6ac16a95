"""Which lines of a few files a call executes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")


def executed_lines(files: Collection[str], call: Callable[[], Result]) -> tuple[Result, dict[str, set[int]]]:
    """The result of `call()`, and the lines of `files` (paths as in `__code__.co_filename`) that it executed.

    Functions of other files are not traced, so that a call is hardly slower. A tracer that was there before (a
    debugger's, coverage's) is put back.
    """
    lines: dict[str, set[int]] = {file: set() for file in files}

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        seen = lines.get(frame.f_code.co_filename)
        if seen is None:
            return None

        def on_line(frame: FrameType, event: str, argument: Any) -> Any:
            seen.add(frame.f_lineno)
            return on_line

        seen.add(frame.f_lineno)
        return on_line

    before, before_in_threads = sys.gettrace(), threading.gettrace()
    threading.settrace(on_call)
    sys.settrace(on_call)
    try:
        return call(), lines
    finally:
        sys.settrace(before)
        threading.settrace(before_in_threads)  # type: ignore[arg-type]
