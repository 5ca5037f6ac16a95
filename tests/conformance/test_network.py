"""The analytic network: live, sensitive to time, axes and signs, and the same in both precisions."""

from __future__ import annotations

import pytest
import torch

from conformance.network import AnalyticNetwork

NETWORK = AnalyticNetwork()
TIMES = (-1.0, 0.0, 13.5, 250.0, 999.0)


def sample(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 4, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alpha_bar(t: float) -> torch.Tensor:
    u = torch.tensor((t + 1.5) / 1000, dtype=torch.float64)
    return torch.exp(-0.1 * u - 9.95 * u * u)


def test_the_first_numbers_never_change() -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 2, 3, 2)

    expected = [-1.000928973636509, -0.7816337175322818, -0.686979781002708, -0.4922158162259293]
    # Library functions of other machines round the last bits differently.
    assert NETWORK(x, 500).reshape(-1)[:4].tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("t", TIMES)
def test_one_timestep_more_shows(t: float) -> None:
    x = sample()
    later = (NETWORK(x, t + 1) - NETWORK(x, t)).norm() / NETWORK(x, t).norm()

    assert later > 1e-4  # hundreds of times a float32 noise floor


def test_batch_entries_have_their_own_time() -> None:
    x = sample()
    together = NETWORK(x, torch.tensor([100, 900]))

    assert torch.equal(together, torch.cat([NETWORK(x[:1], 100), NETWORK(x[1:], 900)]))
    assert torch.equal(NETWORK(x, 100.0), NETWORK(x, torch.tensor([100, 100])))


@pytest.mark.parametrize("turn", [lambda x: x.transpose(2, 3), lambda x: x.flip(3), lambda x: x.flip(1), torch.neg])
def test_axes_order_and_sign_show(turn: object) -> None:
    x = sample(2, 3, 4, 4)
    turned = turn(NETWORK(turn(x), 500))  # type: ignore[operator]

    assert (turned - NETWORK(x, 500)).norm() / NETWORK(x, 500).norm() > 1e-2


@pytest.mark.parametrize("t", TIMES)
def test_x0_stays_mostly_within_the_range_of_images(t: float) -> None:
    mu = torch.where(torch.rand(64, 3, 4, 2, generator=torch.Generator().manual_seed(0)) < 0.5, -0.65, 0.65)
    a, b = alpha_bar(t).sqrt(), (1 - alpha_bar(t)).sqrt()
    x = a * mu + b * sample(64, 3, 4, 2)
    x0 = (x - b * NETWORK(x, t)) / a

    inside = (x0.abs() <= 1).double().mean()
    # At t = T − 1 the division by √ᾱ = 0.007 spreads the small coupling term far.
    assert inside > (0.85 if t < 900 else 0.05)
    assert x0.isfinite().all()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "previous_sample"])
@pytest.mark.parametrize("t", TIMES)
def test_float32_follows_float64(prediction: str, t: float) -> None:
    network = AnalyticNetwork(prediction=prediction)  # type: ignore[arg-type]
    x = sample()
    exact = network(x.float().double(), t)
    near = network(x.float(), t)

    assert near.dtype == torch.float32
    # 16 roundings; the division by √(1 − ᾱ) or √ᾱ magnifies them where the noise or the signal is small.
    a = float(alpha_bar(t))
    assert (near - exact).norm() / exact.norm() < 2**-20 / min(a, 1 - a) ** 0.5


def test_the_four_predictions_say_the_same() -> None:
    x, t = sample(), 400.0
    a, b = alpha_bar(t).sqrt(), (1 - alpha_bar(t)).sqrt()
    epsilon, x0, v = (AnalyticNetwork(prediction=p)(x, t) for p in ("epsilon", "sample", "v_prediction"))  # type: ignore[arg-type]

    assert torch.allclose(a * x0 + b * epsilon, x, rtol=0, atol=1e-12)
    assert torch.allclose(a * epsilon - b * x0, v, rtol=0, atol=1e-12)


def test_variances_take_as_many_channels_again() -> None:
    x = sample()
    learned, ranged = (AnalyticNetwork(variance=v)(x, 300.0) for v in ("learned", "learned_range"))  # type: ignore[arg-type]

    assert learned.shape == ranged.shape == (2, 6, 4, 2)
    assert torch.equal(learned[:, :3], NETWORK(x, 300.0))
    assert ranged[:, 3:].abs().max() <= 1
    assert -8 < learned[:, 3:].min() < learned[:, 3:].max() < -3  # log σ²


def test_a_rescaled_time_is_undone() -> None:
    x = sample()

    assert torch.equal(AnalyticNetwork(time_scale=0.25)(x, 100.0), NETWORK(x, 400.0))


def test_a_description_builds_the_same_network() -> None:
    network = AnalyticNetwork(4000, "sample", "learned", 0.25)

    assert AnalyticNetwork.from_dict(network.to_dict()) == network
