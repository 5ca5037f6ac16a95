"""Mutation operators: mutmut's, where they fit numerical code, and our own in the same form.

An operator is a function from a libcst node to the nodes that can stand in its place. It says nothing about where it
makes sense; `conformance.audit.noise` knows what is never mutated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import libcst as cst

from conformance.errors import ConformanceError

try:
    from mutmut.mutation.mutators import mutation_operators
except ImportError as error:
    raise ConformanceError(
        f"the mutation audit needs mutmut ({error}): pip install 'diffusers-ref[audit]', or 'mutmut>=3.8,<4'"
    ) from None

FROM_MUTMUT = (
    "operator_number",
    "operator_string",
    "operator_name",
    "operator_assignment",
    "operator_augmented_assignment",
    "operator_remove_unary_ops",
    "operator_arg_removal",
    "operator_dict_arguments",
    "operator_lambda",
    "operator_keywords",
    "operator_swap_op",
    "operator_match",
    "operator_if_exp",
)
"""What is taken over. Left out are swaps of string methods: schedulers compute with numbers."""

RELATIVE_STEP = 1e-5
"""By how much a float constant is moved: what a port with a rounded constant, or one in the wrong precision, is off."""

DROPPED_METHODS = frozenset(
    re.findall(
        r"\w+",
        """
        abs acos acosh asin asinh astype atan ceil clamp clip clone contiguous copy cos cosh cumprod cumsum diff double
        exp expand expm1 flatten flip float floor half int item log log1p log2 log10 long mean neg numpy permute pow
        prod reciprocal repeat reshape roll round rsqrt sigmoid sin sinh softmax sort sqrt square squeeze sum tan tanh
        to tolist transpose trunc unsqueeze view
        """,
    )
)
"""`x.sqrt()` becomes `x`, and `np.sqrt(x)` becomes `x`."""

DROPPED_FUNCTIONS = frozenset(
    ("abs", "ceil", "float", "floor", "int", "list", "max", "min", "reversed", "round", "set", "sorted", "tuple")
)
"""`int(x)` becomes `x`."""

SWAPPED_NAMES = {
    one: other
    for pair in (
        ("min", "max"),
        ("minimum", "maximum"),
        ("amin", "amax"),
        ("argmin", "argmax"),
        ("floor", "ceil"),
        ("sin", "cos"),
        ("cumsum", "cumprod"),
        ("zeros", "ones"),
        ("zeros_like", "ones_like"),
        ("float32", "float64"),
        ("float", "double"),
        ("any", "all"),
    )
    for one, other in (pair, pair[::-1])
}
"""Attributes that become another: `np.minimum` becomes `np.maximum`, `torch.float64` becomes `torch.float32`."""

SWAPPED_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Operator(NamedTuple):
    """`mutate(node)` yields replacements of a node of `kind`."""

    name: str
    kind: type
    mutate: Callable[[Any], Iterable[cst.CSTNode]]


@lru_cache(maxsize=1)
def operators() -> tuple[Operator, ...]:
    """All operators: mutmut's, then ours.

    Raises:
        ConformanceError: the installed mutmut does not have one of the expected operators.
    """
    theirs = {function.__name__: Operator(function.__name__, kind, function) for kind, function in mutation_operators}
    if missing := [name for name in FROM_MUTMUT if name not in theirs]:
        raise ConformanceError(f"the installed mutmut has no {', '.join(missing)}; allowed: mutmut>=3.8,<4")
    # One kind of node can have several entries of one name (assignments with and without annotation).
    taken = [Operator(f.__name__, kind, f) for kind, f in mutation_operators if f.__name__ in FROM_MUTMUT]
    return (*(_first_only(item) if item.name == "operator_string" else item for item in taken), *_OURS)


def _first_only(operator: Operator) -> Operator:
    """A string in another case is seen by whatever sees another string."""
    return operator._replace(mutate=lambda node: list(operator.mutate(node))[:1])


# --- our own ---------------------------------------------------------------------------------------------------------


def scale_float(node: cst.Float) -> Iterator[cst.BaseExpression]:
    """A float constant off by one part in 10⁵."""
    value = node.evaluated_value
    if value != 0:
        yield cst.Float(repr(value * (1 + RELATIVE_STEP)))


def swap_operands(node: cst.BinaryOperation) -> Iterator[cst.BaseExpression]:
    """a − b becomes b − a; likewise /, //, % and **."""
    ordered = (cst.Subtract, cst.Divide, cst.FloorDivide, cst.Modulo, cst.Power)
    if isinstance(node.operator, ordered) and not node.left.deep_equals(node.right):
        yield node.with_changes(left=_grouped(node.right), right=_grouped(node.left))


def reorder_sum(node: cst.BinaryOperation) -> Iterator[cst.BaseExpression]:
    """(a + b) + c becomes a + (b + c): another rounding."""
    left = node.left
    if not isinstance(left, cst.BinaryOperation):
        return
    if isinstance(node.operator, cst.Add) and isinstance(left.operator, cst.Add):
        yield node.with_changes(left=left.left, right=_grouped(node.with_changes(left=left.right)))


def shift_index(node: cst.Subscript) -> Iterator[cst.BaseExpression]:
    """x[i] becomes x[i + 1] (x[0] becomes x[-1]: other shifts of literals are mutmut's); bounds of slices likewise."""
    for position, element in enumerate(node.slice):
        for moved in _moved(element.slice):
            changed = element.with_changes(slice=moved)
            yield node.with_changes(slice=[*node.slice[:position], changed, *node.slice[position + 1 :]])


def _moved(index: cst.BaseSlice) -> Iterator[cst.BaseSlice]:
    if isinstance(index, cst.Index):
        if (value := _shifted(index.value)) is not None:
            yield index.with_changes(value=value)
    elif isinstance(index, cst.Slice):
        lower, upper = index.lower, index.upper
        if lower is None:
            yield index.with_changes(lower=cst.Integer("1"))
        elif (value := _shifted(lower)) is not None:
            yield index.with_changes(lower=value)
        if upper is None:
            yield index.with_changes(upper=cst.parse_expression("-1"))
        elif (value := _shifted(upper)) is not None:
            yield index.with_changes(upper=value)


def _shifted(value: cst.BaseExpression) -> cst.BaseExpression | None:
    if isinstance(value, cst.Integer):
        return cst.parse_expression(str(value.evaluated_value - 1))
    never = (cst.SimpleString, cst.FormattedString, cst.Tuple, cst.List, cst.Comparison, cst.ListComp, cst.Ellipsis)
    if isinstance(value, never) or (isinstance(value, cst.Name) and value.value == "None"):
        return None
    return cst.BinaryOperation(_grouped(value), cst.Add(), cst.Integer("1"))


def drop_call(node: cst.Call) -> Iterator[cst.BaseExpression]:
    """x.sqrt() and np.sqrt(x) become x, as does int(x)."""
    function, arguments = node.func, node.args
    first = arguments[0].value if arguments and not (arguments[0].keyword or arguments[0].star) else None
    if isinstance(function, cst.Attribute):
        of_module = isinstance(function.value, cst.Name) and function.value.value in ("np", "numpy", "torch", "math")
        receiver = first if of_module else function.value
        known = function.attr.value in DROPPED_METHODS
    else:
        receiver = first
        known = isinstance(function, cst.Name) and function.value in DROPPED_FUNCTIONS and len(arguments) == 1
    if known and receiver is not None:
        yield _grouped(receiver)


def swap_name(node: cst.Attribute) -> Iterator[cst.BaseExpression]:
    """np.minimum becomes np.maximum, torch.float64 becomes torch.float32; see `SWAPPED_NAMES`."""
    if other := SWAPPED_NAMES.get(node.attr.value):
        yield node.with_changes(attr=cst.Name(other))


def swap_function(node: cst.Call) -> Iterator[cst.BaseExpression]:
    """min(…) becomes max(…), any(…) becomes all(…)."""
    if isinstance(node.func, cst.Name) and (other := SWAPPED_FUNCTIONS.get(node.func.value)):
        yield node.with_changes(func=cst.Name(other))


def swap_bound(node: cst.Arg) -> Iterator[cst.Arg]:
    """clamp(min=0) becomes clamp(max=0)."""
    if node.keyword is not None and (other := {"min": "max", "max": "min"}.get(node.keyword.value)):
        yield node.with_changes(keyword=cst.Name(other))


def force_condition(node: cst.If | cst.While | cst.CompIf) -> Iterator[cst.CSTNode]:
    """A condition that is always, or never, true (a loop is never made endless)."""
    forced = ("False",) if isinstance(node, cst.While) else ("True", "False")
    for name in forced:
        yield node.with_changes(test=cst.Name(name))


def remove_statement(node: cst.Expr | cst.AugAssign) -> Iterator[cst.CSTNode]:
    """A call for its effect, or an update in place, becomes `pass`."""
    yield cst.Pass()


def remove_store(node: cst.Assign) -> Iterator[cst.CSTNode]:
    """`self.x = y` and `x[i] = y` become `pass`."""
    if all(isinstance(item.target, (cst.Attribute, cst.Subscript)) for item in node.targets):
        yield cst.Pass()


def _grouped(node: cst.BaseExpression) -> cst.BaseExpression:
    """The expression as an operand of anything: in parentheses, unless it is one word or has them."""
    if node.lpar or isinstance(node, (cst.Name, cst.Integer, cst.Float, cst.Call, cst.Attribute, cst.Subscript)):
        return node
    return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


_OURS = (
    Operator("scale_float", cst.Float, scale_float),
    Operator("swap_operands", cst.BinaryOperation, swap_operands),
    Operator("reorder_sum", cst.BinaryOperation, reorder_sum),
    Operator("shift_index", cst.Subscript, shift_index),
    Operator("drop_call", cst.Call, drop_call),
    Operator("swap_name", cst.Attribute, swap_name),
    Operator("swap_function", cst.Call, swap_function),
    Operator("swap_bound", cst.Arg, swap_bound),
    Operator("force_condition", cst.If, force_condition),
    Operator("force_condition", cst.While, force_condition),
    Operator("force_condition", cst.CompIf, force_condition),
    Operator("remove_statement", cst.Expr, remove_statement),
    Operator("remove_statement", cst.AugAssign, remove_statement),
    Operator("remove_store", cst.Assign, remove_store),
)
