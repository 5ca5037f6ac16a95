"""Replays: what is compared, in which order, and how everything that can go wrong becomes a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conformance.compare import Comparison, Verdict
from conformance.errors import ConformanceError, FixtureError, Unsupported
from conformance.fixture import Fixture, Subject, TensorFile
from conformance.implementations import open_implementation
from conformance.implementations.base import Implementation
from conformance.implementations.reference import ReferenceImplementation
from conformance.library import open_library
from conformance.replay import CaseResult, Settings, _explained, replay
from conformance.replay.checkpoints import original_state

PORTS = Path(__file__).with_name("ported_schedulers.py")
DDIM, DDPM = "ddim/ddim-uniform-2-eta-1", "ddpm/cifar-linear-fixedsmall-eps-3"


def fixture(name: str) -> Fixture:
    return open_library().get(name)


def run(name: str, implementation: Implementation | None = None, dtype: str = "float32") -> CaseResult:
    return replay(fixture(name), implementation or ReferenceImplementation(), Settings.of("cpu", dtype))


def ported(name: str) -> Implementation:
    return open_implementation(f"{PORTS}:{name}")


# --- what is compared ------------------------------------------------------------------------------------------------


def test_a_scheduler_is_compared_from_tables_to_the_seeded_run() -> None:
    result = run(DDPM)

    assert [c.output for c in result.comparisons] == [
        "timesteps", "betas", "alphas_cumprod", "step", "pred_original_sample", "sample",
        "step.f64", "pred_original_sample.f64", "sample.f64", "seeded",
    ]  # fmt: skip
    assert (result.kind, result.verdict.green, result.draws_match, result.message) == ("scheduler", True, True, "")
    assert all(c.floor == 1e-12 for c in result.comparisons if c.output.endswith(".f64"))


def test_a_network_is_compared_module_by_module() -> None:
    result = run("ddim/network-tiny")
    names = [c.output for c in result.comparisons]
    narrow, wide = names[1 : len(names) // 2 + 1], names[len(names) // 2 + 1 :]

    assert names[:2] == ["embedding", "tap:temb.dense.0"]
    assert narrow[-1] == "sample"
    assert wide == [f"{name}.f64" for name in narrow]
    assert len(narrow) > 50
    assert result.verdict.green
    assert result.draws_match is None


def test_a_pipeline_is_compared_from_steps_to_pixels() -> None:
    result = run("ddim/pipeline-ddim-7-eta-0.5")

    assert [c.output for c in result.comparisons] == [
        "embedding", "sample", "images", "seeded", "integers", "sample.f64", "images.f64",
    ]  # fmt: skip
    assert result.verdict.green
    assert result.draws_match is True


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_compared_once(dtype: str) -> None:
    result = run(DDIM, dtype=dtype)

    assert [c.output for c in result.comparisons] == ["timesteps", "step", "pred_original_sample", "sample"]
    assert result.verdict is Verdict.EQUIVALENT
    assert result.draws_match is None


def test_a_float64_run_is_compared_with_the_oracle_and_never_bitwise() -> None:
    result = run(DDPM, dtype="float64")

    assert {c.output for c in result.comparisons} == {
        "timesteps", "betas", "alphas_cumprod", "step.f64", "pred_original_sample.f64", "sample.f64",
    }  # fmt: skip
    assert result.verdict is Verdict.EQUIVALENT


# --- implementations of a user's own ---------------------------------------------------------------------------------


def test_a_good_port_passes() -> None:
    result = run(DDIM, ported("GoodDDIMScheduler"))

    assert result.verdict is run(DDIM).verdict
    assert result.draws_match is True


def test_a_port_that_draws_itself_is_fed_from_the_tape() -> None:
    result = run(DDPM, ported("WithoutVarianceNoise"))

    assert (result.verdict, result.draws_match) == (run(DDPM).verdict, True)


def test_a_port_without_a_generator_cannot_follow_the_stream() -> None:
    result = run(DDPM, ported("WithoutGenerator"))

    assert (result.verdict, result.draws_match) == (Verdict.DIVERGENT, False)
    assert [c.output for c in result.comparisons if not c.verdict.green] == ["seeded"]


def test_a_drifted_port_is_divergent() -> None:
    result = run("ddim/ddim-uniform-2-eta-0", ported("DriftedDDIMScheduler"))

    assert result.verdict is Verdict.DIVERGENT
    assert result.rho is not None
    assert result.rho > 4


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (f"{PORTS}:Nothing", r"has no class 'Nothing'; it has: .*BrokenDDIMScheduler"),
        ("absent.py:Port", "absent.py: no such file"),
        ("no.such.module:Port", "no.such.module: cannot be imported: ModuleNotFoundError"),
        ("conformance:__version__", "conformance has no class '__version__'; it has: none"),
        ("hf", "implementation 'hf'; allowed: diffusers_ref, diffusers, path/to/file.py:Class, package.module:Class"),
    ],
)
def test_an_implementation_that_cannot_be_opened_is_an_error(location: str, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        open_implementation(location)


def test_a_file_that_fails_to_import_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text("1 / 0", encoding="utf-8")

    with pytest.raises(ConformanceError, match="cannot be imported: ZeroDivisionError: division by zero"):
        open_implementation(f"{tmp_path / 'port.py'}:Port")


def test_a_module_path_names_a_class_too() -> None:
    implementation = open_implementation("diffusers_ref.schedulers.ddim:DDIMScheduler")

    assert run(DDIM, implementation).verdict.green


class AnyKeyword(ReferenceImplementation):
    """A scheduler whose step takes whatever it is given and hands it on."""

    def scheduler(self, subject: Subject) -> Any:
        scheduler = super().scheduler(subject)
        step = scheduler.step
        scheduler.step = lambda *arguments, **options: step(*arguments, **options)
        return scheduler


def test_a_step_that_takes_any_keyword_gets_the_generator() -> None:
    result = run("ddim/ddim-uniform-7-eta-0.3", AnyKeyword())

    assert (result.verdict, result.draws_match) == (Verdict.BITWISE, True)


class OneStepMore(ReferenceImplementation):
    def set_timesteps(self, scheduler: Any, subject: Subject) -> None:
        scheduler.set_timesteps((subject.set_timesteps or {})["num_inference_steps"] + 1)


def test_another_number_of_steps_is_divergent_and_not_an_error() -> None:
    result = run(DDIM, OneStepMore())

    assert result.verdict is Verdict.DIVERGENT
    assert [c.output for c in result.comparisons] == ["timesteps"]
    assert result.message == "timesteps at step 0: (4,) entries [999, 666, 333, …], the original has (2,) [500, 0]"
    assert result.draws_match is None


# --- unsupported, error, draws ---------------------------------------------------------------------------------------


class Lacking(ReferenceImplementation):
    """Offers nothing."""

    scheduler, model, pipeline = Implementation.scheduler, Implementation.model, Implementation.pipeline
    original_shapes = Implementation.original_shapes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (DDIM, "diffusers_ref offers no schedulers"),
        ("ddim/network-tiny", "diffusers_ref reads no original checkpoints"),
        ("ddim/pipeline-ddim-7-eta-0.5", "diffusers_ref reads no original checkpoints"),
    ],
)
def test_a_missing_feature_is_unsupported_and_not_green(name: str, message: str) -> None:
    result = run(name, Lacking())

    assert (result.verdict, result.message) == (Verdict.UNSUPPORTED, message)
    assert not result.verdict.green
    assert result.to_dict()["rho"] is None


@pytest.mark.parametrize(
    ("implementation", "subject", "message"),
    [
        (ported("GoodDDIMScheduler"), {"cls": "PNDMScheduler"}, "GoodDDIMScheduler does not stand for PNDMScheduler"),
        (ported("WithoutGenerator"), {"cls": "DDPMPipeline"}, "WithoutGenerator does not stand for DDPMPipeline"),
        (ReferenceImplementation(), {"cls": "EulerScheduler"}, "diffusers_ref has no EulerScheduler"),
    ],
)
def test_an_implementation_says_what_it_cannot_be(
    implementation: Implementation, subject: dict[str, Any], message: str
) -> None:
    with pytest.raises(Unsupported, match=message):
        implementation.scheduler(Subject(config={}, **subject))


def test_an_unknown_checkpoint_format_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="diffusers_ref does not read checkpoints of someone/code"):
        ReferenceImplementation().original_shapes(Subject("UNet2DModel", {}, original="someone/code"))


def test_an_implementation_that_raises_is_an_error_with_its_message() -> None:
    result = run(DDIM, ported("BrokenDDIMScheduler"))

    assert (result.verdict, result.message) == (Verdict.ERROR, "IndexError: index 14 is out of bounds")
    assert result.comparisons == []
    assert result.first_divergence is None


class WithoutFloat64(ReferenceImplementation):
    def pipeline(self, subject: Subject, checkpoint: Path, original_config: Path) -> Any:
        pipeline = super().pipeline(subject, checkpoint, original_config)
        to = pipeline.to

        def narrow_only(target: Any) -> Any:
            if target == torch.float64:
                raise TypeError("no float64 here")
            return to(target)

        pipeline.to = narrow_only
        return pipeline


def test_a_pipeline_without_float64_is_an_error_that_still_shows_float32() -> None:
    result = run("ddim/pipeline-ddim-7-eta-0.5", WithoutFloat64())

    assert result.verdict is Verdict.ERROR
    assert result.message == "sample.f64: TypeError: no float64 here"
    assert [c.verdict.green for c in result.comparisons] == [True] * 5 + [False]


class SkipsTheLastDraw(ReferenceImplementation):
    """Numbers agree, the generator is left behind."""

    def scheduler(self, subject: Subject) -> Any:
        scheduler = super().scheduler(subject)
        step = scheduler.step

        def without_last_draw(
            output: Any, t: Any, x: Any, eta: float, generator: Any = None, variance_noise: Any = None
        ) -> Any:
            if generator is not None and t == scheduler.timesteps[-1]:
                generator, variance_noise = None, torch.zeros_like(x)
            return step(output, t, x, eta=eta, generator=generator, variance_noise=variance_noise)

        scheduler.step = without_last_draw
        return scheduler


def test_draws_that_do_not_match_are_divergent_though_numbers_agree() -> None:
    result = run(DDIM, SkipsTheLastDraw())

    assert all(c.verdict.green for c in result.comparisons)
    assert (result.verdict, result.draws_match) == (Verdict.DIVERGENT, False)
    assert result.message == "draws: the generator is not consumed as the original consumes it"


def test_a_damaged_fixture_is_not_blamed_on_the_implementation() -> None:
    manifest = dataclasses.replace(fixture(DDIM).manifest, tensors=TensorFile("absent.safetensors", "0" * 64, {}))

    with pytest.raises(FixtureError, match=r"absent\.safetensors: tensors are missing"):
        replay(Fixture(manifest, fixture(DDIM).path), ReferenceImplementation(), Settings())


# --- state of the process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [DDPM, "ddim/pipeline-ddim-7-eta-0.5", "ddim/network-tiny"])
def test_a_replay_leaves_global_state_alone(name: str) -> None:
    torch.set_num_threads(2)
    state, functions = torch.get_rng_state(), (torch.randn, torch.randn_like)

    run(name, ported("WithoutGenerator") if name == DDPM else None)

    try:
        assert torch.equal(torch.get_rng_state(), state)
        assert (torch.randn, torch.randn_like) == functions
        assert torch.get_num_threads() == 2
        assert torch.is_grad_enabled()
    finally:
        torch.set_num_threads(1)


class Watching(ReferenceImplementation):
    def scheduler(self, subject: Subject) -> Any:
        self.seen = torch.get_num_threads(), torch.is_grad_enabled()
        return super().scheduler(subject)


def test_a_replay_runs_on_the_threads_of_the_recording_without_gradients() -> None:
    implementation = Watching()
    run(DDIM, implementation)

    assert implementation.seen == (fixture(DDIM).manifest.environment.threads, False)


# --- settings and results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("cpu", "int8", "dtype 'int8'; allowed: float32, float64, float16, bfloat16"),
        ("banana", "float32", "device 'banana' cannot be used on this machine: .*banana"),
    ],
)
def test_settings_that_cannot_be_are_refused(device: str, dtype: str, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        Settings.of(device, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_the_machine_lacks_is_refused() -> None:
    with pytest.raises(ConformanceError, match=r"device 'cuda' cannot be used on this machine: .*CUDA"):
        Settings.of("cuda")


def test_a_result_is_plain_finite_data() -> None:
    comparisons = [
        Comparison("step", Verdict.EQUIVALENT, rho=2.0, error=2e-7, floor=1e-7),
        Comparison("betas", Verdict.DIVERGENT, float("inf"), float("inf"), step=3, level="table"),
        Comparison("sample", Verdict.DIVERGENT, rho=float("nan"), error=5e-7, floor=1e-7, step=1, detail="far off"),
    ]
    result = _explained(CaseResult("a/b", "scheduler", Verdict.DIVERGENT, comparisons, True, 1.23456))

    assert result.to_dict() == {
        "id": "a/b", "kind": "scheduler", "verdict": "divergent", "rho": None, "max_error": None,
        "result_error": None, "noise_floor": 1e-7,
        "first_divergence": {"step": 1, "tap": "sample"}, "draws_match": True, "seconds": 1.2346,
        "message": "sample at step 1: far off; betas at step 3: ",
    }  # fmt: skip


def test_a_table_is_the_first_divergence_only_if_nothing_else_differs() -> None:
    table = Comparison("betas", Verdict.DIVERGENT, step=0, level="table")
    step = Comparison("step", Verdict.DIVERGENT, step=4)

    assert CaseResult("a/b", "scheduler", Verdict.DIVERGENT, [table]).first_divergence is table
    assert CaseResult("a/b", "scheduler", Verdict.DIVERGENT, [table, step]).first_divergence is step


def test_a_message_names_three_divergences_and_counts_the_rest() -> None:
    comparisons = [Comparison(f"output{i}", Verdict.DIVERGENT, detail="d") for i in range(5)]
    result = _explained(CaseResult("a/b", "model", Verdict.DIVERGENT, comparisons, False))

    assert result.message == (
        "output0: d; output1: d; output2: d; and 2 more; "
        "draws: the generator is not consumed as the original consumes it"
    )


# --- checkpoints -----------------------------------------------------------------------------------------------------


def shapes_of(name: str) -> Mapping[str, tuple[int, ...]]:
    return ReferenceImplementation().original_shapes(fixture(name).manifest.subject)


def test_stored_parameters_replace_synthetic_ones() -> None:
    case = fixture("ddim/pipeline-ddim-7-eta-0.5")
    state = original_state(case, shapes_of(case.id))

    assert case.manifest.weights is not None
    assert case.manifest.weights.overrides == ["conv_out.bias", "conv_out.weight"]
    for name in case.manifest.weights.overrides:
        assert np.array_equal(state[name], case.tensors[f"weights.{name}"].numpy())
    assert {name: array.shape for name, array in state.items()} == dict(shapes_of(case.id))


@pytest.mark.parametrize("change", ["gone", "reshaped"])
def test_a_stored_parameter_must_fit_the_layout(change: str) -> None:
    case = fixture("ddim/pipeline-ddim-7-eta-0.5")
    shapes = dict(shapes_of(case.id))
    if change == "gone":
        del shapes["conv_out.bias"]
    else:
        shapes["conv_out.bias"] = (7,)

    with pytest.raises(FixtureError, match=r"override 'conv_out.bias' \(3,\) does not fit the original's layout"):
        original_state(case, shapes)
