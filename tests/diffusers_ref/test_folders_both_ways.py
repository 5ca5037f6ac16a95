"""Folders move between HF diffusers and this package, in both directions, and mean the same in both.

Networks agree to 1e-6. Whole runs differ by what the libraries' tables differ: HF computes betas and their products
in float32, the papers' codes compute the betas, or all of it, in float64. The differences below were measured in
float64 arithmetic with the same draws, where rounding hides nothing. With our tables put into HF's scheduler the
difference vanishes (3e-16 measured), but for two: with DDPM 7e-8 is left, because each coefficient is rounded
to float32 once, as in the original, and HF's are not; with latent diffusion's options 3e-9 are left, because
sqrt(1 - abar) is a float32 table there, as in the original.
"""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tiny_pipelines import generator, quiet, tiny_unet

import diffusers_ref
from diffusers_ref.random import randn

diffusers = pytest.importorskip("diffusers")

# Pipeline, options of the scheduler, options of the call; relative difference of the last sample to HF's: measured with
# HF's own tables, at most with ours.
RUNS = {
    "ddpm": ("DDPM", {}, {"num_inference_steps": 20}, 3.8e-6, 2e-7),
    "ddpm, 10 of 20 steps": ("DDPM", {}, {"num_inference_steps": 10}, 6.5e-6, 2e-7),
    "ddpm, fixed_large": ("DDPM", {"variance_type": "fixed_large"}, {"num_inference_steps": 10}, 6.6e-6, 2e-7),
    "ddim": ("DDIM", {}, {"num_inference_steps": 10}, 1.1e-8, 1e-13),
    "ddim, eta 1": ("DDIM", {}, {"num_inference_steps": 10, "eta": 1.0}, 2.2e-7, 1e-13),
    "ddim, latent diffusion's options": (
        "DDIM",
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
        {"num_inference_steps": 10},
        7.7e-8,
        1e-8,
    ),
    "pndm": ("PNDM", {}, {"num_inference_steps": 10}, 1.3e-7, 1e-13),
    "pndm, plms": ("PNDM", {"skip_prk_steps": True, "steps_offset": 1}, {"num_inference_steps": 10}, 1.8e-7, 1e-13),
}

# One level without attention: whole runs are about the samplers.
SMALLEST_UNET = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "add_attention": False,
}


@pytest.fixture(autouse=True)
def quiet_diffusers():
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / ours.norm()).item()


def make(library, name, dtype=torch.float32, unet_options=None, **options):
    """A pipeline of one of the two libraries, with the weights of the same tiny network."""
    unet = tiny_unet(seed=1, **(unet_options or {})).to(dtype)
    if library is diffusers:
        options_of_unet = json.loads(unet.to_json_string())
        theirs = diffusers.UNet2DModel(**{key: value for key, value in options_of_unet.items() if key[0] != "_"})
        theirs.load_state_dict(unet.state_dict())
        unet = theirs.to(dtype).eval()
    scheduler = getattr(library, f"{name}Scheduler")(num_train_timesteps=20, **options)
    return quiet(getattr(library, f"{name}Pipeline")(unet=unet, scheduler=scheduler))


def load(library, folder, dtype=torch.float32):
    options = {"torch_dtype": dtype} if library is diffusers_ref else {"dtype": dtype, "low_cpu_mem_usage": False}
    return quiet(library.DiffusionPipeline.from_pretrained(folder, **options))


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "PNDM"])
@pytest.mark.parametrize("writer", [diffusers, diffusers_ref], ids=["from HF", "to HF"])
def test_networks_and_options_survive_the_move(tmp_path, writer, name):
    reader = diffusers_ref if writer is diffusers else diffusers
    options = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    written = make(writer, name, beta_schedule="squaredcos_cap_v2", **options)
    written.save_pretrained(tmp_path / "pipe")
    read = load(reader, tmp_path / "pipe")
    assert type(read).__name__ == f"{name}Pipeline" and type(read).__module__.startswith(f"{reader.__name__}.")
    for part in ("unet", "scheduler"):
        before, after = dict(getattr(written, part).config), dict(getattr(read, part).config)
        shared = {key for key in before.keys() & after.keys() if not key.startswith("_")}
        assert len(shared) >= 10
        for key in shared:
            assert json.dumps(before[key]) == json.dumps(after[key]), key
    sample = torch.randn(2, 3, 8, 8, generator=generator())
    with torch.no_grad():
        for t in (0, 7, 19):
            assert relative(written.unet(sample, t).sample, read.unet(sample, t).sample) <= 1e-6


@pytest.fixture
def same_draws(monkeypatch):
    """HF draws as this package does, in float32 whatever the dtype of the network: float64 runs have the same noise."""

    def draw(shape, generator=None, device=None, dtype=None, layout=None):
        return randn(shape, generator, device, torch.float64)

    for name in ("DDPM", "DDIM", "PNDM"):  # Modules that are imported later would keep the function that they find.
        getattr(diffusers, f"{name}Pipeline"), getattr(diffusers, f"{name}Scheduler")
    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers.") and "randn_tensor" in vars(module):
            monkeypatch.setattr(module, "randn_tensor", draw)


def last_sample(pipeline, **options):
    """The sampler's last tensor of an HF pipeline, which gives away images only."""
    steps = []
    step = pipeline.scheduler.step
    pipeline.scheduler.step = lambda *args, **kwargs: steps.append(step(*args, **kwargs)) or steps[-1]
    try:
        pipeline(batch_size=2, generator=generator(3), output_type="np", **options)
    finally:
        del pipeline.scheduler.step
    return steps[-1].prev_sample


def share_tables(theirs, ours):
    """Put our tables into HF's scheduler, at full width."""
    theirs.betas, theirs.alphas_cumprod = ours.betas.double(), ours.alphas_cumprod.double()
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(theirs, "final_alpha_cumprod"):
        theirs.final_alpha_cumprod = theirs.one if theirs.config.set_alpha_to_one else theirs.alphas_cumprod[0]


@pytest.mark.parametrize("run", RUNS)
def test_whole_runs_differ_by_their_tables_alone(tmp_path, same_draws, run):
    name, options, call, own, shared = RUNS[run]
    theirs = make(diffusers, name, torch.float64, SMALLEST_UNET, **options)
    theirs.save_pretrained(tmp_path / "pipe")
    ours = load(diffusers_ref, tmp_path / "pipe", torch.float64)
    expected = ours(batch_size=2, generator=generator(3), output_type="raw", **call).images
    with_own_tables = relative(expected, last_sample(theirs, **call))
    share_tables(theirs.scheduler, ours.scheduler)
    with_our_tables = relative(expected, last_sample(theirs, **call))
    assert own / 3 < with_own_tables < own * 3
    assert with_our_tables <= shared


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"variant": "fp16"}], ids=["shards", "variant"])
@pytest.mark.parametrize("writer", [diffusers, diffusers_ref], ids=["from HF", "to HF"])
def test_shards_and_variants_have_the_same_names(tmp_path, writer, options):
    written = make(writer, "DDIM").unet
    written.save_pretrained(tmp_path, **options)
    reader = diffusers_ref if writer is diffusers else diffusers
    variant = {"variant": options["variant"]} if "variant" in options else {}
    hf_only = {"low_cpu_mem_usage": False} if reader is diffusers else {}
    read = reader.UNet2DModel.from_pretrained(tmp_path, **variant, **hf_only)
    before, after = written.state_dict(), read.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, before[key]) for key, value in after.items())


def test_a_folder_that_hf_converted_to_another_scheduler(tmp_path):
    """HF writes the options of the scheduler's earlier class into its file; they are dropped."""
    pipeline = make(diffusers, "DDPM", variance_type="fixed_large")
    diffusers.DDIMPipeline(**pipeline.components).save_pretrained(tmp_path / "pipe")
    assert "variance_type" in (tmp_path / "pipe" / "scheduler" / "scheduler_config.json").read_text()
    assert load(diffusers_ref, tmp_path / "pipe").scheduler.config.num_train_timesteps == 20


def test_hf_reads_a_folder_with_conventions_it_does_not_know(tmp_path):
    ours = make(diffusers_ref, "DDIM", coefficients="float64")
    ours.pixel_rounding = "truncate"
    ours.save_pretrained(tmp_path / "pipe")
    theirs = load(diffusers, tmp_path / "pipe")
    images = theirs(batch_size=2, generator=generator(3), num_inference_steps=10, output_type="np").images
    expected = ours(batch_size=2, generator=generator(3), num_inference_steps=10, output_type="np").images
    assert abs(images - expected).max() < 1e-5
