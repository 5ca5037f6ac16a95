"""Recording a system: check the checkout, run the chosen cases, write the fixtures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from conformance.errors import ConformanceError
from conformance.fixture import write_fixture
from conformance.recorders import load_recorder
from conformance.recorders.checkout import inspect_checkout
from conformance.recorders.folder import CONTENT, inspect_folder


def record(
    system: str,
    source: Path,
    output: Path,
    select: tuple[str, ...] = (),
    tier: str = "default",
    allow_modified: bool = False,
) -> Iterator[Path]:
    """Record the cases of `system` from the checkout at `source`; yields each manifest's path as it is written.

    `system` is one of this package's, or the path of a recorder file.

    One thread is used, because torch networks are not bit-equal across thread counts.

    Raises:
        ConformanceError: unknown system, a checkout at another commit or with changes, a selection that matches
            nothing, an ill-conditioned case.
    """
    module = load_recorder(system)
    source = source.resolve()
    inspect = inspect_folder if module.ORIGINAL.commit.startswith(CONTENT) else inspect_checkout
    commit, modified = inspect(source, module.ORIGINAL, allow_modified)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    written = 0
    try:
        with module.original(source) as code, torch.no_grad():
            for case in module.cases(code):
                if case.tier != tier or (select and not any(fnmatchcase(case.name, pattern) for pattern in select)):
                    continue
                with redirect_stdout(sys.stderr):  # originals print
                    manifest, tensors = case.record(module.ORIGINAL, commit, modified)
                written += 1
                yield write_fixture(output, manifest, tensors)
    finally:
        torch.set_num_threads(threads)
    if not written:
        raise ConformanceError(f"no {tier} case of {system!r} matches {', '.join(select) or 'anything'}")
