"""Running cases in parallel: forked processes that share what has been imported, each with one thread."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Task = TypeVar("Task")
MOST_WORKERS = 8

_work: Callable[[Any], Any] | None = None  # what forked processes inherit


def default_workers(device: str) -> int:
    """As many as this process has cores, at most eight; one where processes cannot be forked or share a device."""
    if device != "cpu" or not sys.platform.startswith("linux"):
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def in_parallel(work: Callable[[Task], Any], tasks: Sequence[Task], workers: int) -> Iterator[Any]:
    """`work(task)` for every task, in order. What goes back is pickled, tensors by value."""
    if workers <= 1 or len(tasks) <= 1:
        yield from map(work, tasks)
        return
    global _work
    _work = work
    try:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            yield from (pickle.loads(answer) for answer in pool.imap(_answer, tasks))
    finally:
        _work = None


def _answer(task: Any) -> bytes:
    assert _work is not None
    return pickle.dumps(_work(task))  # not torch's own pickling, which passes handles of shared memory
