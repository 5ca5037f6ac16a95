"""One test per class and contract of the implementation; what a class has nothing for is skipped with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def test_contract(held_contract: Callable[[], dict[str, object]]) -> None:
    result = held_contract()
    if result["status"] == "not applicable":
        pytest.skip(str(result["reason"]))
    if result["status"] == "failed":
        pytest.fail(f"{result['subject']}, {result['name']}: {result['reason']} [{result['example']}]", pytrace=False)
