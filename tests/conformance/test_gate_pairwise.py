"""The all-pairs cover: complete, small, and it learns what cannot stand together."""

from __future__ import annotations

from itertools import combinations

from conformance.gate.pairwise import Cover, Row

FACTORS = {"a": (0, 1, 2), "b": (0, 1), "c": (0, 1, 2, 3), "d": (0, 1), "e": (0, 1)}


def pairs(rows: list[Row]) -> set[frozenset[tuple[str, int]]]:
    return {frozenset(pair) for row in rows for pair in combinations(row.items(), 2)}


def all_pairs() -> set[frozenset[tuple[str, int]]]:
    cells = [[(name, value) for value in values] for name, values in FACTORS.items()]
    return {frozenset((a, b)) for one, other in combinations(cells, 2) for a in one for b in other}


def test_every_two_values_meet_in_far_fewer_rows_than_there_are() -> None:
    cover = Cover(FACTORS, lambda row: True)
    assert pairs(cover.rows) == all_pairs()
    assert len(cover.rows) <= 25  # of 96
    assert cover.failing == []


def test_the_plain_row_comes_first_and_then_each_value_alone() -> None:
    rows = Cover(FACTORS, lambda row: True).rows
    assert rows[0] == dict.fromkeys(FACTORS, 0)
    alone = [{name: value for name, value in row.items() if value} for row in rows[1:9]]
    assert alone == [{"a": 1}, {"a": 2}, {"b": 1}, {"c": 1}, {"c": 2}, {"c": 3}, {"d": 1}, {"e": 1}]


def test_a_forbidden_pair_is_found_once_and_everything_else_is_still_covered() -> None:
    cover = Cover(FACTORS, lambda row: not (row["a"] == 1 and row["d"] == 1))
    assert all_pairs() - pairs(cover.rows) == {frozenset((("a", 1), ("d", 1)))}
    assert cover.failing == [{"a": 1, "b": 0, "c": 0, "d": 1, "e": 0}]


def test_a_value_that_needs_another_one_is_covered_with_it() -> None:
    cover = Cover(FACTORS, lambda row: not (row["b"] == 1 and row["c"] == 0))  # b=1 needs c
    assert all_pairs() - pairs(cover.rows) == {frozenset((("b", 1), ("c", 0)))}
    assert cover.failing == [{"a": 0, "b": 1, "c": 0, "d": 0, "e": 0}]
    assert {"a": 0, "b": 1, "c": 1, "d": 0, "e": 0} in cover.rows  # as near to plain as it works


def test_a_value_that_never_works_costs_one_row() -> None:
    cover = Cover(FACTORS, lambda row: row["c"] != 3)
    assert all(row["c"] != 3 for row in cover.rows)
    assert cover.failing == [{"a": 0, "b": 0, "c": 3, "d": 0, "e": 0}]


def test_a_subject_that_never_works_has_no_rows() -> None:
    cover = Cover(FACTORS, lambda row: False)
    assert (cover.rows, cover.failing) == ([], [dict.fromkeys(FACTORS, 0)])


def test_the_same_cover_every_time() -> None:
    works = lambda row: (row["a"] + row["c"] + row["e"]) % 4 != 3
    assert Cover(FACTORS, works).rows == Cover(FACTORS, works).rows
