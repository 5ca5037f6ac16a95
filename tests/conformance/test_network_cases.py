"""Recording a network, on a toy original: floors, the embedding of the times, integers that rounding decides."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from conformance.errors import ConformanceError
from conformance.recorders.checkout import Original
from conformance.recorders.network_cases import ModelCase, embedding_of, stable_integers
from conformance.recorders.networks import TorchNetwork

WIDTH = 8


def sinusoids(times: torch.Tensor) -> torch.Tensor:
    """As originals write it: float32 by name."""
    frequencies = torch.exp(torch.arange(WIDTH // 2, dtype=torch.float32) * -(math.log(10000) / (WIDTH // 2 - 1)))
    angles = times.float()[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = torch.nn.Linear(WIDTH, 3)
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        embedding = sinusoids(t).to(x.dtype)  # the lift of this original's oracle
        return self.conv(x + self.time(embedding)[:, :, None, None])


def toy(build: Any = Toy) -> TorchNetwork:
    return TorchNetwork(build, nullcontext, "conv", sinusoids)


TIMES = torch.tensor([3.0, 977.0])


def test_the_embedding_of_float64_times_is_exact() -> None:
    exact = toy().embedding(TIMES.double())

    assert exact.dtype == torch.float64
    for row, t in zip(exact, TIMES.tolist(), strict=True):
        angles = [t * 10000 ** (-k / 3) for k in range(4)]
        expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        assert row.tolist() == pytest.approx(expected, rel=0, abs=1e-12)
    assert toy().embedding(TIMES).dtype == torch.float32


def test_the_floor_of_an_embedding_is_an_ulp_of_the_time() -> None:
    tensors = embedding_of(toy(), torch.tensor([0.0, 3.0, 977.0]))

    assert torch.equal(tensors["embedding"], sinusoids(torch.tensor([0.0, 3.0, 977.0])))
    norm, element = tensors["embedding.floor"].T.tolist()
    assert norm[0] == element[0] == 2.0**-24  # nothing is rounded at 0
    assert 2.0**-24 < norm[1] < 2.0**-22
    assert 2.0**-16 < norm[2] < 2.0**-14  # an ulp of 977 is 2^-14


def test_a_given_embedding_takes_the_place_of_the_networks_own() -> None:
    network, x = toy(), torch.zeros(2, 3, 4, 4)

    assert torch.equal(network(x, TIMES, sinusoids(TIMES)), network(x, TIMES))
    assert torch.equal(network(x, TIMES, sinusoids(TIMES.flip(0))), network(x, TIMES.flip(0)))
    assert not torch.equal(network(x, TIMES), network(x, TIMES.flip(0)))


def test_a_network_that_reads_the_embedding_elsewhere_is_refused() -> None:
    class Other(Toy):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x + self.time(torch.zeros(1, WIDTH))[:, :, None, None]

    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ConformanceError, match=r"reads \(1, 8\), not the embedding of the times \(2, 8\)"):
        toy(Other)(x, TIMES, sinusoids(TIMES))
    with pytest.raises(ConformanceError, match="has no linear layer"):
        TorchNetwork(torch.nn.Identity, nullcontext, "", sinusoids, lambda module, x, t: x)(x, TIMES, sinusoids(TIMES))


def test_a_networks_floors_leave_the_time_out() -> None:
    case = ModelCase("toy", "a toy", "section 1", "someone/toy", {}, toy, (3, 4, 4), TIMES.tolist(), [], [], [])
    original = Original("toy", "someone/toy", "0" * 40, "MIT", "A Paper", "2010.02502")

    with torch.no_grad():
        manifest, tensors = case.record(original, original.commit, False)

    floors = {output.name: output.noise_floor for output in manifest.outputs}
    assert list(floors) == ["embedding", "tap:time", "tap:conv", "sample"]
    assert floors["embedding"] > 1e-5
    assert all(2.0**-24 <= floor < 1e-6 for name, floor in floors.items() if name != "embedding")
    assert torch.equal(tensors["embedding"], sinusoids(TIMES))
    assert torch.equal(tensors["embedding.f64"], toy().embedding(TIMES.double()))
    assert manifest.outputs[0].noise_floor == float(tensors["embedding.floor"][:, 0].max())


def test_integers_are_stable_unless_the_bound_crosses_an_edge() -> None:
    integers = lambda x: ((x + 1) * 127.5).clamp(0, 255).byte()
    y64 = torch.tensor([0.0, 0.5, 0.0 + 0.5 / 127.5, 1.0, -1.0], dtype=torch.float64)
    y32 = y64.float()
    # The third is at an edge of 128, where rounding decides; 1 and -1 are clamped, so that no rounding moves them.
    assert stable_integers(integers, y32, y64, 1e-7).tolist() == [127, 191, -1, 255, 0]
    moved = torch.where(y64 == 1, 1 - 2.0**-24, y64).float()
    assert stable_integers(integers, moved, y64, 1e-7).tolist() == [127, 191, -1, -1, 0]
    assert stable_integers(integers, y32 + 1e-4, y64, 1e-2).tolist() == [-1, -1, -1, -1, -1]
