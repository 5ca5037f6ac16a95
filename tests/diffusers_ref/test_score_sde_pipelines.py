"""Score SDEs from the original's checkpoints and configurations to pipelines, images and folders."""

from __future__ import annotations

import json

import pytest
import torch
from original_examples import YANG_SONG, changed, original_state
from tiny_pipelines import generator, quiet

from diffusers_ref import (
    ConfigError,
    DDPMPipeline,
    DiffusionPipeline,
    ScoreSdeVePipeline,
    ScoreSdeVpPipeline,
    WeightsError,
)
from diffusers_ref.original import detect_format, get_format, load_single_file
from diffusers_ref.original.key_rules import empty_network
from diffusers_ref.original.score_sde_configs import NAMES

FORMAT = "yang-song/score_sde_pytorch"
VP = changed(
    YANG_SONG,
    training__sde="vpsde",
    sampling__predictor="euler_maruyama",
    sampling__corrector="none",
    data__centered=True,
    model__scale_by_sigma=False,
    model__embedding_type="positional",
)
SUB_VP = changed(VP, training__sde="subvpsde")


def checkpoint(config, path, **changes):
    """As `utils.save_checkpoint` writes it; the frequencies are not trained, so the average has none."""
    raw, averaged = (original_state(FORMAT, config, seed) for seed in (1, 2))
    fixed = {name for name in raw if name == "all_modules.0.W"}
    contents = {
        "optimizer": {"state": {}, "param_groups": []},
        "model": {
            "module.sigmas": torch.ones(1000, dtype=torch.float64),
            **{f"module.{name}": value for name, value in raw.items()},
        },
        "ema": {
            "decay": 0.999,
            "num_updates": 7,
            "shadow_params": [value for name, value in averaged.items() if name not in fixed],
        },
        "step": 1000,
    }
    torch.save({**contents, **changes}, path)
    return raw, averaged | {name: raw[name] for name in fixed}


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_the_moving_average_is_read_in_the_order_of_the_model(tmp_path):
    file = tmp_path / "checkpoint.pth"
    raw, averaged = checkpoint(YANG_SONG, file)
    module = get_format(FORMAT)
    contents = torch.load(file, weights_only=True)
    for wanted, use_ema in ((averaged, True), (raw, False)):
        found = module.extract_state(contents, use_ema)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    unet = load_single_file(file, YANG_SONG).unet
    assert torch.equal(unet.time_proj.weight, raw["all_modules.0.W"])
    assert torch.equal(unet.conv_in.weight, averaged["all_modules.3.weight"])


def test_averages_that_do_not_fit(tmp_path):
    file = tmp_path / "checkpoint.pth"
    checkpoint(YANG_SONG, file, ema={"shadow_params": [torch.ones(3)]})
    with pytest.raises(WeightsError, match=r"holds 1 tensors.*first that differs is all_modules.1.weight, with \(3,\)"):
        load_single_file(file, YANG_SONG)
    checkpoint(YANG_SONG, file, ema={})
    with pytest.raises(WeightsError, match="pass use_ema=False"):
        load_single_file(file, YANG_SONG)
    assert load_single_file(file, YANG_SONG, use_ema=False).format == FORMAT


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_official_configurations(name):
    module = get_format(FORMAT)
    config = module.parse_config(name)
    assert detect_format(config) is module
    # HF diffusers has the networks of 256 and more pixels.
    wanted = "UNet2DModel" if config["data"]["image_size"] >= 256 else "NCSNppModel"
    assert module.unet_config(config)["_class_name"] == wanted
    sde, sampler = name.split("/")[0], next(iter(module.scheduler_configs(config)))
    assert sampler == {"ve": "ScoreSdeVeScheduler", "vp": "ScoreSdeVpScheduler", "subvp": "ScoreSdeSubVpScheduler"}[sde]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ve/cifar10_ncsnpp_continuous", 62_758_915),
        ("vp/cifar10_ddpmpp_deep_continuous", 106_632_579),
        ("subvp/cifar10_ddpm_continuous", 35_218_947),
        ("ve/church_ncsnpp_continuous", 65_574_549),
        ("ve/ffhq_ncsnpp_continuous", 105_785_896),
    ],
)
def test_official_sizes(name, parameters):
    module = get_format(FORMAT)
    network = empty_network(module.unet_config(module.parse_config(name)))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__name": "ncsnv2_64"}, "name must be 'ncsnpp' or 'ddpm', got 'ncsnv2_64'"),
        ({"model__progressive": "residual"}, "progressive must be 'none' or 'output_skip'"),
        ({"sampling__method": "ode"}, "method must be 'pc'"),
        ({"training__continuous": False}, "embedding_type 'fourier' needs training.continuous"),
        ({"model__fir_kernel": "1331"}, "fir_kernel must be a list of numbers"),
        ({"model__nff": 3}, r"unknown option nff \(did you mean nf\?\)"),
        ({"data__image_size": 9}, "image_size must be a multiple of 2 for 2 levels"),
    ],
)
def test_configurations_that_are_refused(changes, message):
    module = get_format(FORMAT)
    with pytest.raises(ConfigError, match=message):
        module.unet_config(module.parse_config(changed(YANG_SONG, **changes)))


# --- pipelines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "cls", "scheduler"),
    [
        (YANG_SONG, ScoreSdeVePipeline, "ScoreSdeVeScheduler"),
        (VP, ScoreSdeVpPipeline, "ScoreSdeVpScheduler"),
        (SUB_VP, ScoreSdeVpPipeline, "ScoreSdeSubVpScheduler"),
    ],
)
def test_a_checkpoint_becomes_a_pipeline_and_a_folder(config, cls, scheduler, tmp_path):
    checkpoint(config, tmp_path / "checkpoint.pth")
    pipeline = quiet(cls.from_single_file(tmp_path / "checkpoint.pth", config))
    assert type(pipeline.scheduler).__name__ == scheduler
    assert pipeline.pixel_rounding == "truncate" and pipeline.centered == config["data"]["centered"]
    call = {"batch_size": 2, "num_inference_steps": 3}
    raw = pipeline(generator=generator(), output_type="raw", **call).images
    pixels = pipeline(generator=generator(), output_type="pt", **call).images
    assert torch.equal(pixels, ((raw + 1) / 2 if pipeline.centered else raw).clamp(0, 1))

    pipeline.save_pretrained(tmp_path / "pipeline")
    again = quiet(DiffusionPipeline.from_pretrained(tmp_path / "pipeline"))
    assert type(again) is cls and again.config == pipeline.config
    assert torch.equal(again(generator=generator(), output_type="raw", **call).images, raw)


def test_each_level_is_corrected_then_predicted(tmp_path):
    checkpoint(YANG_SONG, tmp_path / "checkpoint.pth")
    pipeline = quiet(ScoreSdeVePipeline.from_single_file(tmp_path / "checkpoint.pth", YANG_SONG))
    given, seen = [], []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: given.append(float(inputs[1])))
    pipeline(
        num_inference_steps=3,
        generator=generator(),
        output_type="raw",
        callback_on_step_end=lambda pipe, i, t, state: seen.append((i, float(t))),
    )
    assert given == pytest.approx([50, 50, 50 * 2e-4**0.499995, 50 * 2e-4**0.499995, 0.01, 0.01], rel=1e-3)
    assert [i for i, _ in seen] == list(range(6)) and seen[0][1] == seen[1][1] == 1


def test_the_other_pipeline_is_named(tmp_path):
    checkpoint(YANG_SONG, tmp_path / "checkpoint.pth")
    for cls in (DDPMPipeline, ScoreSdeVpPipeline):
        with pytest.raises(ConfigError, match=f"{FORMAT} has no .*Scheduler, only ScoreSdeVeScheduler"):
            cls.from_single_file(tmp_path / "checkpoint.pth", YANG_SONG)


def test_folders_are_those_of_hf_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from test_ncsnpp import SKIP_LEVELS

    torch.manual_seed(0)
    theirs = diffusers.ScoreSdeVePipeline(
        unet=diffusers.UNet2DModel(**SKIP_LEVELS), scheduler=diffusers.ScoreSdeVeScheduler(sigma_max=5.0)
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(ours) is ScoreSdeVePipeline and ours.scheduler.config.sigma_max == 5 and not ours.centered
    ours.save_pretrained(tmp_path / "ours")
    index = json.loads((tmp_path / "ours" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"] and index["scheduler"] == ["diffusers", "ScoreSdeVeScheduler"]
    assert "centered" not in index and "pixel_rounding" not in index
    assert type(diffusers.ScoreSdeVePipeline.from_pretrained(tmp_path / "ours")).__name__ == "ScoreSdeVePipeline"
