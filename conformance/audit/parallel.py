"""Judging many mutants, in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch

from conformance.audit.mutants import Mutant
from conformance.audit.session import Audit, Baseline, Request, Verdict


def judge_all(audit: Audit, mutants: Sequence[Mutant], seconds: Sequence[float], jobs: int = 1) -> Iterator[Verdict]:
    """The verdicts in the order of the mutants. Each process computes with one thread.

    Args:
        seconds: for each mutant, the time after which no further check is begun.
        jobs: number of processes; 1 works in this one.
    """
    if jobs == 1 or len(mutants) < 2:
        with _one_thread():
            yield from map(audit.judge, mutants, seconds)
        return
    context = multiprocessing.get_context("spawn")
    given = (audit.request, audit.baseline)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=given) as pool:
        yield from pool.map(_judge, mutants, seconds, chunksize=4)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_audit: Audit
"""The audit of a worker process."""


def _begin(request: Request, baseline: dict[tuple[int, int], Baseline]) -> None:
    global _audit
    torch.set_num_threads(1)
    _audit = Audit.of(request)
    _audit.adopt(baseline)


def _judge(mutant: Mutant, seconds: float) -> Verdict:
    return _audit.judge(mutant, seconds)
