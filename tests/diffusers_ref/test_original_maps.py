from __future__ import annotations

import math

import pytest
import torch
from original_examples import ERMONGROUP, EXAMPLES, HOJONATHANHO, OPENAI, changed, original_state

from diffusers_ref import UNet2DModel, WeightsError
from diffusers_ref.original import FORMATS, build_unet, get_format, key_map, module_map, original_keys
from diffusers_ref.original.key_rules import empty_network


def output(unet: UNet2DModel, timestep: float = 250.0) -> torch.Tensor:
    sample = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
    labels = {"class_labels": torch.tensor([1, 6])} if unet.config.get("num_class_embeds") else {}
    with torch.no_grad():
        return unet(sample, timestep, **labels).sample


@pytest.mark.parametrize(("format", "config"), EXAMPLES.values(), ids=EXAMPLES)
def test_every_parameter_is_mapped_exactly_once(format, config):
    module = get_format(format)
    parsed = module.parse_config(config)
    rules = key_map(module, parsed)
    ours = empty_network(module.unet_config(parsed)).state_dict()
    assert sorted(rule.ours for rule in rules) == sorted(ours)
    assert {rule.original for rule in rules} == original_keys(module, parsed).keys()

    # Numbered entries: each original entry arrives, and arrives once.
    start, state = 0, {}
    for name, shape in original_keys(module, parsed).items():
        size = math.prod(shape)
        state[name] = torch.arange(start, start + size, dtype=torch.float32).reshape(shape)
        start += size
    arrived = torch.cat([value.flatten() for value in build_unet(format, config, state).state_dict().values()])
    assert start < 2**24 and torch.equal(arrived.sort().values, torch.arange(start, dtype=torch.float32))


@pytest.mark.parametrize(("format", "config"), EXAMPLES.values(), ids=EXAMPLES)
def test_modules_are_aligned_with_modules_that_run(format, config):
    module = get_format(format)
    pairs = module_map(module, module.parse_config(config))
    assert len(set(pairs.values())) == len(pairs)
    unet = build_unet(format, config, original_state(format, config))
    ran = []
    for path in pairs.values():
        unet.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.append(path))
    output(unet)
    assert sorted(ran) == sorted(pairs.values()), "each runs once"


def test_names_of_the_ddim_authors():
    module = get_format("ermongroup/ddim")
    config = module.parse_config(ERMONGROUP)
    keys = original_keys(module, config)
    assert keys["temb.dense.0.weight"] == (128, 32)
    assert keys["down.1.block.0.nin_shortcut.weight"] == (64, 32, 1, 1)
    assert keys["down.1.attn.0.q.weight"] == (64, 64, 1, 1)
    assert keys["down.0.downsample.conv.bias"] == (32,)
    assert keys["mid.attn_1.proj_out.weight"] == (64, 64, 1, 1)
    assert keys["up.0.block.1.conv1.weight"] == (32, 64, 3, 3)
    assert keys["up.1.upsample.conv.weight"] == (64, 64, 3, 3)
    assert not any("attn" in name for name in keys if name.startswith(("down.0", "up.0")))
    pairs = module_map(module, config)
    assert pairs["up.1.block.1"] == "up_blocks.0.resnets.1", "levels are counted from full resolution there"
    assert pairs["up.1.attn.0.proj_out"] == "up_blocks.0.attentions.0.to_out.0"
    without = original_keys(module, module.parse_config(changed(ERMONGROUP, model__resamp_with_conv=False)))
    assert not any("sample" in name for name in without)


def test_names_of_the_ddpm_authors():
    module = get_format("hojonathanho/diffusion")
    keys = original_keys(module, module.parse_config(HOJONATHANHO))
    assert keys["model/temb/dense0/W"] == (32, 128)
    assert keys["model/conv_in/W"] == (3, 3, 3, 32)
    assert keys["model/down_1/block_0/norm1/gamma"] == (32,)
    assert keys["model/down_1/block_0/temb_proj/W"] == (128, 64)
    assert keys["model/down_1/block_0/nin_shortcut/W"] == (32, 64)
    assert keys["model/down_1/attn_0/q/W"] == (64, 64)
    assert keys["model/down_0/downsample/conv/b"] == (32,)
    assert keys["model/mid/block_1/conv2/W"] == (3, 3, 64, 64)
    assert keys["model/up_1/upsample/conv/W"] == (3, 3, 64, 64)
    assert keys["model/norm_out/beta"] == (32,)


def test_names_of_improved_diffusion():
    module = get_format("openai/improved-diffusion")
    config = module.parse_config(OPENAI)
    keys = original_keys(module, config)
    assert keys["input_blocks.0.0.weight"] == (32, 3, 3, 3)
    assert keys["input_blocks.1.0.emb_layers.1.weight"] == (64, 128), "scale and shift"
    assert keys["input_blocks.2.0.op.weight"] == (32, 32, 3, 3)
    assert keys["input_blocks.3.1.qkv.weight"] == (192, 64, 1)
    assert keys["middle_block.1.proj_out.weight"] == (64, 64, 1)
    assert keys["output_blocks.1.2.conv.weight"] == (64, 64, 3, 3)
    assert keys["output_blocks.3.0.skip_connection.weight"] == (32, 64, 1, 1)
    assert keys["label_emb.weight"] == (7, 128)
    assert keys["out.2.weight"] == (6, 32, 3, 3)
    assert module_map(module, config)["output_blocks.1.2"] == "up_blocks.0.upsamplers.0"


def test_the_ddpm_and_ddim_authors_layouts_hold_one_network():
    torch_state = original_state("ermongroup/ddim", ERMONGROUP)
    layouts = {"conv": (2, 3, 1, 0), "dense": (1, 0)}
    tf_state = {}
    for name, value in torch_state.items():
        path, kind = name.rsplit(".", 1)
        scope = path.replace("temb.dense.", "temb/dense")
        for word in ("down", "up", "block", "attn"):
            scope = scope.replace(f"{word}.", f"{word}_")
        if value.ndim == 4 and value.shape[-1] == 1:
            value = value[:, :, 0, 0]
        if value.ndim > 1:
            value = value.permute(layouts["conv" if value.ndim == 4 else "dense"])
        norm = "norm" in path.rsplit(".", 1)[-1]
        names = {"weight": "gamma" if norm else "W", "bias": "beta" if norm else "b"}
        tf_state["model/" + scope.replace(".", "/") + "/" + names[kind]] = value.numpy()
    ours = build_unet("hojonathanho/diffusion", HOJONATHANHO, tf_state)
    assert torch.equal(output(ours), output(build_unet("ermongroup/ddim", ERMONGROUP, torch_state)))


def test_fused_qkv_is_interleaved_per_head():
    state = original_state("openai/improved-diffusion", OPENAI)
    unet = build_unet("openai/improved-diffusion", OPENAI, state).double()
    heads, x = 2, torch.linspace(-2, 2, 2 * 64 * 16, dtype=torch.float64).reshape(2, 64, 4, 4)

    def parameter(name):
        return state[f"middle_block.1.{name}"].double()

    # As the original computes it, on the fused weights.
    h = torch.nn.functional.group_norm(x, 32, parameter("norm.weight"), parameter("norm.bias"), eps=1e-5).flatten(2)
    qkv = torch.nn.functional.conv1d(h, parameter("qkv.weight"), parameter("qkv.bias"))
    q, k, v = qkv.reshape(2 * heads, 96, 16).split(32, dim=1)
    weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / 32**0.5, dim=-1)
    h = torch.einsum("bts,bcs->bct", weights, v).reshape(2, 64, 16)
    h = torch.nn.functional.conv1d(h, parameter("proj_out.weight"), parameter("proj_out.bias"))
    with torch.no_grad():
        ours = unet.mid_block.attentions[0](x)
    assert torch.allclose(ours, x + h.reshape(x.shape), rtol=1e-12, atol=1e-12)


def test_one_network_of_the_pndm_authors_is_the_ddim_authors_and_the_other_openais():
    (_, ddim), (_, iddpm) = EXAMPLES["lupingliu DDIM"], EXAMPLES["lupingliu iDDPM"]
    state = original_state("ermongroup/ddim", ERMONGROUP)
    pndm = build_unet("luping-liu/PNDM", ddim, state)
    assert torch.equal(output(pndm), output(build_unet("ermongroup/ddim", ERMONGROUP, state)))

    same = changed(OPENAI, class_cond=False, num_heads_upsample=4)
    state = original_state("openai/improved-diffusion", same)
    pndm = build_unet("luping-liu/PNDM", iddpm, state)
    assert torch.equal(output(pndm), output(build_unet("openai/improved-diffusion", same, state)))


def test_built_networks_own_their_weights():
    state = original_state("ermongroup/ddim", ERMONGROUP)
    unet = build_unet("ermongroup/ddim", ERMONGROUP, state)
    assert not unet.training and unet.dtype == torch.float32
    with torch.no_grad():
        unet.conv_in.weight.zero_()
    assert state["conv_in.weight"].any()
    half = {name: value.half() for name, value in state.items()}
    assert build_unet("ermongroup/ddim", ERMONGROUP, half).dtype == torch.float32


def test_contradictions_between_config_and_state_are_spelled_out():
    state = original_state("ermongroup/ddim", ERMONGROUP)
    with pytest.raises(WeightsError, match=r"conv_in.weight: the config implies \(64, 3, 3, 3\), the checkpoint has"):
        build_unet("ermongroup/ddim", changed(ERMONGROUP, model__ch=64), state)

    with pytest.raises(WeightsError) as caught:
        build_unet("ermongroup/ddim", changed(ERMONGROUP, model__ch_mult=[1, 2, 2], data__image_size=16), state)
    message = str(caught.value)
    assert "not in the checkpoint:\n    down.1.downsample.conv.weight" in message and "... and" in message
    assert "the checkpoint has no" not in message

    with pytest.raises(WeightsError, match=r"have no place in the network of the config:\n    down.1.attn.0"):
        build_unet("ermongroup/ddim", changed(ERMONGROUP, model__attn_resolutions=[]), state)

    with pytest.raises(WeightsError, match=r"1 of the checkpoint have no place .*\n    logvar"):
        build_unet("ermongroup/ddim", ERMONGROUP, state | {"logvar": torch.zeros(1000)})


def test_formats_are_known_by_their_repositories():
    assert list(FORMATS) == [
        "ermongroup/ddim",
        "hojonathanho/diffusion",
        "luping-liu/PNDM",
        "openai/improved-diffusion",
        "yang-song/score_sde_pytorch",
    ]
    with pytest.raises(ValueError, match="unknown original format 'CompVis'; allowed: ermongroup/ddim, "):
        get_format("CompVis")
