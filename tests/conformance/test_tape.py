"""The tape: recording, replaying and following random draws without leaving a trace in the global generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from conformance.fixture import Draw
from conformance.tape import MadeDraw, StreamCheck, draws_by_call, preparation, recorded_draws, replayed_draws


@pytest.fixture(autouse=True)
def global_state_is_untouched() -> Iterator[None]:
    torch.rand(3)
    before, functions = torch.get_rng_state(), (torch.randn, torch.randn_like)
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.randn, torch.randn_like) == functions


def draw(*shape: int, name: str = "noise_0") -> Draw:
    return Draw(name, list(shape), "float32")


# --- recording and replaying -----------------------------------------------------------------------------------------


def test_recorded_draws_are_those_of_the_seed() -> None:
    calls = 0
    with recorded_draws(7, lambda: calls) as log:
        first = torch.randn(2, 3)
        calls = 1
        second = torch.randn_like(first.double())
        calls = 3
        third = torch.randn([4], dtype=torch.float64)

    generator = torch.Generator().manual_seed(7)
    assert torch.equal(log.values[0], torch.randn(2, 3, generator=generator))
    assert (first.dtype, second.dtype, third.dtype) == (torch.float32, torch.float64, torch.float64)
    assert [tuple(value.shape) for value in log.values] == [(2, 3), (2, 3), (4,)]
    assert [(d.name, d.shape, d.dtype) for d in log.manifest()] == [
        ("initial", [2, 3], "float32"),
        ("noise_0", [2, 3], "float64"),
        ("noise_2", [4], "float64"),
    ]


def test_draws_before_the_first_call_are_x_t_and_preparation() -> None:
    with recorded_draws(0, lambda: 0) as log:
        torch.randn(2)
        added = torch.randn(2, dtype=torch.float64)

    assert [draw.name for draw in log.manifest()] == ["initial", "preparation"]
    assert log.stacked().dtype == torch.float64
    assert torch.equal(preparation(log.manifest(), log.values)[0], added)


def test_a_recorded_value_is_a_copy() -> None:
    with recorded_draws(0, lambda: 0) as log:
        x = torch.randn(3)
        kept = x.clone()
        x.zero_()

    assert torch.equal(log.values[0], kept)


def test_recording_ends_cleanly_when_the_original_fails() -> None:
    with pytest.raises(ZeroDivisionError), recorded_draws(0, lambda: 0):
        torch.randn(3)
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.randn(2, 3),
        lambda: torch.randn((2, 3)),
        lambda: torch.randn(torch.Size([2, 3])),
        lambda: torch.randn(size=(2, 3)),
        lambda: torch.randn([2, 3], generator=torch.Generator(), device="cpu"),
        lambda: torch.randn_like(torch.empty(2, 3)),
    ],
)
def test_every_way_to_ask_gets_the_recorded_value(ask: Callable[[], torch.Tensor]) -> None:
    value = torch.arange(6.0).reshape(2, 3)

    with replayed_draws([value]):
        assert torch.equal(ask(), value)


def test_replayed_values_come_in_order_and_in_the_dtype_asked_for() -> None:
    one, two = torch.ones(2), torch.full((2,), 2.0)

    with replayed_draws([one, two]):
        first, second = torch.randn(2), torch.randn(2, dtype=torch.float64)

    assert torch.equal(first, one)
    assert torch.equal(second, two.double())


def test_replayed_values_are_moved_to_the_device_asked_for() -> None:
    with replayed_draws([torch.ones(2)] * 3):
        devices = torch.randn(2).device, torch.randn(2, device="meta").device, torch.randn_like(torch.empty(2)).device

    assert [device.type for device in devices] == ["cpu", "meta", "cpu"]


def test_replayed_values_cannot_be_spoiled() -> None:
    value = torch.ones(2)
    with replayed_draws([value]):
        torch.randn(2).zero_()

    assert torch.equal(value, torch.ones(2))


def test_another_shape_is_an_error() -> None:
    with (
        replayed_draws([torch.ones(2, 3)]),
        pytest.raises(RuntimeError, match=r"asks for a draw of \(3, 2\), the tape holds \(2, 3\)"),
    ):
        torch.randn(3, 2)


def test_one_draw_too_many_is_an_error() -> None:
    with replayed_draws([torch.ones(1)]):
        torch.randn(1)
        with pytest.raises(RuntimeError, match=r"asks for a draw of \(1,\), the tape holds no more"):
            torch.randn(1)


def test_draws_are_sorted_by_the_call_before_them() -> None:
    draws = [draw(1, name="initial"), draw(1), draw(1, name="noise_2"), draw(1, name="noise_2")]
    values = [torch.full((1,), float(i)) for i in range(4)]

    assert [[float(v) for v in call] for call in draws_by_call(draws, values, 3)] == [[1.0], [], [2.0, 3.0]]


# --- following a generator -------------------------------------------------------------------------------------------


def test_a_run_that_draws_as_the_tape_says_passes() -> None:
    check = StreamCheck(5, [draw(2, 3), draw(20), draw(20)])

    torch.randn(2, 3, generator=check.generator)
    assert check.expect(1)
    torch.randn(20, generator=check.generator)
    torch.randn(20, generator=check.generator)
    assert check.expect(2)
    assert check.expect(0)


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param([[(2, 3)], []], id="a skipped draw"),
        pytest.param([[], [(2, 3), (20,)]], id="a draw too late"),
        pytest.param([[(2, 3)], [(20,), (20,)]], id="an extra draw"),
        pytest.param([[(2, 3)], [(21,)]], id="another shape"),
        pytest.param([[(20,)], [(2, 3)]], id="another order of shapes"),
    ],
)
def test_a_run_that_draws_otherwise_is_seen(shapes: list[list[tuple[int, ...]]]) -> None:
    check = StreamCheck(5, [draw(2, 3), draw(20)])

    matches = []
    for step in shapes:
        for shape in step:
            torch.randn(shape, generator=check.generator)
        matches.append(check.expect(1))

    assert not all(matches)


def test_another_seed_is_seen() -> None:
    check = StreamCheck(5, [draw(4)])
    check.generator.manual_seed(6)
    torch.randn(4, generator=check.generator)

    assert not check.expect(1)


def test_a_draw_that_is_made_by_other_means_is_on_the_tape_and_comes_from_there() -> None:
    def make() -> torch.Tensor:
        return torch.randn(3, generator=torch.Generator().manual_seed(9))  # not itself a draw of the run

    def run(make: Callable[[], torch.Tensor]) -> torch.Tensor:
        return torch.stack([torch.randn(3), torch.randn(3, generator=MadeDraw(make))])  # type: ignore[call-overload]

    with recorded_draws(1, lambda: 0) as log:
        first = run(make)
    with replayed_draws(log.values):
        again = run(lambda: pytest.fail("it is made while recording only"))

    assert len(log.values) == 2
    assert torch.equal(first[1], torch.randn(3, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(again, first)
