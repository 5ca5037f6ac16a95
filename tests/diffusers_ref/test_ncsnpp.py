"""NCSN++ and DDPM++: FIR filters, Fourier features, the levels of NCSN++ in both network classes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from diffusers_ref import NCSNppModel, UNet2DModel
from diffusers_ref.models.embeddings import GaussianFourierProjection
from diffusers_ref.models.fir import FirDownsample2D, FirDownsampleConv2D, FirUpsample2D, fir_kernel, upfirdn2d

SMALL = {"sample_size": 8, "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "fir": True}
SKIP_LEVELS = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": math.sqrt(2),
    "time_embedding_type": "fourier",
    "attention_head_dim": None,
}


def made(cls, **config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(**config).eval()


def images(size: int = 8, channels: int = 3) -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * channels * size * size).sin().reshape(2, channels, size, size)


@torch.no_grad()
def output(network, x, t) -> torch.Tensor:
    return network(x, t).sample


# --- FIR filters -----------------------------------------------------------------------------------------------------


def test_upfirdn_by_hand():
    x = torch.arange(1.0, 5.0).reshape(1, 1, 2, 2)
    kernel = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    # Zeros behind each pixel, one row and column of zeros around; convolution turns the filter round.
    spread = torch.zeros(6, 6)
    spread[1:5:2, 1:5:2] = x[0, 0]
    wanted = torch.zeros(5, 5)
    for i in range(5):
        for j in range(5):
            wanted[i, j] = (spread[i : i + 2, j : j + 2] * kernel.flip(0, 1)).sum()
    assert torch.equal(upfirdn2d(x, kernel, up=2, pad=(1, 1))[0, 0], wanted)
    assert torch.equal(upfirdn2d(x, kernel, up=2, down=3, pad=(1, 1))[0, 0], wanted[::3, ::3])
    assert torch.equal(upfirdn2d(x, kernel, up=2, pad=(0, -1))[0, 0], wanted[1:3, 1:3])


def test_filters_keep_constant_images_inside():
    kernel = fir_kernel((1, 3, 3, 1))
    assert kernel.dtype == torch.float32 and kernel.sum() == 1 and kernel[1, 1] == 9 / 64
    x = torch.ones(1, 2, 8, 8)
    assert torch.equal(FirDownsample2D()(x)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    assert torch.equal(FirUpsample2D()(x)[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    assert FirDownsampleConv2D(2, 5)(x).shape == (1, 5, 4, 4)


@pytest.mark.parametrize("taps", [(1, 1), (1, 2, 1), (1, 3, 3, 1), (1, 4, 6, 4, 1)])
def test_filters_of_other_lengths_halve_and_double(taps):
    x = images(6)
    assert FirDownsample2D(taps)(x).shape == (2, 3, 3, 3) and FirUpsample2D(taps)(x).shape == (2, 3, 12, 12)
    assert torch.allclose(FirUpsample2D(taps).double()(x.double()).float(), FirUpsample2D(taps)(x), atol=1e-6)


@pytest.mark.parametrize("taps", [(), (1,), (1, -1), ((1, 2), (3, 4))])
def test_filters_that_are_none(taps):
    with pytest.raises(ValueError, match="at least 2 taps whose sum is not 0"):
        fir_kernel(taps)


# --- the network -----------------------------------------------------------------------------------------------------


def test_fourier_features():
    projection = GaussianFourierProjection(2, scale=1.0)
    projection.weight.data = torch.tensor([0.25, 1.0])
    sigma = torch.tensor([math.e, 1.0])
    wanted = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert torch.allclose(projection(sigma), wanted, atol=1e-6)
    assert not projection.weight.requires_grad
    half = projection.half()(sigma)
    assert half.dtype == torch.float32 and torch.allclose(half, wanted, atol=1e-6)
    assert projection.double()(sigma).dtype == torch.float64


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": "output_skip", "progressive_input": "input_skip"},
        {"progressive": "output_skip", "progressive_input": "input_skip", "progressive_combine": "cat"},
        {"progressive_input": "residual", "fir_kernel": (1, 2, 1), "nonlinearity": "elu"},
        {"resblock_type": "ddpm", "resamp_with_conv": False, "skip_rescale": False},
        {"resblock_type": "ddpm", "fir": False, "norm_num_groups": 8, "nonlinearity": "lrelu"},
        {"ch_mult": (2,), "conditional": False},
    ],
)
def test_every_weight_has_an_effect_and_folders_come_back(options, tmp_path):
    network = made(NCSNppModel, **{**SMALL, **options})
    network(images(), 7.5).sample.square().mean().backward()
    silent = {
        name for name, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    assert all("time_emb_proj" in name for name in silent) and bool(silent) == (options.get("conditional") is False)

    network.save_pretrained(tmp_path)
    again = NCSNppModel.from_pretrained(tmp_path)
    assert again.config == network.config and torch.equal(output(again, images(), 7.5), output(network, images(), 7.5))


def test_the_output_is_divided_by_the_noise_level():
    plain, scaled = (made(NCSNppModel, **SMALL, scale_by_sigma=flag, num_scales=11) for flag in (False, True))
    sigma = 50.0 * (0.01 / 50.0) ** (3 / 10)
    x, label = images(), torch.tensor([3, 3])
    assert torch.allclose(output(scaled, x, label), output(plain, x, label) / sigma, rtol=1e-6)
    with pytest.raises(ValueError, match=r"one of 11 noise levels \(num_scales\), got \[11.0, 11.0\]"):
        scaled(x, 11.0)
    fourier = {**SMALL, "embedding_type": "fourier"}
    plain, scaled = (made(NCSNppModel, **fourier, scale_by_sigma=flag) for flag in (False, True))
    assert torch.equal(output(scaled, x, 0.25), output(plain, x, 0.25) * 4)


def test_images_from_zero_to_one_are_centred():
    x = images()
    plain, centred = (made(NCSNppModel, **SMALL, center_input_sample=flag) for flag in (False, True))
    assert torch.allclose(output(centred, (x + 1) / 2, 3), output(plain, x, 3), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progressive": "residual"}, "progressive: 'residual' is not supported; allowed: 'none', 'output_skip'"),
        ({"nonlinearity": "gelu"}, "nonlinearity: 'gelu' is not supported"),
        ({"resblock_type": "ddpm"}, "which the original cannot run; set one of fir and resamp_with_conv to False"),
        ({"sample_size": 7}, r"can be halved at each level but the last; got \(1, 2\), 1, 7"),
        ({"nf": 11}, r"11 channels cannot be normed in min\(channels // 4, 32\) = 2 groups"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        NCSNppModel(**{**SMALL, **options})


def test_wrong_calls():
    network = made(NCSNppModel, **SMALL)
    with pytest.raises(ValueError, match="this network is unconditional"):
        network(images(), 3, class_labels=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="multiples of 2 for a network of 2 levels, got 7 x 7"):
        network(images(7), 3)


# --- the levels that HF diffusers publishes --------------------------------------------------------------------------


def test_both_classes_compute_a_published_network():
    skip = made(UNet2DModel, **{**SKIP_LEVELS, "block_out_channels": (32, 128)})
    other = made(
        NCSNppModel,
        **{**SMALL, "nf": 32, "ch_mult": (1, 4), "progressive": "output_skip", "progressive_input": "input_skip"},
        embedding_type="fourier",
        scale_by_sigma=True,
    )
    other.load_state_dict(skip.state_dict())
    assert torch.equal(output(skip, images(), 2.0), output(other, images(), 2.0))


@pytest.mark.parametrize("double_times", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"time_embedding_type": "positional", "norm_num_groups": 16, "center_input_sample": True},
        {
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("SkipDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
            "norm_num_groups": 16,
        },
    ],
)
def test_folders_of_hf_diffusers_hold_the_same_network(options, double_times, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = made(diffusers.UNet2DModel, **{**SKIP_LEVELS, **options})
    theirs.save_pretrained(tmp_path / "theirs")
    ours = UNet2DModel.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in back.state_dict().items())

    x, t = images().double(), torch.tensor([0.5, 3.0], dtype=torch.float64 if double_times else torch.float32)
    wanted, found = output(theirs.double(), x, t), output(ours.double(), x, t)
    assert (found - wanted).norm() <= 1e-13 * wanted.norm()


def test_frequencies_of_files_of_2022(tmp_path):
    network = made(UNet2DModel, **SKIP_LEVELS)
    state = network.state_dict()
    old = {"time_proj.W" if key == "time_proj.weight" else key: value for key, value in state.items()}
    assert UNet2DModel.rename_keys(old).keys() == state.keys()
    assert UNet2DModel.rename_keys(state | {"time_proj.W": state["time_proj.weight"]}).keys() == state.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D"), "norm_num_groups": 16}, "of the highest resolutions"),
        ({"up_block_types": ("SkipUpBlock2D", "UpBlock2D"), "norm_num_groups": 16}, "of the highest resolutions"),
        ({"up_block_types": ("UpBlock2D", "SkipUpBlock2D")}, "norm_num_groups=None needs levels whose types begin"),
        ({"time_embedding_type": "learned"}, "'learned' is not supported; allowed: 'positional', 'fourier'"),
    ],
)
def test_refusals_of_levels(options, message):
    with pytest.raises(ValueError, match=message):
        UNet2DModel(**{**SKIP_LEVELS, **options})


def test_a_saved_network_names_its_class(tmp_path):
    made(NCSNppModel, **SMALL).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "NCSNppModel"
