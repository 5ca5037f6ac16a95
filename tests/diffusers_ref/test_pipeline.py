from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_pipelines import generator, quiet, tiny_ddim, tiny_unet

import diffusers_ref
from diffusers_ref import (
    ConfigError,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    LoadingError,
    PNDMPipeline,
    PNDMScheduler,
    UNet2DModel,
    WeightsError,
    modeling,
)

STEPS = 4


def run(pipeline, **options):
    defaults = {"batch_size": 2, "generator": generator(), "num_inference_steps": STEPS, "output_type": "raw"}
    return pipeline(**(defaults | options)).images


def edit_index(folder, **entries):
    file = folder / "model_index.json"
    index = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({key: value for key, value in index.items() if value != "removed"}))


@pytest.fixture(scope="module")
def pipeline():
    """A DDIM pipeline that no test changes."""
    return tiny_ddim()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved DDIM pipeline, to be read only."""
    folder = tmp_path_factory.mktemp("saved") / "pipe"
    tiny_ddim().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(saved, tmp_path / "pipe")


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_an_output_reads_as_object_mapping_and_tuple():
    output = ImagePipelineOutput(images=[1, 2])
    assert output.images is output["images"] is output[0] is dict(output)["images"]
    (images,) = output
    assert images is output.images and len(output) == 1 and output[:1] == (images,)
    with pytest.raises(KeyError, match="holds no 'image'; it holds images"):
        output["image"]
    assert ImagePipelineOutput(images=None).to_tuple() == ()


def test_output_types_and_tuples():
    pipeline = tiny_ddim()
    raw = run(pipeline)
    tensor = run(pipeline, output_type="pt")
    assert torch.equal(tensor, (raw / 2 + 0.5).clamp(0, 1)) and not tensor.requires_grad
    assert torch.equal(torch.from_numpy(run(pipeline, output_type="np")).permute(0, 3, 1, 2), tensor)
    assert [image.size for image in run(pipeline, output_type="pil")] == [(8, 8)] * 2
    (images,) = pipeline(2, generator(), num_inference_steps=STEPS, output_type="raw", return_dict=False)
    assert torch.equal(images, raw)


# --- the sampling loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline_class", "scheduler_class", "options"),
    [
        (DDPMPipeline, DDPMScheduler, {}),
        (DDIMPipeline, DDIMScheduler, {"eta": 0.5}),
        (PNDMPipeline, PNDMScheduler, {}),
    ],
)
def test_the_loop_is_network_and_scheduler_in_turn(pipeline_class, scheduler_class, options):
    unet, scheduler = tiny_unet(), scheduler_class(num_train_timesteps=40)
    images = run(quiet(pipeline_class(unet, scheduler)), **options)
    source, twin = generator(), scheduler_class(num_train_timesteps=40)
    twin.set_timesteps(STEPS)
    x = torch.randn(2, 3, 8, 8, generator=source)
    with torch.no_grad():
        for t in twin.timesteps:
            x = twin.step(unet(x, t).sample, t, x, generator=source, **options).prev_sample
    assert torch.equal(images, x)
    assert torch.equal(run(quiet(pipeline_class(unet, scheduler)), **options), x), "second run"


def test_one_generator_per_image_makes_images_independent_of_the_batch():
    pipeline = tiny_ddim()
    both = run(pipeline, generator=[generator(5), generator(6)], eta=1.0)
    alone = run(pipeline, batch_size=1, generator=[generator(6)], eta=1.0)
    assert (both[1:] - alone).abs().max() <= 1e-5, "rounding: kernels depend on the batch size"


def test_x_t_can_be_given_under_either_name():
    pipeline = tiny_ddim()
    x = torch.randn(3, 3, 8, 8, generator=generator(), dtype=torch.float64)
    drawn = run(pipeline, batch_size=3)
    assert torch.equal(run(pipeline, batch_size=1, sample=x.float()), run(pipeline, batch_size=3, latents=x))
    assert drawn.shape == (3, 3, 8, 8)
    assert run(pipeline, batch_size=1, sample=torch.randn(1, 3, 16, 4)).shape == (1, 3, 16, 4)


def test_a_network_without_a_size_needs_x_t():
    pipeline = quiet(DDIMPipeline(tiny_unet(sample_size=None), DDIMScheduler(num_train_timesteps=40)))
    assert run(pipeline, sample=torch.zeros(2, 3, 8, 8)).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="config names no sample_size; give x_T as sample="):
        run(pipeline)


def test_explicit_timesteps_replace_the_number_of_steps():
    seen = []

    def watch(pipeline, index, timestep, tensors):
        seen.append((index, int(timestep)))

    run(tiny_ddim(), timesteps=[30, 20, 3], callback_on_step_end=watch)
    assert seen == [(0, 30), (1, 20), (2, 3)]
    scheduler = DDPMScheduler(num_train_timesteps=40, timestep_spacing="improved_diffusion")
    seen.clear()
    run(quiet(DDPMPipeline(tiny_unet(), scheduler)), respacing="2,1", callback_on_step_end=watch)
    assert len(seen) == 3


def test_the_callback_sees_every_step_and_may_replace_the_sample():
    pipeline = tiny_ddim()
    seen = []

    def zero_at_the_end(pipe, index, timestep, tensors):
        assert pipe is pipeline and list(tensors) == ["sample"]
        seen.append(tensors["sample"].clone())
        return {"sample": torch.zeros_like(tensors["sample"])} if index == STEPS - 1 else None

    assert not run(pipeline, callback_on_step_end=zero_at_the_end).any()
    assert torch.equal(seen[-1], run(pipeline)) and len(seen) == STEPS


def test_class_labels_reach_the_network():
    unet = tiny_unet(num_class_embeds=5)
    pipeline = quiet(DDIMPipeline(unet, DDIMScheduler(num_train_timesteps=40)))
    one, other = run(pipeline, class_labels=1), run(pipeline, class_labels=[1, 4])
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    with pytest.raises(ValueError, match=r"class_labels has the shape \(3,\); allowed: \(\) or \(2,\)"):
        run(pipeline, class_labels=[1, 2, 3])


def test_a_learned_variance_is_dropped_where_the_scheduler_has_its_own():
    learned, plain = tiny_unet(out_channels=6), tiny_unet()
    state = learned.state_dict()
    state |= {key: state[key][:3] for key in ("conv_out.weight", "conv_out.bias")}
    plain.load_state_dict(state)
    pipelines = [quiet(PNDMPipeline(unet, PNDMScheduler(num_train_timesteps=40))) for unet in (learned, plain)]
    with_variance, without = (run(pipeline) for pipeline in pipelines)
    assert (with_variance - without).abs().max() <= 1e-5, "rounding: kernels depend on the number of channels"
    ddpm = quiet(DDPMPipeline(learned, DDPMScheduler(num_train_timesteps=40, variance_type="learned_range")))
    assert run(ddpm).shape == (2, 3, 8, 8)


def test_the_progress_bar_can_be_configured_and_switched_off(capsys):
    pipeline = tiny_ddim()
    run(pipeline)
    assert capsys.readouterr().err == ""
    pipeline.set_progress_bar_config(desc="denoising")
    run(pipeline)
    assert "denoising: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0; allowed: integers from 1"),
        ({"batch_size": 1.5}, ValueError, "batch_size is 1.5"),
        ({"output_type": "jpeg"}, ValueError, "output_type is 'jpeg'; allowed: pil, np, pt, latent, raw"),
        ({"generator": [torch.Generator()]}, ValueError, "a list of 1 generators"),
        ({"generator": 7}, TypeError, "generator must be a torch.Generator"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps"),
        ({"num_inference_steps": 41}, ValueError, "40"),
        ({"sample": torch.zeros(2, 4, 8, 8)}, ValueError, r"x_T has the shape \(2, 4, 8, 8\); allowed: \(B, 3, H, W\)"),
        ({"sample": torch.zeros(3, 3, 8, 8)}, ValueError, "with B = 2"),
        ({"sample": [0.0]}, TypeError, "x_T must be a tensor, not list"),
        ({"sample": torch.zeros(2, 3, 8, 8), "latents": torch.zeros(2, 3, 8, 8)}, ValueError, "not both"),
        ({"callback_on_step_end": 3}, TypeError, "must be callable"),
        ({"callback_on_step_end": lambda *_: {"latents": 0}}, ValueError, "returned latents; allowed: sample"),
        ({"callback_on_step_end": lambda *_: {"sample": torch.zeros(1)}}, ValueError, "returned a sample of shape"),
        ({"nonsense": 3}, TypeError, "nonsense"),
    ],
)
def test_bad_calls(pipeline, options, error, message):
    with pytest.raises(error, match=message):
        run(pipeline, **options)


# --- components ------------------------------------------------------------------------------------------------------


def test_schedulers_are_converted_to_the_pipeline_s_own():
    unet = tiny_unet()
    scheduler = DDPMScheduler(num_train_timesteps=40, beta_schedule="squaredcos_cap_v2")
    assert DDPMPipeline(unet, scheduler).scheduler is scheduler
    for cls, wanted in ((DDIMPipeline, DDIMScheduler), (PNDMPipeline, PNDMScheduler)):
        made = cls(unet, scheduler).scheduler
        assert type(made) is wanted and made.config.beta_schedule == "squaredcos_cap_v2"
        assert cls(unet, made).scheduler is made
    with pytest.raises(TypeError, match="scheduler must be a DDIMScheduler or have a config, not object"):
        DDIMPipeline(unet, object())


def test_components_and_config():
    pipeline = tiny_ddim()
    assert list(pipeline.components) == ["unet", "scheduler"]
    assert DDPMPipeline(**pipeline.components).unet is pipeline.unet
    assert dict(pipeline.config) == {
        "unet": ("diffusers", "UNet2DModel"),
        "scheduler": ("diffusers", "DDIMScheduler"),
        "pixel_rounding": "half_even",
    }
    with pytest.raises(ValueError, match="pixel_rounding is 'up'"):
        DDIMPipeline(**pipeline.components, pixel_rounding="up")


def test_to_moves_and_casts_as_torch_does():
    pipeline = tiny_ddim()
    assert pipeline.dtype == torch.float32 and pipeline.device == torch.device("cpu")
    assert pipeline.to(torch.float64) is pipeline and pipeline.dtype == torch.float64
    assert run(pipeline).dtype == torch.float64
    assert pipeline.to("cpu", torch.float16).dtype == torch.float16
    assert pipeline.to(dtype=torch.float32, device="cpu").dtype == torch.float32
    assert pipeline.to("meta").device.type == "meta"
    for bad in (torch.int64, "nowhere"):
        with pytest.raises((TypeError, RuntimeError)):
            pipeline.to(bad)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_round_trip(folder):
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    loaded = quiet(DiffusionPipeline.from_pretrained(folder))
    assert type(loaded) is DDIMPipeline and not loaded.unet.training
    assert torch.equal(run(loaded), run(tiny_ddim()))
    assert DDIMPipeline.from_pretrained(str(folder), torch_dtype=torch.float64).dtype == torch.float64


def test_the_rounding_of_pixels_is_saved_where_it_is_not_the_default(tmp_path, folder):
    assert "pixel_rounding" not in (folder / "model_index.json").read_text()
    DDIMPipeline(**tiny_ddim().components, pixel_rounding="truncate").save_pretrained(tmp_path / "other")
    loaded = DDIMPipeline.from_pretrained(tmp_path / "other")
    assert loaded.pixel_rounding == "truncate"
    assert DDIMPipeline.from_pretrained(folder, pixel_rounding="round").pixel_rounding == "round"


def test_another_pipeline_class_loads_the_same_folder(folder):
    loaded = PNDMPipeline.from_pretrained(folder)
    assert type(loaded.scheduler) is PNDMScheduler and loaded.scheduler.config.num_train_timesteps == 40


def test_a_component_given_by_keyword_is_not_loaded(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet = tiny_unet(seed=4)
    assert DDIMPipeline.from_pretrained(folder, unet=unet).unet is unet


def test_variants_are_saved_and_loaded(folder):
    half = tiny_ddim(seed=9).to(torch.float16)
    half.save_pretrained(folder, variant="fp16")
    loaded = DDIMPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float16)
    assert torch.equal(loaded.unet.conv_in.weight, half.unet.conv_in.weight)
    plain = DDIMPipeline.from_pretrained(folder)
    assert torch.equal(plain.unet.conv_in.weight, tiny_unet().conv_in.weight)
    with pytest.raises(LoadingError, match="no weights of variant 'bf16'; variants present: fp16"):
        DDIMPipeline.from_pretrained(folder, variant="bf16")


def test_the_oldest_folders_have_no_subfolders(folder):
    for file in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
        file.rename(folder / file.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    assert torch.equal(run(quiet(DiffusionPipeline.from_pretrained(folder))), run(tiny_ddim()))


def test_own_and_pipeline_libraries_are_known(folder):
    edit_index(folder, unet=["diffusers_ref", "UNet2DModel"])
    assert type(DiffusionPipeline.from_pretrained(folder).unet) is UNet2DModel


class OptionalPipeline(DiffusionPipeline):
    def __init__(self, unet, scheduler, feature_extractor=None, guide=None):
        self.register_modules(unet=unet, scheduler=scheduler, feature_extractor=feature_extractor, guide=guide)


class FakeProcessor:
    """Stands for a class of transformers."""

    @classmethod
    def from_pretrained(cls, folder):
        made = cls()
        made.files = sorted(path.name for path in folder.iterdir())
        return made

    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "preprocessor_config.json").write_text("{}")


FakeProcessor.__module__ = "transformers.fake"


def test_null_components_and_renamed_classes_of_transformers(folder, monkeypatch):
    fake = SimpleNamespace(CLIPImageProcessor=FakeProcessor, __version__="4.46", pipeline=print)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    OptionalPipeline(**tiny_ddim().components, feature_extractor=FakeProcessor()).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["guide"] == [None, None] and index["feature_extractor"] == ["transformers", "FakeProcessor"]

    edit_index(folder, feature_extractor=["transformers", "CLIPFeatureExtractor"])
    loaded = OptionalPipeline.from_pretrained(folder)
    assert loaded.guide is None and loaded.feature_extractor.files == ["preprocessor_config.json"]
    for name in ("pipeline", "_private", "Absent"):
        edit_index(folder, feature_extractor=["transformers", name])
        with pytest.raises(ConfigError, match=f"transformers 4.46 has no loadable class '{name}'"):
            OptionalPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (
            {"unet": ["os", "UNet2DModel"]},
            ConfigError,
            "'os', the library of UNet2DModel, is unknown; allowed: diffusers",
        ),
        ({"unet": ["my_unet", "UNet2DModel"]}, ConfigError, "Code that comes with a folder is not run"),
        (
            {"unet": ["diffusers", "UNet9DModel"]},
            ConfigError,
            "no class 'UNet9DModel' in 'diffusers'; known components",
        ),
        ({"unet": ["ddim", "UNet2DModel"]}, ConfigError, "no class 'UNet2DModel' in 'ddim'"),
        ({"_class_name": "NoPipeline"}, ConfigError, "names the pipeline class 'NoPipeline'; known: DDIMPipeline"),
        ({"_class_name": "UNet2DModel"}, ConfigError, "names the pipeline class 'UNet2DModel'"),
        ({"_class_name": ["pipeline", "Mine"]}, ConfigError, "loaded with custom_pipeline='path/to/file.py'"),
        ({"../unet": ["diffusers", "UNet2DModel"]}, ConfigError, "DDIMPipeline has no option '../unet'"),
        ({"vqvae": ["diffusers", "VQModel"]}, ConfigError, "DDIMPipeline has no option 'vqvae'"),
        ({"unet": "removed"}, ConfigError, "DDIMPipeline needs unet: not in"),
        ({"unet": [None, None]}, TypeError, "unet must be a network, not NoneType"),
        ({"unet": "UNet2DModel"}, TypeError, "unet must be a network, not str"),
        ({"scheduler": [None, None]}, TypeError, "scheduler must be a DDIMScheduler or have a config, not NoneType"),
    ],
)
def test_bad_model_index(folder, entries, error, message):
    edit_index(folder, **entries)
    with pytest.raises(error, match=message):
        DiffusionPipeline.from_pretrained(folder)


def test_options_and_absent_components_of_other_pipelines_are_ignored(folder, caplog):
    edit_index(folder, requires_safety_checker=True, feature_extractor=[None, None], safety_checker=None)
    with caplog.at_level(logging.WARNING):
        loaded = DiffusionPipeline.from_pretrained(folder)
    assert list(loaded.components) == ["unet", "scheduler"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: DDIMPipeline has no option feature_extractor, requires_safety_checker, safety_checker: ignored"
    ]


def test_a_component_outside_of_the_folder_is_refused(folder):
    class Escape(DiffusionPipeline):
        @classmethod
        def config_keys(cls):
            return {"../unet": None}

    edit_index(folder, **{"unet": "removed", "scheduler": "removed", "../unet": ["diffusers", "UNet2DModel"]})
    with pytest.raises(LoadingError, match=r"component '\.\./unet' must be the name of an entry of the folder"):
        Escape.from_pretrained(folder)


def test_folders_that_are_not_pipelines(tmp_path, folder):
    with pytest.raises(LoadingError, match=r"holds no model_index.json, so it is not a pipeline"):
        DDIMPipeline.from_pretrained(folder / "unet")
    with pytest.raises(LoadingError, match="there is no folder"):
        DDIMPipeline.from_pretrained(tmp_path / "absent")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(
        LoadingError, match=r"neither scheduler/scheduler_config.json nor scheduler_config.json is there"
    ):
        DDIMPipeline.from_pretrained(folder)
    with pytest.raises(ConfigError, match="DDIMPipeline has no option 'unett'"):
        DDIMPipeline.from_pretrained(folder, unett=None)


def test_weights_that_do_not_fit(folder):
    state = tiny_unet().state_dict()
    del state["conv_in.bias"]
    state["conv_out.bias"] = torch.zeros(7)
    modeling.save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)keys missing: 1\n    conv_in.bias.*conv_out.bias is \(7,\)"):
        DDIMPipeline.from_pretrained(folder)


def test_an_interrupted_save_leaves_the_previous_pipeline(folder, monkeypatch):
    def interrupt(self, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(DDIMScheduler, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tiny_ddim(seed=8).save_pretrained(folder)
    assert torch.equal(run(quiet(DDIMPipeline.from_pretrained(folder))), run(tiny_ddim()))
    assert [path.name for path in folder.parent.iterdir()] == ["pipe"]


# --- code of the user ------------------------------------------------------------------------------------------------

CODE = """
import torch
from diffusers_ref import DDIMPipeline, DiffusionPipeline

class BrightPipeline(DiffusionPipeline):
    def __init__(self, unet, scheduler, gain=2):
        self.register_modules(unet=unet, scheduler=scheduler)
        self.gain = gain

    def __call__(self):
        return self.gain * self.unet.config.sample_size
"""


@pytest.fixture
def code(tmp_path):
    file = tmp_path / "bright.py"
    file.write_text(CODE)
    return file


def test_a_pipeline_class_of_a_file(folder, code):
    loaded = DiffusionPipeline.from_pretrained(folder, custom_pipeline=code, gain=5)
    assert type(loaded).__name__ == "BrightPipeline" and loaded() == 40
    loaded.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"custom_pipeline='path/to/file.py'"):
        DiffusionPipeline.from_pretrained(folder)
    assert DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(code)).gain == 5


def test_the_file_in_a_folder_runs_only_when_named(folder, code):
    (folder / "pipeline.py").write_text(CODE)
    assert type(DiffusionPipeline.from_pretrained(folder)) is DDIMPipeline
    assert DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder)() == 16


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ConfigError, "defines no pipeline class; one subclass of diffusers_ref.DiffusionPipeline is needed"),
        (
            CODE + CODE.replace("Bright", "Dark"),
            ConfigError,
            r"several pipeline classes \(BrightPipeline, DarkPipeline\)",
        ),
        ("1 / 0", ZeroDivisionError, "division"),
    ],
)
def test_files_that_are_no_pipeline(folder, code, text, error, message):
    code.write_text(text)
    modules = set(sys.modules)
    with pytest.raises(error, match=message):
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=code)
    if error is ZeroDivisionError:
        assert set(sys.modules) == modules


def test_custom_files_that_are_not_there(folder, tmp_path):
    for name in (tmp_path / "absent.py", folder):
        with pytest.raises(LoadingError, match="there is no Python file"):
            DiffusionPipeline.from_pretrained(folder, custom_pipeline=name)


# --- the package -----------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, diffusers_ref; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert child.stdout == "[]\n", child.stderr


def test_every_exported_name_exists():
    for name in diffusers_ref.__all__:
        assert getattr(diffusers_ref, name) is not None
    assert set(diffusers_ref.__all__) <= set(dir(diffusers_ref))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = diffusers_ref.Nonsense
