"""A changed module is the real one while it lasts, and leaves nothing behind; code under test has a time limit."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from conformance.audit.coverage import executed_lines
from conformance.audit.limit import TooLong, time_limit
from conformance.audit.sandbox import Sandbox, source_of
from conformance.errors import ConformanceError

FILES = {
    "__init__.py": "from audited_toy.top import Top",
    "low.py": "LEVEL = 1\n\ndef level():\n    return LEVEL\n\nclass Low:\n    pass\n",
    "middle.py": "from .low import Low, level\n\nclass Middle(Low):\n    height = level()\n",
    "top.py": (
        "from audited_toy.other import COUNT\nfrom audited_toy.middle import Middle\n\nclass Top(Middle):\n"
        "    def lazy(self):\n        from audited_toy.later import Seen\n        return Seen\n"
    ),
    "other.py": "from audited_toy.low import Low as Held\n\nCOUNT = [0]\n",
    "later.py": "from audited_toy.low import Low\n\nclass Seen(Low):\n    pass\n",
    "apart.py": "import audited_toy.top\n",
}
CHANGED = FILES["low.py"].replace("LEVEL = 1", "LEVEL = 2")


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A package of modules that import each other; the audited class is in `top`."""
    folder = tmp_path / "audited_toy"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    __import__("audited_toy.apart")
    yield Sandbox(["audited_toy.top"])
    for name in [name for name in sys.modules if name.startswith("audited_toy")]:
        del sys.modules[name]


def test_affected_is_what_lies_between_the_change_and_the_class(sandbox: Sandbox) -> None:
    assert sandbox.affected("audited_toy.low") == [f"audited_toy.{name}" for name in ("low", "middle", "other", "top")]
    assert sandbox.affected("audited_toy.middle") == ["audited_toy.middle", "audited_toy.top"]
    assert sandbox.affected("audited_toy.apart") == []


def test_the_class_is_built_on_the_changed_module(sandbox: Sandbox) -> None:
    package = sys.modules["audited_toy"]
    old = package.Top
    with sandbox.changed("audited_toy.low", CHANGED) as modules:
        new = modules["audited_toy.top"].Top
        assert (new.height, old.height) == (2, 1)
        assert package.Top is new  # also where others hold it
        assert sys.modules["audited_toy.low"].LEVEL == package.low.LEVEL == 2
        assert issubclass(new().lazy(), modules["audited_toy.low"].Low)


def test_everything_is_put_back(sandbox: Sandbox) -> None:
    package = sys.modules["audited_toy"]
    before, finders, attributes = dict(sys.modules), list(sys.meta_path), dict(vars(package))
    with sandbox.changed("audited_toy.low", CHANGED) as modules:
        modules["audited_toy.top"].Top().lazy()  # imports `later`, which now holds changed classes
    assert {n: m for n, m in sys.modules.items() if n.startswith("audited_toy")} == {
        n: m for n, m in before.items() if n.startswith("audited_toy")
    }
    assert sys.meta_path == finders
    assert dict(vars(package)) == attributes
    assert sys.modules["audited_toy.other"].Held is sys.modules["audited_toy.low"].Low
    assert package.Top().lazy().__mro__[1] is sys.modules["audited_toy.low"].Low


@pytest.mark.parametrize("source", ["LEVEL = 1 / 0", "def f(:"])
def test_a_change_that_cannot_be_imported_is_put_back_too(sandbox: Sandbox, source: str) -> None:
    before = sys.modules["audited_toy.top"]
    with pytest.raises((ZeroDivisionError, SyntaxError)), sandbox.changed("audited_toy.low", source):
        raise AssertionError("imported")
    assert sys.modules["audited_toy.top"] is before
    assert before.Top.height == 1


def test_nothing_is_written(sandbox: Sandbox, tmp_path: Path) -> None:
    with sandbox.changed("audited_toy.low", CHANGED):
        pass
    assert {path.name for path in (tmp_path / "audited_toy").iterdir()} == set(FILES)
    assert (tmp_path / "audited_toy" / "low.py").read_text() == FILES["low.py"]


def test_a_module_without_source() -> None:
    with pytest.raises(ConformanceError, match="no Python source"):
        source_of(sys)


def test_lines_of_the_chosen_files_are_seen_and_others_are_not(sandbox: Sandbox) -> None:
    low, top = (sys.modules[f"audited_toy.{name}"] for name in ("low", "top"))
    result, lines = executed_lines(
        [low.__file__, top.__file__], lambda: (low.level(), sys.modules["audited_toy.other"])
    )
    assert result[0] == 1
    assert lines == {low.__file__: {3, 4}, top.__file__: set()}


def test_an_earlier_tracer_is_put_back() -> None:
    tracer: Callable[..., None] = lambda frame, event, argument: None
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        executed_lines([], lambda: None)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


def test_an_endless_loop_is_ended() -> None:
    ended = False
    with pytest.raises(TooLong), time_limit(0.05):
        try:
            while True:
                with suppress(Exception):
                    pass
        finally:
            ended = True
    assert ended


def test_lines_are_seen_after_an_interruption() -> None:
    with pytest.raises(TooLong), time_limit(0.02):
        while True:
            pass
    assert executed_lines([__file__], lambda: 1)[0] == 1


def test_what_ends_in_time_is_not_interrupted_later() -> None:
    with time_limit(0.02):
        pass
    deadline = time.monotonic() + 0.06
    while time.monotonic() < deadline:
        pass
