"""Which combinations of options are tried: few configurations in which any two values of two options occur together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

Config = dict[str, Any]
Pair = tuple[tuple[str, Any], ...]
"""Two options with their values."""


def pairs_of(config: Config) -> set[Pair]:
    """Every two options of a configuration, with their values."""
    return set(combinations(config.items(), 2))


def pairwise(options: Mapping[str, tuple[Any, ...]], excluded: Callable[[Config], bool]) -> list[Config]:
    """Configurations of all options, in which every pair of values of two options occurs in at least one.

    options: option -> values. excluded: whether a configuration (also of a few options) must not be tried; pairs that
    are excluded do not occur. The same options give the same configurations, by a greedy choice.
    """
    names = list(options)
    places = {name: range(len(options[name])) for name in names}
    open_pairs = {
        (p, i, q, j)
        for (p, first), (q, second) in combinations(enumerate(names), 2)
        for i in places[first]
        for j in places[second]
        if not excluded({first: options[first][i], second: options[second][j]})
    }
    rows = []
    while open_pairs:
        row = _row(names, options, open_pairs, excluded)
        gone = {(p, row[p], q, row[q]) for p, q in combinations(sorted(row), 2)}
        if not gone & open_pairs:
            open_pairs.discard(min(open_pairs))  # a third option excludes it
            continue
        open_pairs -= gone
        rows.append({names[p]: options[names[p]][i] for p, i in sorted(row.items())})
    return rows


def _row(
    names: list[str],
    options: Mapping[str, tuple[Any, ...]],
    open_pairs: set[tuple[int, int, int, int]],
    excluded: Callable[[Config], bool],
) -> dict[int, int]:
    """One configuration, as place of option -> place of value, begun with the first open pair."""
    p, i, q, j = min(open_pairs)
    row = {p: i, q: j}
    for place, name in enumerate(names):
        if place in row:
            continue

        def newly_covered(value: int, place: int = place) -> int:
            return sum((min((place, value), other) + max((place, value), other)) in open_pairs for other in row.items())

        chosen = {names[at]: options[names[at]][value] for at, value in row.items()}
        values = [v for v in range(len(options[name])) if not excluded({**chosen, name: options[name][v]})]
        if values:
            row[place] = max(values, key=lambda value: (newly_covered(value), -value))
    return row
