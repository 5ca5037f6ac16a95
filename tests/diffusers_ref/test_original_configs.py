from __future__ import annotations

import json

import pytest
from original_examples import (
    ERMONGROUP,
    EXAMPLES,
    HOJONATHANHO,
    LUPINGLIU_DDIM,
    LUPINGLIU_IDDPM,
    OPENAI,
    changed,
)

import diffusers_ref
from diffusers_ref import ConfigError, LoadingError, UNet2DModel
from diffusers_ref.modeling import shapes_only
from diffusers_ref.original import detect_format, get_format, original_keys


def number_of_parameters(format: str, config: dict) -> int:
    module = get_format(format)
    with shapes_only():
        unet = UNet2DModel(**module.unet_config(module.parse_config(config)))
    return sum(parameter.numel() for parameter in unet.parameters())


@pytest.mark.parametrize(("format", "config"), EXAMPLES.values(), ids=EXAMPLES)
def test_parsing_is_idempotent_leaves_its_source_alone_and_survives_json(format, config):
    module = get_format(format)
    before = json.dumps(config)
    parsed = module.parse_config(config)
    assert module.parse_config(parsed) == parsed
    assert module.parse_config(json.loads(json.dumps(parsed))) == parsed
    assert json.dumps(config) == before


@pytest.mark.parametrize(("format", "config"), EXAMPLES.values(), ids=EXAMPLES)
def test_every_format_is_recognised_by_its_config_alone(format, config):
    module = get_format(format)
    assert detect_format(config) is module
    assert detect_format(module.parse_config(config)) is module


@pytest.mark.parametrize(("format", "config"), EXAMPLES.values(), ids=EXAMPLES)
def test_schedulers_accept_what_the_formats_say(format, config):
    module = get_format(format)
    for name, options in module.scheduler_configs(module.parse_config(config)).items():
        scheduler = getattr(diffusers_ref, name).from_config(options)
        assert {key: scheduler.config[key] for key in options} == options


def test_official_sizes():
    """The numbers of parameters that the papers state (35.7M, 114M, 50M, 100M, 270M)."""
    ddpm = "hojonathanho/diffusion"
    assert number_of_parameters(ddpm, {"model_name": "unet2d16b2", "dataset": "cifar10"}) == 35_746_307
    assert number_of_parameters(ddpm, {"model_name": "unet2d16b2c112244", "dataset": "lsun"}) == 113_673_219
    improved, flags = "openai/improved-diffusion", {"num_res_blocks": 3, "learn_sigma": True}
    assert round(number_of_parameters(improved, flags | {"image_size": 32}) / 1e6) == 53
    assert round(number_of_parameters(improved, flags | {"image_size": 64}) / 1e6) == 121
    conditional = flags | {"image_size": 64, "num_channels": 192, "class_cond": True}
    assert round(number_of_parameters(improved, conditional) / 1e6) == 273


def test_the_ddim_authors_samplers():
    module = get_format("ermongroup/ddim")
    schedulers = module.scheduler_configs(module.parse_config(changed(ERMONGROUP, diffusion__beta_schedule="quad")))
    assert schedulers["DDPMScheduler"] == {
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "coefficients": "float32_cumprod",
        "timestep_spacing": "ddim_uniform",
        "variance_type": "fixed_large",
        "clip_sample": True,
    }
    assert schedulers["DDIMScheduler"]["clip_sample"] is False
    assert schedulers["PNDMScheduler"]["solver"] == "f_pndm"


def test_the_ddpm_authors_conventions():
    module = get_format("hojonathanho/diffusion")
    learned = module.parse_config(changed(HOJONATHANHO, model_var_type="learned", model_mean_type="xprev"))
    assert module.unet_config(learned)["out_channels"] == 6
    scheduler = module.scheduler_configs(learned)["DDPMScheduler"]
    assert (scheduler["variance_type"], scheduler["prediction_type"]) == ("learned", "previous_sample")
    lsun = module.parse_config({"model_name": "unet2d16b2c112244", "dataset": "lsun", "loss_type": "noisepred"})
    assert lsun["image_size"] == 256 and lsun["ch_mult"] == [1, 1, 2, 2, 4, 4]
    assert module.scheduler_configs(lsun)["DDPMScheduler"]["variance_type"] == "fixed_small"


def test_improved_diffusion_conventions():
    module = get_format("openai/improved-diffusion")
    defaults = module.parse_config({})
    assert module.unet_config(defaults)["block_out_channels"] == (128, 256, 384, 512)
    types = module.unet_config(defaults)["down_block_types"]
    assert types == ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"), "at 16 and 8 of 64 pixels"
    scheduler = module.scheduler_configs(defaults)["DDPMScheduler"]
    assert scheduler["variance_type"] == "fixed_large" and scheduler["rescale_timesteps"] is True

    text = module.parse_config({"diffusion_steps": "4000", "learn_sigma": "True", "rescale_timesteps": "no", "lr": 1})
    schedulers = module.scheduler_configs(text)
    assert schedulers["DDPMScheduler"]["beta_start"] == 0.25 * 0.0001
    assert schedulers["DDPMScheduler"]["variance_type"] == "learned_range"
    assert schedulers["DDIMScheduler"]["rederive_epsilon"] and not schedulers["DDIMScheduler"]["rescale_timesteps"]
    cosine = module.scheduler_configs(module.parse_config(OPENAI))["DDPMScheduler"]
    assert cosine["beta_schedule"] == "squaredcos_cap_v2" and "beta_start" not in cosine
    assert module.unet_config(module.parse_config(OPENAI))["num_class_embeds"] == 7


def test_pixels_are_rounded_as_each_original_does():
    rounding = {name: get_format(name).pixel_rounding for name, _ in EXAMPLES.values()}
    assert rounding == {
        "ermongroup/ddim": "round",
        "hojonathanho/diffusion": "truncate",
        "luping-liu/PNDM": "round",
        "openai/improved-diffusion": "truncate",
        "yang-song/score_sde_pytorch": "truncate",
    }


def test_files(tmp_path):
    module = get_format("ermongroup/ddim")
    yml = tmp_path / "cifar10.yml"
    yml.write_text(json.dumps(ERMONGROUP).replace("0.0001", "1e-4"))  # YAML reads 1e-4 as text
    assert module.parse_config(yml) == module.parse_config(ERMONGROUP)
    kwargs = tmp_path / "kwargs.json"
    kwargs.write_text(json.dumps(HOJONATHANHO))
    assert get_format("hojonathanho/diffusion").parse_config(str(kwargs))["ch"] == 32

    with pytest.raises(LoadingError, match=r"there is no configuration file .*none\.yml"):
        module.parse_config(tmp_path / "none.yml")
    with pytest.raises(ConfigError, match=r"unknown kind of configuration file; allowed: \.yml"):
        module.parse_config(tmp_path / "config.toml")
    for name, text, message in (
        ("a.yml", "a: [", "not valid YAML"),
        ("a.json", "{", "not valid JSON"),
        ("b.yml", "- 1", "must hold a mapping, not a list"),
        ("c.yml", "!!python/object/apply:os.getcwd []", "not valid YAML"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            module.parse_config(tmp_path / name)


@pytest.mark.parametrize(
    ("format", "config", "message"),
    [
        ("ermongroup/ddim", {"data": {}, "model": {}}, "data lacks image_size"),
        ("ermongroup/ddim", {"data": {"image_size": 8}}, "lacks the section 'model'; it has data"),
        ("ermongroup/ddim", changed(ERMONGROUP, model=3), "model must be a mapping, got int"),
        ("ermongroup/ddim", changed(ERMONGROUP, model__type="bayesian"), r"type must be 'simple' .*, got 'bayesian'"),
        (
            "ermongroup/ddim",
            changed(ERMONGROUP, model__num_res_block=2),
            r"\(did you mean num_res_blocks\?",
        ),
        ("ermongroup/ddim", changed(ERMONGROUP, model__ch=0), "ch must be a positive whole number, got 0"),
        ("ermongroup/ddim", changed(ERMONGROUP, model__ch_mult=[1, 1.5]), "ch_mult must be a list of positive whole"),
        ("ermongroup/ddim", changed(ERMONGROUP, model__dropout=1.1), r"dropout must be in \[0, 1\], got 1.1"),
        ("ermongroup/ddim", changed(ERMONGROUP, model__resamp_with_conv=2), "must be true or false, got 2"),
        ("ermongroup/ddim", changed(ERMONGROUP, diffusion__beta_end="x"), "beta_end must be a number"),
        ("ermongroup/ddim", changed(ERMONGROUP, diffusion__beta_schedule="cos"), "must be 'linear' or 'quad' or"),
        ("hojonathanho/diffusion", {"model_name": "unet"}, "model_name must be 'unet2d16b2' or .*, got 'unet'"),
        ("hojonathanho/diffusion", {"model_name": "unet2d16b2", "dataset": "mnist"}, "dataset must be 'cifar10' or"),
        ("hojonathanho/diffusion", {"ch": 32}, "lacks image_size, ch_mult, num_res_blocks, attn_resolutions"),
        ("hojonathanho/diffusion", changed(HOJONATHANHO, block_size=2), "block_size must be 1"),
        ("hojonathanho/diffusion", changed(HOJONATHANHO, model_var_type="large"), "must be 'fixedsmall' or"),
        ("luping-liu/PNDM", changed(LUPINGLIU_DDIM, Model__struc="PF"), "struc must be 'DDIM' or 'iDDPM', got 'PF'"),
        ("luping-liu/PNDM", changed(LUPINGLIU_DDIM, Schedule={"type": "quad"}), "lacks diffusion_step, beta_start"),
        ("luping-liu/PNDM", changed(LUPINGLIU_IDDPM, Model__out_channels=3), "must be twice in_channels"),
        ("luping-liu/PNDM", changed(LUPINGLIU_IDDPM, Model__num_heads_upsample=-1), "must be a positive whole number"),
        ("openai/improved-diffusion", {"large_size": 256}, "super-resolution network, not supported"),
        ("openai/improved-diffusion", {"num_head_channels": 64}, "unknown option num_head_channels"),
        ("openai/improved-diffusion", {"image_size": 128}, "must be 256 or 64 or 32 unless channel_mult is given"),
        ("openai/improved-diffusion", {"conv_resample": False}, "cannot build its average pooling"),
    ],
)
def test_mistakes_are_named(format, config, message):
    with pytest.raises(ConfigError, match=message):
        get_format(format).parse_config(config)


@pytest.mark.parametrize(
    ("format", "config", "message"),
    [
        ("ermongroup/ddim", changed(ERMONGROUP, data__image_size=9), "multiple of 2 for 2 levels .* got 9"),
        ("ermongroup/ddim", changed(ERMONGROUP, model__ch_mult=[2, 1]), "must begin with 1"),
        (
            "ermongroup/ddim",
            changed(ERMONGROUP, model__ch=48),
            r"32 must divide every one of \(48, 96\)",
        ),
        ("openai/improved-diffusion", changed(OPENAI, image_size=9), "multiple of 2 for 2 levels .* got 9"),
        ("openai/improved-diffusion", changed(OPENAI, channel_mult=[2]), "must begin with 1"),
        ("openai/improved-diffusion", changed(OPENAI, num_heads=5), "num_attention_heads=5 must divide"),
    ],
)
def test_networks_that_cannot_be_built(format, config, message):
    module = get_format(format)
    with pytest.raises(ValueError, match=message):
        original_keys(module, module.parse_config(config))


def test_a_config_of_no_known_format():
    with pytest.raises(ConfigError, match=r"\(with model\) is of no known format; name it with original_format="):
        detect_format({"model": {}})
    with pytest.raises(ConfigError, match="could be of hojonathanho/diffusion or openai/improved-diffusion"):
        detect_format({"ch_mult": [1], "num_channels": 32})
