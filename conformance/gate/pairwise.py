"""All-pairs covers: few rows of choices in which every two values of every two factors meet.

Each value is also tried alone, with everything else plain, so that what it does is not hidden by another one.

Values that cannot stand together are learned from the subject itself. A row that does not work is reduced to the
smallest combination that fails; rows that hold it are avoided from then on, and the combination is reported.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]
Cell = tuple[int, int]  # (factor, value) by position
ATTEMPTS = 12  # orders of factors that are tried before a row is filled with plain values


class Cover:
    """A greedy cover of `factors`.

    Args:
        factors: name -> values, the plain value first.
        works: whether a row, a complete choice, can be used; must be deterministic. It is asked once per row.

    Attributes:
        rows: working rows that cover all pairs that can be covered, in a deterministic order: the plain one, those
            with one other value, the rest.
        failing: rows that differ from the plain one in nothing but the combination that fails.
    """

    def __init__(self, factors: Mapping[str, Sequence[Any]], works: Callable[[Row], bool]) -> None:
        self._names = list(factors)
        self._values = [list(values) for values in factors.values()]
        self._works_by_cells: dict[tuple[int, ...], bool] = {}
        self._ask = works
        self._forbidden: dict[Cell, set[frozenset[Cell]]] = {}  # by each of their cells
        self.rows: list[Row] = []
        self.failing: list[Row] = []
        plain = (0,) * len(self._names)
        if not self._works(plain):
            self.failing.append(self._row(plain))
            return
        self.rows.append(self._row(plain))
        self._fill(plain)

    def _fill(self, plain: tuple[int, ...]) -> None:
        cells = [[(f, v) for v in range(len(values))] for f, values in enumerate(self._values)]
        uncovered = dict.fromkeys(
            (a, b) for one, other in combinations(cells, 2) for a in one for b in other
        )  # an ordered set
        self._strike(uncovered, plain)
        for factor, values in enumerate(self._values):
            for value in range(1, len(values)):
                self._try((*plain[:factor], value, *plain[factor + 1 :]), uncovered)
        while uncovered:
            pair = next(iter(uncovered))
            cells_of_row = self._complete(pair, uncovered)
            if cells_of_row is None:
                del uncovered[pair]
            else:
                self._try(cells_of_row, uncovered)

    def _try(self, row: tuple[int, ...], uncovered: dict[tuple[Cell, Cell], None]) -> None:
        """Keep a row if it works, else learn from it."""
        if self._works(row):
            if self._row(row) not in self.rows:
                self.rows.append(self._row(row))
            self._strike(uncovered, row)
        elif not any(self._is_forbidden(cell, dict(enumerate(row))) for cell in enumerate(row)):
            for near in self._learn(row):
                self._try(near, uncovered)

    def _complete(self, pair: tuple[Cell, Cell], uncovered: Mapping[tuple[Cell, Cell], None]) -> tuple[int, ...] | None:
        """A row with `pair` that covers many uncovered pairs and holds no forbidden combination, or None."""
        if any(self._is_forbidden(cell, dict(pair)) for cell in pair):
            return None
        for attempt in range(ATTEMPTS):
            order = list(range(len(self._values)))
            random.Random(attempt).shuffle(order)
            if (row := self._grow(dict(pair), order, uncovered)) is not None:
                return row
        return self._fallback(pair)

    def _grow(
        self, chosen: dict[int, int], order: Sequence[int], uncovered: Mapping[tuple[Cell, Cell], None]
    ) -> tuple[int, ...] | None:
        """Choose factor by factor what covers most; None at a dead end."""
        turn = len(self.rows)  # ties go to another value in each row
        for factor in order:
            if factor in chosen:
                continue
            best, gain = None, -1
            for offset in range(len(self._values[factor])):
                value = (turn + offset) % len(self._values[factor])
                new = sum(_ordered((factor, value), other) in uncovered for other in chosen.items())
                if new > gain and not self._is_forbidden((factor, value), chosen):
                    best, gain = value, new
            if best is None:
                return None
            chosen[factor] = best
        return self._with(chosen)

    def _fallback(self, pair: tuple[Cell, Cell]) -> tuple[int, ...] | None:
        """The pair with everything else plain, or as near to plain as the forbidden combinations let it be."""
        chosen = dict(pair)
        for factor, values in enumerate(self._values):
            if factor not in chosen:
                allowed = [v for v in range(len(values)) if not self._is_forbidden((factor, v), chosen)]
                if not allowed:
                    return None
                chosen[factor] = allowed[0]
        return tuple(chosen[factor] for factor in range(len(self._values)))

    def _learn(self, row: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Reduce a failing row and forbid what fails.

        Returns the plainest working rows with a value that does not work alone: for each other value that it needs.
        """
        kept = dict(enumerate(row))
        for factor, value in enumerate(row):
            plainer = {**kept, factor: 0}
            known = value != 0 and self._is_forbidden((factor, 0), plainer)  # that would fail for another reason
            if value != 0 and not known and not self._works(self._with(plainer)):
                kept = plainer
        minimal = self._with(kept)
        if self._row(minimal) not in self.failing:
            self.failing.append(self._row(minimal))
        others = {factor: value for factor, value in enumerate(minimal) if value != 0}
        # A plain value takes part in the failure where another value in its place works.
        also: dict[int, list[int]] = {}
        near = []
        for factor, values in enumerate(self._values):
            if minimal[factor] == 0:
                works = [self._works(self._with({**kept, factor: value})) for value in range(len(values))]
                if any(works):
                    also[factor] = [value for value, good in enumerate(works) if not good]
                    near.append(self._with({**kept, factor: works.index(True)}))
        plain = dict.fromkeys(also, 0)
        combinations_that_fail = [others | plain]
        combinations_that_fail += [others | plain | {f: value} for f, bad in also.items() for value in bad]
        for combination in combinations_that_fail:
            self._forbid(combination)
        if not any(self._is_forbidden(cell, dict(enumerate(row))) for cell in enumerate(row)):
            self._forbid(dict(enumerate(row)))  # it fails for other reasons, too
        return near if len(others) == 1 else []

    def _forbid(self, combination: Mapping[int, int]) -> None:
        cells = frozenset(combination.items())
        for cell in cells:
            self._forbidden.setdefault(cell, set()).add(cells)

    def _is_forbidden(self, cell: Cell, chosen: Mapping[int, int]) -> bool:
        """Whether `cell` together with what is chosen holds a forbidden combination."""
        return any(
            all(chosen.get(factor) == value for factor, value in cells if factor != cell[0])
            for cells in self._forbidden.get(cell, ())
        )

    def _works(self, cells: tuple[int, ...]) -> bool:
        if cells not in self._works_by_cells:
            self._works_by_cells[cells] = self._ask(self._row(cells))
        return self._works_by_cells[cells]

    def _with(self, chosen: Mapping[int, int]) -> tuple[int, ...]:
        return tuple(chosen[factor] for factor in range(len(self._values)))

    def _row(self, cells: Sequence[int]) -> Row:
        return {name: self._values[f][v] for f, (name, v) in enumerate(zip(self._names, cells, strict=True))}

    @staticmethod
    def _strike(uncovered: dict[tuple[Cell, Cell], None], row: Iterable[int]) -> None:
        for pair in combinations(enumerate(row), 2):
            uncovered.pop(pair, None)


def _ordered(a: Cell, b: Cell) -> tuple[Cell, Cell]:
    return (a, b) if a < b else (b, a)
