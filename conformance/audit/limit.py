"""A limit on the time that code under test may take, on any platform and in any thread."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 50
"""How many times longer than its processor time a call may take by the clock, where many processes share a machine."""


class TooLong(BaseException):
    """The code ran longer than it was given. No Exception, so that what it interrupts does not take it for one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in this thread if the block takes more than `seconds` of processor time.

    The block may be interrupted anywhere in Python code (a call into C is waited for); its `finally` clauses run. Code
    that waits instead of computing is interrupted after PATIENCE times as long.
    """
    thread = threading.get_ident()
    lock = threading.Lock()
    over = threading.Event()
    fired = delivered = False
    by_processor, by_clock = time.process_time() + seconds, time.monotonic() + PATIENCE * seconds

    def watch() -> None:
        nonlocal fired
        while not over.wait(seconds / 20):
            if time.process_time() > by_processor or time.monotonic() > by_clock:
                with lock:
                    if not over.is_set():
                        fired = True
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooLong))
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except TooLong:
        delivered = True
        raise
    finally:
        with lock:
            over.set()
        if fired and not delivered:
            _wait_for_it()


def _wait_for_it() -> None:
    """Take an exception that was sent but has not arrived yet: withdrawn, it makes CPython 3.11 hang while tracing."""
    try:
        while True:
            time.sleep(0.001)
    except TooLong:
        pass
