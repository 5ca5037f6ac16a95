"""A changed module is the real one while it lasts, and leaves nothing behind; code under test has a time limit."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

import conformance.audit.limit as limit
from conformance.audit.coverage import NOTE, with_notes
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
LOW = "audited_toy.low"


def low(level: str) -> dict[str, CodeType]:
    """The code of the module `low` with another LEVEL."""
    return {LOW: compile(FILES["low.py"].replace("LEVEL = 1", f"LEVEL = {level}"), "low.py", "exec")}


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
    with sandbox.changed(low("2")) as modules:
        new = modules["audited_toy.top"].Top
        assert (new.height, old.height) == (2, 1)
        assert package.Top is new  # also where others hold it
        assert sys.modules["audited_toy.low"].LEVEL == package.low.LEVEL == 2
        assert issubclass(new().lazy(), modules["audited_toy.low"].Low)


def test_everything_is_put_back(sandbox: Sandbox) -> None:
    package = sys.modules["audited_toy"]
    before, finders, attributes = dict(sys.modules), list(sys.meta_path), dict(vars(package))
    with sandbox.changed(low("2")) as modules:
        modules["audited_toy.top"].Top().lazy()  # imports `later`, which now holds changed classes
    assert {n: m for n, m in sys.modules.items() if n.startswith("audited_toy")} == {
        n: m for n, m in before.items() if n.startswith("audited_toy")
    }
    assert sys.meta_path == finders
    assert dict(vars(package)) == attributes
    assert sys.modules["audited_toy.other"].Held is sys.modules["audited_toy.low"].Low
    assert package.Top().lazy().__mro__[1] is sys.modules["audited_toy.low"].Low


def test_a_change_that_cannot_be_imported_is_put_back_too(sandbox: Sandbox) -> None:
    before = sys.modules["audited_toy.top"]
    with pytest.raises(ZeroDivisionError), sandbox.changed(low("1 / 0")):
        raise AssertionError("imported")
    assert sys.modules["audited_toy.top"] is before
    assert before.Top.height == 1


def test_nothing_is_written(sandbox: Sandbox, tmp_path: Path) -> None:
    with sandbox.changed(low("2")):
        pass
    assert {path.name for path in (tmp_path / "audited_toy").iterdir()} == set(FILES)
    assert (tmp_path / "audited_toy" / "low.py").read_text() == FILES["low.py"]


def test_a_module_without_source() -> None:
    with pytest.raises(ConformanceError, match="no Python source"):
        source_of(sys)


def test_executed_statements_are_noted_by_their_first_line() -> None:
    source = '''"""Text."""
from __future__ import annotations
def f(x):
    """Text of f."""
    if x:
        return g(
            x)
    elif x is None:
        x = 1
    else:
        x = 2
    for y in (1,):
        try:
            1 / 0
        except ZeroDivisionError:
            x += 1
        finally:
            z = 3
    match x:
        case 3:
            z = 4
    return x
def g(x): return [y for y in (x,)]
'''
    lines: set[int] = set()
    module = {NOTE: lines.add}
    exec(with_notes(source, "toy.py"), module)
    assert lines == set()  # what runs at import is executed by all
    f: Any = module["f"]
    assert (f(0), f.__doc__, module["__doc__"]) == (3, "Text of f.", "Text.")
    assert lines == {5, 8, 11, 12, 13, 14, 16, 18, 19, 21, 22}
    lines.clear()
    assert f(1) == [1]
    assert lines == {5, 6, 23}


def test_notes_are_taken_in_the_sandbox(sandbox: Sandbox) -> None:
    lines: set[int] = set()
    code = with_notes(FILES["low.py"], "low.py")
    with sandbox.changed({LOW: code}, {LOW: {NOTE: lines.add}}) as modules:
        assert lines == {4}  # `middle` calls it when it is imported
        assert not hasattr(modules["audited_toy.middle"], NOTE)


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


def test_what_waits_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "PATIENCE", 2)
    with pytest.raises(TooLong), time_limit(0.02):
        while True:
            time.sleep(0.001)


def test_a_busy_machine_makes_nothing_too_long() -> None:
    with time_limit(0.2):
        time.sleep(0.3)  # others compute meanwhile


def test_what_ends_in_time_is_not_interrupted_later() -> None:
    with time_limit(0.02):
        pass
    deadline = time.monotonic() + 0.06
    while time.monotonic() < deadline:
        pass
