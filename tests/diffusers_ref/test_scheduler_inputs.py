"""What all schedulers share: what they accept, what they refuse, and what they leave alone."""

from __future__ import annotations

import copy
import inspect
import json

import diffusers
import pytest
import torch

from diffusers_ref import ConfigError, DDIMScheduler, DDPMScheduler, PNDMScheduler

CLASSES = [DDPMScheduler, DDIMScheduler, PNDMScheduler]
NOISY = [DDPMScheduler, DDIMScheduler]
SHAPE = (2, 3, 4, 4)

every_class = pytest.mark.parametrize("kind", CLASSES)
noisy_class = pytest.mark.parametrize("kind", NOISY)


def ready(kind, steps: int = 4, **options):
    made = kind(num_train_timesteps=40, **options)
    made.set_timesteps(steps)
    return made


def pair(dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator).to(dtype), torch.randn(SHAPE, generator=generator).to(dtype)


def run(made, dtype=torch.float32, seed: int = 1):
    x, _ = pair(dtype)
    generator = torch.Generator().manual_seed(seed)
    for t in made.timesteps:
        x = made.step(torch.sin(x), t, x, generator=generator).prev_sample
    return x


# --- refused ----------------------------------------------------------------------------------------------------------


@every_class
def test_a_step_needs_timesteps_first(kind):
    e, x = pair()
    with pytest.raises(ValueError, match="no timesteps yet: call set_timesteps"):
        kind().step(e, 10, x)
    with pytest.raises(ValueError, match="call set_timesteps"):
        kind().set_begin_index(0)


@every_class
def test_shapes_must_fit(kind):
    e, x = pair()
    with pytest.raises(
        ValueError, match=r"shape \(2, 3, 4\); allowed for a sample of shape \(2, 3, 4, 4\): \(2, 3, 4, 4\)"
    ):
        ready(kind).step(e[..., 0], 30, x)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 4, 4\)"):
        ready(kind).step(e[:1], 30, x)


@every_class
def test_inputs_must_be_floating_tensors(kind):
    e, x = pair()
    with pytest.raises(ValueError, match=r"sample must have a floating dtype, not torch.int64"):
        ready(kind).step(e, 30, x.long())
    with pytest.raises(TypeError, match="model_output must be a tensor, not list"):
        ready(kind).step([0.0], 30, x)


@every_class
def test_a_timestep_must_be_in_the_list(kind):
    e, x = pair()
    with pytest.raises(ValueError, match=r"timestep 31 does not begin a step of this scheduler; its timesteps: 30, "):
        ready(kind).step(e, 31, x)
    with pytest.raises(ValueError, match=r"one timestep for the whole batch, not a tensor of shape \(2,\)"):
        ready(kind).step(e, torch.tensor([30, 30]), x)


@noisy_class
def test_noise_is_either_drawn_or_given(kind):
    e, x = pair()
    with pytest.raises(ValueError, match="either generator or variance_noise"):
        ready(kind).step(e, 30, x, generator=torch.Generator(), variance_noise=x)
    with pytest.raises(ValueError, match=r"sample's shape \(2, 3, 4, 4\), not \(1, 3, 4, 4\)"):
        ready(kind).step(e, 30, x, variance_noise=x[:1])
    with pytest.raises(ValueError, match="a list of 1 generators"):
        ready(kind).step(e, 30, x, generator=[torch.Generator()])


@noisy_class
def test_a_refused_step_does_not_move_on(kind):
    made = ready(kind)
    e, x = pair()
    with pytest.raises(ValueError):
        made.step(e, 30, x, generator=torch.Generator(), variance_noise=x)
    assert made.step_index is None


@every_class
def test_unknown_option_values_are_named_with_the_allowed_ones(kind):
    with pytest.raises(ConfigError, match=r"timestep_spacing='even'.*'leading', 'linspace', 'trailing'"):
        kind(timestep_spacing="even")
    with pytest.raises(ConfigError, match=r"prediction_type='noise'.*'epsilon'"):
        kind(prediction_type="noise")


@every_class
def test_begin_index_must_be_in_the_list(kind):
    with pytest.raises(ValueError, match="begin_index=99 does not begin a step; allowed: 0"):
        ready(kind).set_begin_index(99)


# --- accepted ---------------------------------------------------------------------------------------------------------


@every_class
def test_a_timestep_is_a_tensor_an_int_or_a_float(kind):
    e, x = pair()
    results = [
        ready(kind).step(e, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
        for t in (30, 30.0, torch.tensor(30), torch.tensor([30]), ready(kind).timesteps[0])
    ]
    assert all(torch.equal(result, results[0]) for result in results)


@noisy_class
def test_a_list_of_generators_gives_each_sample_its_own_noise(kind):
    e, x = pair()
    extra = {"eta": 1.0} if kind is DDIMScheduler else {}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    batch = ready(kind).step(e, 30, x, generator=generators, **extra).prev_sample
    alone = ready(kind).step(e[1:], 30, x[1:], generator=torch.Generator().manual_seed(4), **extra).prev_sample
    assert torch.equal(batch[1:], alone)


@every_class
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_at_the_end(kind, dtype):
    e, x = pair(dtype)
    half = ready(kind).step(e, 30, x, generator=torch.Generator().manual_seed(0)).prev_sample
    full = ready(kind).step(e.float(), 30, x.float(), generator=torch.Generator().manual_seed(0)).prev_sample
    assert half.dtype == dtype and torch.equal(half, full.to(dtype))


@every_class
def test_double_precision_is_kept(kind):
    made = ready(kind)
    double, single = run(made, torch.float64), run(made, torch.float32)
    assert double.dtype == torch.float64 and torch.allclose(double.float(), single, atol=1e-5)
    assert not torch.equal(double, single.double())


@every_class
def test_results_read_as_object_and_as_tuple(kind):
    e, x = pair()
    out = ready(kind).step(e, 30, x, generator=torch.Generator().manual_seed(0))
    values = ready(kind).step(e, 30, x, generator=torch.Generator().manual_seed(0), return_dict=False)
    assert (
        isinstance(values, tuple) and torch.equal(values[0], out.prev_sample) and torch.equal(out[0], out.prev_sample)
    )


@every_class
def test_the_loop_of_published_pipelines_works(kind):
    made = ready(kind)
    x, _ = pair()
    assert made.init_noise_sigma == 1.0 and made.order == 1 and len(made) == 40
    assert made.scale_model_input(x, made.timesteps[0]) is x
    assert made.network_timestep(made.timesteps[0]) == made.timesteps[0]


@every_class
def test_before_set_timesteps_the_list_is_the_training_range(kind):
    made = kind(num_train_timesteps=5)
    assert made.timesteps.tolist() == [4, 3, 2, 1, 0] and made.num_inference_steps is None


# --- the place in the list --------------------------------------------------------------------------------------------


@every_class
def test_a_scheduler_can_be_used_again(kind):
    fresh = run(ready(kind))
    made = ready(kind)
    run(made, seed=9)
    assert torch.equal(run(made), fresh)
    made.set_timesteps(8)
    run(made)
    made.set_timesteps(4)
    assert torch.equal(run(made), fresh)
    assert torch.equal(run(copy.deepcopy(made)), fresh)


@every_class
def test_an_entry_of_the_list_is_recognised_by_its_place_in_memory(kind):
    made = ready(kind)
    assert [made._entry_without_sync(t) for t in made.timesteps] == list(range(len(made.timesteps)))
    assert made._entry_without_sync(made.timesteps[1].clone()) is None
    assert made._entry_without_sync(made.timesteps[1].float().to(torch.float16)) is None


@noisy_class
def test_sampling_begins_where_it_is_told(kind):
    made = ready(kind)
    e, x = pair()
    made.set_begin_index(2)
    assert made.begin_index == made.step_index == 2
    made.step(e, made.timesteps[2], x)
    assert made.step_index == 3
    made.step(e, made.timesteps[1], x)  # any other entry: sampling goes on from there
    assert made.step_index == 2
    made.set_timesteps(4)
    assert made.begin_index is made.step_index is None


# --- the forward process ----------------------------------------------------------------------------------------------


@every_class
def test_noise_is_added_per_sample(kind):
    made = kind(num_train_timesteps=40)
    x0, noise = pair()
    noisy = made.add_noise(x0, noise, torch.tensor([3, 30]))
    for sample, t in enumerate((3, 30)):
        a = made.alphas_cumprod[t].double()
        expected = a.sqrt() * x0[sample].double() + (1 - a).sqrt() * noise[sample].double()
        # Two coefficients, two products and a sum, each rounded by up to 6e-8 of values below 4.
        assert torch.allclose(noisy[sample].double(), expected, atol=1e-6)
        assert torch.equal(noisy[sample], made.add_noise(x0, noise, t)[sample])


@every_class
def test_noise_sample_and_velocity_belong_together(kind):
    made = kind(num_train_timesteps=40)
    x0, noise = pair(torch.float64)
    t = torch.tensor([5, 39])
    x, v = made.add_noise(x0, noise, t), made.get_velocity(x0, noise, t)
    a = made.alphas_cumprod[t].double().view(2, 1, 1, 1)
    assert torch.allclose(a.sqrt() * x - (1 - a).sqrt() * v, x0, atol=1e-6)
    assert torch.allclose((1 - a).sqrt() * x + a.sqrt() * v, noise, atol=1e-6)


@every_class
def test_the_tables_are_left_alone(kind):
    made = ready(kind)
    before, dtype = made.alphas_cumprod.clone(), made.alphas_cumprod.dtype
    for sample_dtype in (torch.float16, torch.float64):
        x0, noise = pair(sample_dtype)
        assert made.add_noise(x0, noise, 7).dtype == sample_dtype
        assert made.get_velocity(x0, noise, 7).dtype == sample_dtype
        run(made, sample_dtype)
    assert made.alphas_cumprod.dtype == dtype and torch.equal(made.alphas_cumprod, before)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        (40, r"timesteps 40 are out of range; allowed: 0 to 39"),
        (torch.tensor([-1, 3]), r"timesteps \[-1, 3\] are out of range"),
        (torch.tensor([1, 2, 3]), r"shape \(3,\); allowed: \(\) or \(2,\)"),
        (torch.tensor(1.5), "must be integers, not torch.float32"),
    ],
)
def test_noise_is_added_at_training_timesteps_only(timesteps, message):
    with pytest.raises(ValueError, match=message):
        DDPMScheduler(num_train_timesteps=40).add_noise(*pair(), timesteps)


# --- configurations ---------------------------------------------------------------------------------------------------


@every_class
def test_published_options_have_the_defaults_of_hf(kind):
    theirs = inspect.signature(getattr(diffusers, kind.__name__).__init__).parameters
    ours = inspect.signature(kind.__init__).parameters
    assert set(ours) - set(theirs) == kind.convention_options and set(theirs) <= set(ours)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name


@every_class
def test_a_scheduler_survives_its_file(kind, tmp_path):
    made = kind(num_train_timesteps=40, beta_schedule="scaled_linear", coefficients="float64", steps_offset=1)
    made.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert dict(again.config) == dict(made.config)
    assert kind.from_pretrained(tmp_path, steps_offset=0).config.steps_offset == 0
    made.set_timesteps(4)
    again.set_timesteps(4)
    assert torch.equal(run(again), run(made))


@every_class
def test_files_without_conventions_hold_published_options_only(kind, tmp_path):
    kind().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert not set(written) & kind.convention_options
    theirs = getattr(diffusers, kind.__name__).from_pretrained(tmp_path)
    assert theirs.config.num_train_timesteps == 1000
