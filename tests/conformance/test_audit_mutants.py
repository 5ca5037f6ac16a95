"""Mutants of a source text: what each operator makes, what is left alone, and where a mutant says it is."""

from __future__ import annotations

import ast
import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

import diffusers_ref.schedulers.chain
from conformance.audit.mutants import Mutant, mutants_of
from conformance.errors import ConformanceError


def mutants(source: str, root: str | None = None) -> list[Mutant]:
    return mutants_of(source, "toy", "toy.py", root)


def changes(source: str, operator: str | None = None) -> list[str]:
    """What the mutants of a text make of it."""
    return [m.after for m in mutants(source) if operator in (None, m.operator)]


@pytest.mark.parametrize(
    ("operator", "source", "wanted"),
    [
        ("operator_number", "x = y[2]", ["x = y[3]"]),
        ("operator_swap_op", "x = a * b < c", ["x = a / b < c", "x = a * b <= c"]),
        ("operator_keywords", "x = a is b", ["x = a is not b"]),
        ("operator_name", "x = f(True)", ["x = f(False)"]),
        ("operator_string", "x = f('leading')", ["x = f('XXleadingXX')"]),
        ("operator_arg_removal", "x = f(a, b=c)", ["x = f(None, b=c)", "x = f(a, b=None)", "x = f(b=c)", "x = f(a, )"]),
        ("operator_if_exp", "x = a if b else c", ["x = a if (b) and False else c", "x = a if (b) or True else c"]),
        ("operator_assignment", "x = a", ["x = None"]),
        ("scale_float", "x = f(0.5, 0.0)", ["x = f(0.500005, 0.0)"]),
        ("swap_operands", "x = a - b * c", ["x = (b * c) - a"]),
        ("swap_operands", "x = a * b / (c + d)", ["x = (c + d) / (a * b)"]),
        ("swap_operands", "x = (a - b).sqrt()", ["x = (b - a).sqrt()"]),
        ("reorder_sum", "x = a + b + c * d", ["x = a + (b + c * d)"]),
        ("shift_index", "x = a[i]", ["x = a[i + 1]"]),
        ("shift_index", "x = a[0]", ["x = a[-1]"]),
        ("shift_index", "x = a[:-1]", ["x = a[1:-1]", "x = a[:(-1) + 1]"]),
        ("shift_index", "x = a[i:, None]", ["x = a[i + 1:, None]", "x = a[i:-1, None]"]),
        ("shift_index", "x = a['key']", []),
        ("drop_call", "x = (a + b).sqrt()", ["x = (a + b)"]),
        ("drop_call", "x = np.sqrt(a + b) * c", ["x = (a + b) * c"]),
        ("drop_call", "x = int(a)", ["x = a"]),
        ("drop_call", "x = a.clamp(min=0).float()", ["x = a.clamp(min=0)", "x = a.float()"]),
        ("drop_call", "x = a.other()", []),
        ("swap_name", "x = torch.float64", ["x = torch.float32"]),
        ("swap_name", "x = np.minimum(a, b)", ["x = np.maximum(a, b)"]),
        ("swap_function", "x = max(a, b)", ["x = min(a, b)"]),
        ("swap_bound", "x = a.clamp(min=0)", ["x = a.clamp(max=0)"]),
        ("force_condition", "if a:\n    b()", ["if True:", "if False:"]),
        ("force_condition", "while a:\n    b()", ["while False:"]),
        ("remove_statement", "f(x)", ["pass"]),
        ("remove_statement", "x += 1", ["pass"]),
        ("remove_store", "self.x = y", ["pass"]),
        ("remove_store", "x = y", []),
    ],
)  # fmt: skip
def test_an_operator(operator: str, source: str, wanted: list[str]) -> None:
    assert changes(source, operator) == wanted


@pytest.mark.parametrize(
    "source",
    [
        '"""Text 1 + 1."""',
        "def f(x: int | float = y) -> Tensor[1]: ...",
        "@decorated(frozen=True)\nclass A: ...",
        "import a.b\nfrom c import d",
        "raise ValueError(f'{1 + 1}')",
        "if TYPE_CHECKING:\n    x = 1",
        "assert x == 1, 'text'",
        "Time = int | float",
        "Name = Literal['a', 'b']",
        "Self = TypeVar('Self', bound='A')",
        "__all__ = ['a']",
        "class Stage(Enum):\n    FIRST = 'text'",
        "logger.warning('text', 1)",
        "warnings.warn('text')",
    ],
)
def test_what_no_number_depends_on_is_left_alone(source: str) -> None:
    assert mutants(source) == []


def test_what_is_refused_is_behaviour_and_how_it_is_said_is_not() -> None:
    source = """
def check(values):
    if values[0] < 1:
        first = _abridged(values[2:5])
        raise ValueError(f"not allowed: {first}")

def _abridged(values):
    return ", ".join(map(str, values))
"""
    assert {m.line for m in mutants(source)} == {3}
    assert "if values[0] <= 1:" in changes(source)


def test_values_of_enums_that_are_strings_are_behaviour() -> None:
    assert "LINEAR = 'XXlinearXX'" in changes("class Schedule(str, Enum):\n    LINEAR = 'linear'")


def test_lengths_that_zip_asserts_are_no_behaviour() -> None:
    assert changes("x = zip(a, b, strict=True)", "operator_arg_removal") == [
        "x = zip(None, b, strict=True)",
        "x = zip(a, None, strict=True)",
        "x = zip(b, strict=True)",
        "x = zip(a, strict=True)",
    ]


def test_only_what_the_class_uses_of_its_module() -> None:
    source = "A = 1\nB = 2\ndef one(): return -A\nclass Main:\n    x = one()\nclass Other:\n    x = 3\n"
    assert {m.line for m in mutants(source, "Main")} == {1, 3, 5}
    with pytest.raises(KeyError, match="Absent"):
        mutants(source, "Absent")


def test_a_mutant_says_where_it_is_and_when_it_runs() -> None:
    source = "A = 0.5\n\nclass B:\n    c = 2\n\n    def d(self, e=3):\n        return f(\n            4,\n        )\n"
    found = {m.before: m for m in mutants(source) if m.operator == "operator_number"}
    assert [(m.line, m.function, m.lines, m.at_import) for m in found.values()] == [
        (1, "", (1, 1), True),
        (4, "B", (4, 4), True),
        (6, "B", (6, 6), True),  # a default is evaluated at import
        (8, "B.d", (7, 9), False),
    ]
    assert found["c = 2"].source(source) == source.replace("c = 2", "c = 3")
    assert str(found["c = 2"]) == "toy.py:4"


def test_every_mutant_of_a_scheduler_compiles_and_is_another_program() -> None:
    path = Path(diffusers_ref.schedulers.chain.__file__)
    source = path.read_text(encoding="utf-8")
    found = mutants_of(source, "chain", str(path))
    assert len(found) > 150
    original = ast.dump(ast.parse(source))
    texts = [m.source(source) for m in found]
    assert len(set(texts)) == len(texts)
    for text in texts[::25]:
        assert ast.dump(ast.parse(text)) != original


def test_characters_beyond_ascii_do_not_move_the_change() -> None:
    assert mutants('x = f("β̃ ≤ 1")  # ᾱ\ny = 1\n')[-1].source('x = f("β̃ ≤ 1")  # ᾱ\ny = 1\n').endswith("\ny = 2\n")


def test_source_that_does_not_parse() -> None:
    with pytest.raises(SyntaxError, match=r"toy\.py"):
        mutants("def f(:")


def test_without_mutmut_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("mutmut"):
            raise ImportError("No module named 'mutmut'")
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "conformance.audit.operators")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConformanceError, match="pip install"):
        import conformance.audit.operators  # noqa: F401
