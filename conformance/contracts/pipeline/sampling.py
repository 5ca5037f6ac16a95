"""Contracts of the sampling loop: its steps, its times, its scheduler, its beginning."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_close, require_finite, require_same
from conformance.contracts.pipeline.driver import MORE_STEPS, STEPS, PipelineUnderTest
from conformance.contracts.result import NotApplicable, Violation
from conformance.contracts.tensors import lacks_kernel, require_different

INITIAL = ("latents", "sample")
"""Names under which a call takes x_T."""

FLOAT_ULPS = 8 * 2.0**-23
"""A product of float32 numbers, rounded once or twice and compared with the same product in another order."""


def steps_are_honoured(subject: PipelineUnderTest, given: Given) -> None:
    """The network is called for every timestep of the scheduler, a fixed number of times each, and the number of steps
    changes the images."""
    subject.require("num_inference_steps")
    images, per_step = [], {}
    for steps in (STEPS, MORE_STEPS):
        pipeline = subject.fresh()
        with subject.watched(pipeline) as calls:
            images.append(subject.run(pipeline, steps=steps))
        times = len(subject.scheduler(pipeline).timesteps)
        if times < steps or len(calls) % times:
            raise Violation(f"num_inference_steps={steps}: {times} timesteps, but {len(calls)} network calls")
        per_step[steps] = len(calls) // times
    if len(set(per_step.values())) > 1:
        raise Violation(f"network calls per timestep differ with the number of steps: {per_step}")
    require_different(images[0], images[1], f"{MORE_STEPS} steps instead of {STEPS}", bound=1e-3)


def network_times_are_not_rounded(subject: PipelineUnderTest, given: Given) -> None:
    """In half precision the network receives the same times as in float32: they are not cast to the images' dtype."""
    subject.require("num_inference_steps")
    for steps in range(STEPS, 4 * STEPS):
        exact = _times(subject, torch.float32, steps)
        if any(float(torch.tensor(t, dtype=torch.bfloat16)) != t for call in exact for t in call):
            break
    else:
        raise NotApplicable("every time of every grid tried is a bfloat16 number")
    for dtype in (torch.bfloat16, torch.float16):
        for index, (found, wanted) in enumerate(zip(_times(subject, dtype, steps), exact, strict=False)):
            if found != wanted:
                raise Violation(
                    f"in {dtype} network call {index} of {steps} steps receives the time {found[0]!r} instead of "
                    f"{wanted[0]!r}",
                    step=index,
                )


def _times(subject: PipelineUnderTest, dtype: torch.dtype, steps: int) -> list[list[float]]:
    pipeline = subject.fresh_in(dtype)
    with subject.watched(pipeline) as calls:
        try:
            subject.run(pipeline, steps=steps)
        except Exception:
            if not calls:  # What fails later, say in making images, is another contract's affair.
                raise
    return [call.times for call in calls]


def half_precision_is_finite(subject: PipelineUnderTest, given: Given) -> None:
    """In bfloat16 and float16 the network works in that dtype and the images are finite."""
    for dtype in (torch.bfloat16, torch.float16):
        pipeline = subject.fresh_in(dtype)
        with subject.watched(pipeline) as calls:
            try:
                images = subject.run(pipeline)
            except RuntimeError as error:
                if lacks_kernel(error):
                    raise NotApplicable(str(error)) from None
                raise
        require_finite(images, f"the images of a {dtype} pipeline")
        found = {call.sample.dtype for call in calls}
        if found != {dtype}:
            raise Violation(f"after to({dtype}) the network receives {', '.join(map(str, found))}")


def scheduler_scales_the_network_input(subject: PipelineUnderTest, given: Given) -> None:
    """x_T is multiplied by the scheduler's `init_noise_sigma`, unless `add_noise` makes it, and each network input goes
    through `scale_model_input`: samplers in another scaling depend on both."""
    subject.require("generator")
    pipeline = subject.fresh()
    scheduler = subject.scheduler(pipeline)
    for name in ("scale_model_input", "init_noise_sigma"):
        if not hasattr(scheduler, name):
            raise NotApplicable(f"{type(scheduler).__name__} has no {name}")
    others = (subject.scheduler(other) for _, other in _with_other_schedulers(subject))
    if all(type(other) is type(scheduler) for other in others):
        raise NotApplicable(f"the pipeline takes or knows no scheduler but {type(scheduler).__name__}")
    noised = _count_calls(scheduler, "add_noise") if hasattr(scheduler, "add_noise") else []
    wanted = _first_input(subject, pipeline)
    pipeline = subject.fresh()
    scheduler = subject.scheduler(pipeline)
    original = scheduler.scale_model_input
    scheduler.scale_model_input = lambda sample, *args, **kwargs: 0.5 * original(sample, *args, **kwargs)
    require_close(
        _first_input(subject, pipeline), 0.5 * wanted, "the network input, halved by scale_model_input",
        bound=FLOAT_ULPS,
    )  # fmt: skip
    if noised:  # The start is a noised image, which add_noise has scaled.
        return
    pipeline = subject.fresh()
    _override(subject.scheduler(pipeline), init_noise_sigma=3 * subject.scheduler(pipeline).init_noise_sigma)
    require_close(
        _first_input(subject, pipeline), 3 * wanted, "the network input, x_T made thrice as large by init_noise_sigma",
        bound=FLOAT_ULPS,
    )  # fmt: skip


def _first_input(subject: PipelineUnderTest, pipeline: Any, **options: Any) -> torch.Tensor:
    with subject.watched(pipeline) as calls:
        subject.run(pipeline, **options)
    return calls[0].sample


def _count_calls(thing: Any, method: str) -> list[bool]:
    """Grows by one with each call of a method of the object."""
    calls: list[bool] = []
    original = getattr(thing, method)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(True)
        return original(*args, **kwargs)

    setattr(thing, method, counted)
    return calls


def _override(thing: Any, **attributes: Any) -> None:
    """Give an object attributes of its own, also in place of properties."""

    def fixed(value: Any) -> property:
        return property(lambda self: value, lambda self, ignored: None)

    kept = {name: fixed(value) for name, value in attributes.items()}
    thing.__class__ = type(type(thing).__name__, (type(thing),), kept)
    for name in attributes:
        vars(thing).pop(name, None)


def compatible_schedulers_run(subject: PipelineUnderTest, given: Given) -> None:
    """With every scheduler of the library that accepts the configuration, the pipeline runs to finite images."""
    wanted = subject.run(subject.fresh()).shape
    tried, failed = [], []
    for name, pipeline in _with_other_schedulers(subject):
        tried.append(name)
        try:
            images = subject.run(pipeline)
        except NotApplicable:
            raise
        except Exception as error:  # noqa: BLE001 - any error is the finding
            failed.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:100]}")
            continue
        if not images.isfinite().all() or images.shape != wanted:
            broken = int((~images.isfinite()).sum())
            failed.append(f"{name}: images of shape {tuple(images.shape)}, {broken} values not finite")
    if not tried:
        raise NotApplicable("no other scheduler of the library accepts the configuration")
    if failed:
        raise Violation(f"{len(failed)} of {len(tried)} fail: {'; '.join(failed)}")


def _with_other_schedulers(subject: PipelineUnderTest) -> Iterator[tuple[str, Any]]:
    """Scheduler class name and the pipeline with one of these, for all that accept its scheduler's configuration."""
    pipeline = subject.fresh()
    scheduler = subject.scheduler(pipeline)
    component = next(name for name, each in pipeline.components.items() if each is scheduler)
    classes = getattr(scheduler, "compatibles", None)
    if classes is None:
        library = importlib.import_module(type(scheduler).__module__.split(".")[0])
        classes = [getattr(library, name) for name in dir(library) if name.endswith("Scheduler")]
    for cls in sorted(set(classes) - {type(scheduler)}, key=lambda cls: cls.__name__):
        try:
            other = cls.from_config(scheduler.config)
            changed = subject.rebuilt(subject.fresh(), **{component: other})
        except (ValueError, TypeError, AttributeError, ImportError, NotImplementedError):
            continue
        yield cls.__name__, changed


def given_latents_are_used(subject: PipelineUnderTest, given: Given) -> None:
    """x_T that is passed is what the network sees first, but for the scheduler's scaling, whatever the generator."""
    name = next((name for name in INITIAL if subject.takes(name)), None)
    if name is None:
        raise NotApplicable(f"a call takes no {' or '.join(INITIAL)}")
    drawn = _first_input(subject, subject.fresh())[:1]
    source = torch.Generator().manual_seed(11)
    latents = torch.randn(drawn.shape, generator=source)
    seen = []
    for seed in (0, 1):
        try:
            seen.append(_first_input(subject, subject.fresh(), seed=seed, **{name: latents.clone()})[:1])
        except ValueError as error:
            raise NotApplicable(f"what the network receives is no {name}: {error}") from None
    require_same(seen[1], seen[0], f"the network's first input for the same {name} and another seed")
    ratio = float((seen[0] * latents).sum() / latents.square().sum())
    require_close(seen[0], ratio * latents, f"the network's first input, beside a multiple of {name}", bound=FLOAT_ULPS)
    if ratio <= 0:
        raise Violation(f"the network's first input is {ratio:g} · {name}")


CONTRACTS = (
    Contract(steps_are_honoured),
    Contract(network_times_are_not_rounded),
    Contract(half_precision_is_finite),
    Contract(scheduler_scales_the_network_input),
    Contract(compatible_schedulers_run),
    Contract(given_latents_are_used),
)
