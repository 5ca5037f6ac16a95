from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import UNET_CONFIG, tiny_unet

from diffusers_ref import ConfigError, UNet2DModel
from diffusers_ref.modeling import shapes_only
from diffusers_ref.models.embeddings import Timesteps
from diffusers_ref.models.layers import Attention, Downsample2D, Upsample2D

DDPM_OPTIONS = {
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
HF_CASES = {
    "defaults": {},
    "ddpm": DDPM_OPTIONS,
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift, norm in the middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "classes": {"num_class_embeds": 5},
    "centred, scaled middle": {"center_input_sample": True, "mid_block_scale_factor": 1.4},
    "other widths": {"in_channels": 4, "out_channels": 6, "act_fn": "gelu", "time_embedding_dim": 24},
    "three levels": {
        "block_out_channels": (8, 24, 16),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 4,
    },
}


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def evaluate(unet, timestep, dtype=torch.float32, batch=2):
    options = unet.config
    sample = torch.linspace(-1.5, 1.5, batch * options["in_channels"] * 64).reshape(batch, -1, 8, 8)
    labels = {"class_labels": torch.arange(1, batch + 1)} if options["num_class_embeds"] else {}
    with torch.no_grad():
        return unet(sample.to(dtype), timestep, **labels).sample


# --- the same network as HF diffusers' -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", HF_CASES.values(), ids=HF_CASES)
def test_equals_the_network_of_hf_diffusers(options):
    hf = pytest.importorskip("diffusers")
    theirs = hf.UNet2DModel(**(UNET_CONFIG | options)).eval()
    ours = tiny_unet(**options)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())

    timesteps = torch.tensor([7.5, 999.0])
    single, their_single = evaluate(ours, timesteps), evaluate(theirs, timesteps)
    exact = evaluate(theirs.double(), timesteps, torch.float64)
    # Only the float32 sinusoids can differ, and only with freq_shift: by the last bit of a frequency, times t.
    bound = 1e-6 if options.get("freq_shift") else 1e-13
    assert relative_error(evaluate(ours.double(), timesteps, torch.float64), exact) <= bound
    assert relative_error(single, exact) <= 4 * relative_error(their_single, exact), (
        "rounding alone, as large as theirs"
    )


def test_layout_of_the_published_celebahq_network():
    with shapes_only():
        keys = shapes(UNet2DModel(sample_size=64, attention_head_dim=32).state_dict())
    assert len(keys) == 432
    listing = "".join(f"{key} {'x'.join(map(str, keys[key]))}\n" for key in sorted(keys))
    # Of the list of keys and shapes of CompVis/ldm-celebahq-256 (unet).
    assert (
        hashlib.sha256(listing.encode()).hexdigest()
        == "865716fc52490d67ef301c0c70cc5f1415541ba545b45872877eb27b7f839025"
    )


def test_loads_both_published_spellings_of_attention_and_saves_the_current_one(tmp_path):
    unet = tiny_unet()
    unet.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old_state = dict(state)
    for new_name, old_name in old.items():
        old_state = {key.replace(f".{new_name}.", f".{old_name}."): value for key, value in old_state.items()}
    assert sum("proj_attn" in key for key in old_state) == 8
    save_file(old_state, file, metadata={"format": "pt"})

    again = UNet2DModel.from_pretrained(tmp_path)
    assert torch.equal(evaluate(again, 3), evaluate(unet, 3))
    again.save_pretrained(tmp_path)
    assert load_file(file).keys() == state.keys()


# --- what the options mean -------------------------------------------------------------------------------------------


def test_sinusoids_are_float32_and_exact_for_fractional_timesteps():
    ddpm = Timesteps(6, flip_sin_to_cos=False, freq_shift=1).double()
    t = torch.tensor([2.5, 750.0], dtype=torch.float64)
    omega = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64)  # 10000^(-k/2)
    expected = torch.cat([torch.sin(t[:, None] * omega), torch.cos(t[:, None] * omega)], dim=1)
    assert ddpm(t).dtype == torch.float32
    assert (ddpm(t) - expected).abs().max() <= 750 * 2**-23, "an ulp of the frequency, times t"

    improved = Timesteps(5, flip_sin_to_cos=True, freq_shift=0)
    omega = torch.tensor([1.0, 1e-2], dtype=torch.float64)  # 10000^(-k/2), half = 2
    expected = torch.cat([torch.cos(t[:, None] * omega), torch.sin(t[:, None] * omega)], dim=1)
    assert (improved(t)[:, :4] - expected).abs().max() <= 750 * 2**-23
    assert torch.equal(improved(t)[:, 4], torch.zeros(2)), "an odd width ends in a zero"


def test_a_timestep_is_a_number_or_one_per_sample():
    unet = tiny_unet()
    together = evaluate(unet, torch.tensor([13.5, 4.0]))
    # One sample at a time and two together may differ by rounding: kernels depend on the batch size.
    for i, t in enumerate([13.5, 4]):
        assert relative_error(evaluate(unet, t)[i], together[i]) <= 1e-6
        assert torch.equal(evaluate(unet, torch.tensor(t)), evaluate(unet, t))
        assert torch.equal(evaluate(unet, torch.tensor([t])), evaluate(unet, t))
    assert relative_error(evaluate(unet, 13), evaluate(unet, 13.5)) > 1e-4, "a fraction is not truncated"


def test_float64_and_bfloat16_networks():
    unet = tiny_unet()
    single = evaluate(unet, 100)
    double = evaluate(unet.double(), 100, torch.float64)
    assert double.dtype == torch.float64 and 0 < relative_error(single, double) < 5e-6
    half = evaluate(unet.bfloat16(), 100, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and relative_error(half, double) < 0.1
    assert unet.time_proj.frequencies.dtype == torch.float32


def test_resampling_without_convolution_has_no_parameters():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Downsample2D(1, with_conv=False, padding=0)(image).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert Upsample2D(1, with_conv=False)(image)[0, 0, 3].tolist() == [4, 4, 5, 5, 6, 6, 7, 7]
    unet = tiny_unet(downsample_type="avg_pool", upsample_type="nearest")
    assert evaluate(unet, 1).shape == (2, 3, 8, 8)
    assert not any("samplers" in key for key in unet.state_dict())


def test_padding_0_pads_right_and_below():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    down = Downsample2D(1, with_conv=True, padding=0)
    with torch.no_grad():
        down.conv.weight.zero_()
        down.conv.weight[..., 2, 2] = 1  # picks the lower right pixel of each window
        down.conv.bias.zero_()
        assert down(image).flatten().tolist() == [10, 0, 0, 0]


def test_a_fixed_number_of_heads_equals_a_head_width_that_gives_it():
    by_width = tiny_unet(attention_head_dim=8)  # 16 channels where there is attention
    by_number = tiny_unet(num_attention_heads=2)
    by_number.load_state_dict(by_width.state_dict())
    assert relative_error(evaluate(by_number, 5), evaluate(by_width, 5)) <= 1e-6
    other = tiny_unet(num_attention_heads=2, num_attention_heads_upsample=4)
    other.load_state_dict(by_width.state_dict())
    assert relative_error(evaluate(other, 5), evaluate(by_width, 5)) > 1e-4


@pytest.mark.parametrize("scale_q_and_k", [False, True])
def test_attention_is_softmax_of_scaled_products(scale_q_and_k):
    torch.manual_seed(0)
    layer = Attention(8, heads=2, groups=4, eps=1e-6, scale_q_and_k=scale_q_and_k).double()
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        h = layer.group_norm(x)[0].flatten(1)  # (8, 6)
        q, k, v = (to.weight @ h + to.bias[:, None] for to in (layer.to_q, layer.to_k, layer.to_v))
        heads = []
        for rows in (slice(0, 4), slice(4, 8)):
            weights = torch.softmax(q[rows].T @ k[rows] / math.sqrt(4), dim=1)
            heads.append(v[rows] @ weights.T)
        out = layer.to_out[0].weight @ torch.cat(heads) + layer.to_out[0].bias[:, None]
        assert torch.allclose(layer(x), x + out.reshape(1, 8, 2, 3), rtol=1e-13, atol=1e-13)


def test_dropout_acts_in_training_only():
    unet = tiny_unet(dropout=0.5)
    assert torch.equal(evaluate(unet, 1), evaluate(unet, 1))
    assert not torch.equal(evaluate(unet.train(), 1), evaluate(unet, 1))


def test_every_parameter_gets_a_gradient():
    unet = tiny_unet(num_class_embeds=3, **DDPM_OPTIONS)
    unet(torch.ones(2, 3, 8, 8), 10, torch.tensor([0, 2])).sample.square().sum().backward()
    # A key's bias shifts all logits of a query alike, which softmax ignores.
    without = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in without if not name.endswith("to_k.bias")]


def test_output_is_an_object_or_a_tuple():
    unet = tiny_unet()
    sample = torch.zeros(1, 3, 8, 8)
    with torch.no_grad():
        out, (plain,) = unet(sample, 0), unet(sample, 0, return_dict=False)
    assert torch.equal(out.sample, plain) and torch.equal(out[0], plain)


def test_config_file_holds_conventions_only_where_they_are_chosen():
    written = json.loads(tiny_unet().to_json_string())
    assert written["_class_name"] == "UNet2DModel" and "num_attention_heads" not in written
    unet = tiny_unet(num_attention_heads=2)
    written = json.loads(unet.to_json_string())
    assert written["num_attention_heads"] == 2 and "num_attention_heads_upsample" not in written
    assert UNet2DModel.from_config(written).config == unet.config


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_embedding_type": "learned"}, "time_embedding_type: 'learned' is not supported; allowed: 'positional'"),
        ({"down_block_types": ("DownBlock2D", "KDownBlock2D")}, "'KDownBlock2D'.*allowed: 'DownBlock2D', 'Attn"),
        ({"up_block_types": ("UpBlock2D", "UpBlock")}, "'UpBlock' is not supported"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
        ({"downsample_type": "resnet"}, "allowed: 'conv', 'avg_pool'"),
        ({"upsample_type": "resnet"}, "allowed: 'conv', 'nearest'"),
        ({"downsample_padding": 2}, "allowed: 0, 1"),
        ({"act_fn": "tanh"}, "act_fn: 'tanh'"),
        ({"resnet_time_scale_shift": "spatial"}, "allowed: 'default', 'scale_shift'"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"block_out_channels": (8,)}, "one entry per level; got 1, 2 and 2"),
        ({"layers_per_block": 0}, "layers_per_block must be at least 1, got 0"),
        ({"norm_num_groups": 3}, r"norm_num_groups=3 must divide every one of \(8, 16\)"),
        ({"attention_head_dim": 3}, "attention_head_dim=3 must divide .*, here 16"),
        ({"num_attention_heads": 5}, "num_attention_heads=5 must divide .*, here 16"),
        ({"freq_shift": 4}, "freq_shift=4 needs a time embedding wider than 8, got width 8"),
    ],
)
def test_unsupported_options_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        UNet2DModel(**(UNET_CONFIG | options))


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'block_out_channels'"):
        UNet2DModel.from_config({"block_out_channel": (8, 16)})


IMAGE = torch.zeros(2, 3, 8, 8)


@pytest.fixture(scope="module")
def unconditional():
    return tiny_unet()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((IMAGE[0], 0), ValueError, r"shape \(B, 3, H, W\), got \(3, 8, 8\)"),
        ((IMAGE[:, :2], 0), ValueError, r"shape \(B, 3, H, W\), got \(2, 2, 8, 8\)"),
        ((IMAGE[..., :7], 0), ValueError, "positive multiples of 2 for a network of 2 levels, got 8 x 7"),
        ((IMAGE[..., :0], 0), ValueError, "got 8 x 0"),
        ((IMAGE.double(), 0), ValueError, "sample is torch.float64 but the network is torch.float32"),
        ((IMAGE.long(), 0), ValueError, "sample is torch.int64"),
        ((IMAGE.numpy(), 0), TypeError, "sample must be a tensor, got ndarray"),
        ((IMAGE, "0"), TypeError, "timestep must be a number or a tensor, got str"),
        ((IMAGE, True), TypeError, "timestep must be a number"),
        ((IMAGE, torch.zeros(3)), ValueError, r"one number or have shape \(2,\), got \(3,\)"),
        ((IMAGE, torch.zeros(2, 1)), ValueError, r"got \(2, 1\)"),
        ((IMAGE, torch.tensor(True)), ValueError, "timestep must be integer or real, got torch.bool"),
        ((IMAGE, 0, torch.tensor([0, 1])), ValueError, "this network is unconditional"),
    ],
)
def test_wrong_inputs_say_what_was_given(unconditional, arguments, error, message):
    with pytest.raises(error, match=message):
        unconditional(*arguments)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (None, ValueError, r"conditional: class_labels in \[0, 4\) are needed"),
        ([0, 1], TypeError, "must be a tensor, got list"),
        (torch.tensor([0.0, 1.0]), ValueError, "must be integers .* got torch.float32"),
        (torch.tensor([0]), ValueError, r"of shape \(2,\), got torch.int64 of shape \(1,\)"),
        (torch.tensor([0, 4]), ValueError, r"must be in \[0, 4\), got \[0, 4\]"),
    ],
)
def test_wrong_class_labels_say_what_was_given(labels, error, message):
    with pytest.raises(error, match=message):
        tiny_unet(num_class_embeds=4)(IMAGE, 0, labels)
