"""A limit on the time that code under test may take, on any platform and in any thread."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class TooLong(BaseException):
    """The code ran longer than it was given. No Exception, so that what it interrupts does not take it for one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in this thread if the block takes longer than `seconds`; a call into C is waited for.

    The block may be interrupted anywhere; its `finally` clauses run.
    """
    thread = threading.get_ident()
    lock = threading.Lock()
    over = fired = delivered = False

    def stop() -> None:
        nonlocal fired
        with lock:
            if not over:
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooLong))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except TooLong:
        delivered = True
        raise
    finally:
        with lock:
            over = True
        timer.cancel()
        if fired and not delivered:
            _wait_for_it()


def _wait_for_it() -> None:
    """Take an exception that was sent but has not arrived yet: withdrawn, it makes CPython 3.11 hang while tracing."""
    try:
        while True:
            time.sleep(0.001)
    except TooLong:
        pass
