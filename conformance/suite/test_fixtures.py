"""One test per fixture: it passes if the replay is bitwise, equivalent, or waived with a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def test_fixture(fixture_id: str, replay_fixture: Callable[[str], dict[str, object]]) -> None:
    result = replay_fixture(fixture_id)
    if result["verdict"] not in ("bitwise", "equivalent", "waived"):
        pytest.fail(f"{fixture_id} is {result['verdict']}: {result['message']}", pytrace=False)
