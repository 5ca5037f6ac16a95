"""Recording networks and whole pipelines with synthetic weights.

A model case is one forward pass: the output in full, and a sketch of every module's output (taps).
A pipeline case is the original's sampling from x_T to pixels, through a checkpoint in the original's own form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from conformance.compare import Policy
from conformance.errors import ConformanceError
from conformance.fixture import Draw, Manifest, Output, Subject, Tape, TensorFile, Weights
from conformance.recorders.checkout import Original
from conformance.recorders.environment import environment, recorder
from conformance.recorders.last_layer import Examples, fit_last_layer
from conformance.recorders.networks import Network
from conformance.recorders.scheduler_case import FLOAT64_TOLERANCE, MAX_FLOOR, NUDGED_RUNS, Probe, Run, floors, nudge
from conformance.tape import INITIAL, recorded_draws, replayed_draws
from conformance.weights import synthetic_input, synthetic_state

MAX_SATURATED = 0.5  # of a pipeline's pixels
STORED_IN_FULL = 10_000  # numbers of an input or output; a larger network's are generated, or only sketched
# Float32 runs with moved inputs behind a network's floors. A sketch measures a rounding error by eight numbers: of few
# runs the largest is small by luck at some of the many modules.
SKETCHED_RUNS = {"default": 15, "full": NUDGED_RUNS, "hub": NUDGED_RUNS}
MAX_RHO = Policy.of("cuda", torch.float32).max_rho  # the widest bound that float32 replays are judged by
FLOAT32_PARTS = ("the sinusoidal timestep embedding (stored as a table)",)


@dataclass(frozen=True)
class ModelCase:
    """One forward pass of an original's network at times `times` (one per image)."""

    name: str
    title: str
    location: str
    format: str
    config: dict[str, Any]
    network: Callable[[], Network]
    shape: tuple[int, int, int]
    times: Sequence[float]
    functions: Sequence[str]
    changes: Sequence[str]
    lifted: Sequence[str]
    call: dict[str, Any] = field(default_factory=dict)
    cls: str = "UNet2DModel"
    seed: int = 0
    tier: str = "default"

    def record(self, original: Original, commit: str, modified: bool) -> tuple[Manifest, dict[str, torch.Tensor]]:
        """Run the original and assemble the fixture."""
        network = self.network()
        state = synthetic_state(network.shapes(), self.seed, network.rule)
        network.load(state)
        shape, t = (len(self.times), *self.shape), torch.tensor(self.times)
        stored = math.prod(shape) <= STORED_IN_FULL
        if stored:
            with recorded_draws(self.seed, lambda: 0) as log:
                x = torch.randn(shape)
            tape = Tape(self.seed, "torch-cpu", log.manifest())
        else:
            x = torch.from_numpy(synthetic_input(shape, self.seed))
            tape = Tape(self.seed, "philox-uniform", [Draw(INITIAL, list(shape), "float32")])
        y32, taps32 = network.observe(x, t)
        if not torch.equal(network(x, t), y32):
            raise ConformanceError(f"{self.name}: two runs of the original differ")
        y64, taps64 = network.observe(x.double(), t)
        embedding = embedding_of(network, t)
        moved = [(nudge(x, n), t, nudge(embedding["embedding"], 50 + n)) for n in range(SKETCHED_RUNS[self.tier])]
        runs, tap_runs = zip((y32, taps32), *(network.observe(*inputs) for inputs in moved), strict=True)
        names = list(taps32)
        stacked = torch.stack([taps64[name] for name in names])
        tensors = {
            "times": t,
            "taps.f64": stacked,
            "taps.floor": floors([torch.stack([taps[name] for name in names]) for taps in tap_runs], stacked),
            **embedding,
        }
        outputs = [
            Output("embedding", "step", *map(float, embedding["embedding.floor"].amax(0))),
            *(
                Output(f"tap:{name}", "tap", *map(float, floor))
                for name, floor in zip(names, tensors["taps.floor"], strict=True)
            ),
        ]
        if stored:
            floor = floors([run[None] for run in runs], y64[None])
            tensors |= {"inputs": x, "sample": y32, "sample.f64": y64, "sample.floor": floor}
            outputs.append(Output("sample", "final", *map(float, floor[0])))
        later = network(x, t + 1)
        information = {
            "time_shift_effect": float((later - y32).norm() / y32.norm()),
            "output_std": float(y32.std()),
            "parameters": float(sum(np.prod(shape) for shape in network.shapes().values())),
        }
        if self.tier == "default":
            information |= parameter_effects(network, state, lambda: network(x, t))
        subject = Subject(cls=self.cls, config=self.config, original=self.format, call=self.call)
        manifest = _manifest(self, original, commit, modified, "model", subject, Weights(network.rule, self.seed, []),
                             tape, outputs, information)  # fmt: skip
        return manifest, tensors


@dataclass(frozen=True)
class PipelineCase:
    """The original's sampling with its own network: `run(network, shape, dtype)` as for a scheduler case.

    Args:
        config: the original's configuration file, as data.
        checkpoint: form of the original's checkpoint file that a replay writes and loads.
        pixels: the original's map from its sampler's result to an image in [0, 1].
        integers: the original's map from its sampler's result to uint8.
        examples: what the last layer is fitted to.
        call: arguments of the pipeline.
    """

    name: str
    title: str
    location: str
    cls: str
    format: str
    config: dict[str, Any]
    checkpoint: str
    network: Callable[[], Network]
    run: Callable[[Callable[..., torch.Tensor], Sequence[int], torch.dtype], Run]
    pixels: Callable[[torch.Tensor], torch.Tensor]
    integers: Callable[[torch.Tensor], torch.Tensor]
    examples: Examples
    shape: tuple[int, int, int]
    call: dict[str, Any]
    functions: Sequence[str]
    changes: Sequence[str]
    lifted: Sequence[str]
    batch: int = 1
    seed: int = 0
    tier: str = "default"
    scheduler: dict[str, Any] = field(default_factory=dict)

    def record(self, original: Original, commit: str, modified: bool) -> tuple[Manifest, dict[str, torch.Tensor]]:
        """Run the original and assemble the fixture.

        Raises:
            ConformanceError: the run is ill conditioned, not repeatable, or leaves most pixels saturated.
        """
        network, overrides, r2 = self._fitted()
        shape = (self.batch, *self.shape)
        first = Probe(network)
        with recorded_draws(self.seed, lambda: len(first.outputs)) as log:
            y32 = self.run(first, shape, torch.float32)

        def again(
            dtype: torch.dtype, values: Sequence[torch.Tensor], call: Callable[..., torch.Tensor] = network
        ) -> tuple[torch.Tensor, torch.Tensor]:
            probe = Probe(call)
            with replayed_draws(values):
                result = self.run(probe, shape, dtype)
            return torch.stack([*probe.inputs[1:], result.final]), self.pixels(result.final)

        sample, images = torch.stack([*first.inputs[1:], y32.final]), self.pixels(y32.final)
        repeated, _ = again(torch.float32, log.values)
        if not torch.equal(repeated, sample):
            raise ConformanceError(f"{self.name}: two runs of the original differ")
        sample64, images64 = again(torch.float64, log.values)
        moved = [
            again(
                torch.float32,
                [nudge(value, 100 * n + i) for i, value in enumerate(log.values)],
                lambda x, t, n=n: network(x, t, nudge(network.embedding(t.to(torch.float32)), 50 + n)),
            )
            for n in range(NUDGED_RUNS)
        ]
        embedding = embedding_of(network, torch.tensor(first.times, dtype=torch.float32))
        sample_floor = floors([sample, *(m[0] for m in moved)], sample64)
        tensors = {
            "draws": torch.stack(log.values),
            "times": torch.tensor(first.times, dtype=torch.float64),
            "sample": sample,
            "sample.f64": sample64,
            "sample.floor": sample_floor,
            "images": images,
            "images.f64": images64,
            "images.floor": floors([images[None], *(m[1][None] for m in moved)], images64[None]),
            "integers": stable_integers(self.integers, y32.final, sample64[-1], float(sample_floor[-1, 1])),
            **embedding,
            **{f"weights.{name}": torch.from_numpy(array) for name, array in overrides.items()},
        }
        outputs = [
            Output("embedding", "step", *map(float, embedding["embedding.floor"].amax(0))),
            Output("sample", "step", *map(float, tensors["sample.floor"].amax(0))),
            Output("images", "final", *map(float, tensors["images.floor"][0])),
            Output("integers", "final", 0.0, 0.0),
        ]
        if (floor := max(output.noise_floor for output in outputs)) > MAX_FLOOR:
            raise ConformanceError(f"{self.name}: noise floor {floor:.2g} is above {MAX_FLOOR:.2g}: ill conditioned")
        information = {
            "last_layer_r2": r2,
            "saturated_pixels": float(((images <= 0) | (images >= 1)).double().mean()),
            "largest_value": float(sample.abs().max()),
        }
        if information["saturated_pixels"] > MAX_SATURATED:
            share = information["saturated_pixels"]
            raise ConformanceError(f"{self.name}: {share:.0%} of the pixels are saturated: it cannot show an error")
        subject = Subject(
            cls=self.cls,
            config=self.config,
            original=self.format,
            checkpoint=self.checkpoint,
            call=self.call,
            scheduler=self.scheduler or None,
        )
        manifest = _manifest(self, original, commit, modified, "pipeline", subject,
                             Weights(network.rule, self.seed, sorted(overrides)),
                             Tape(self.seed, "torch-cpu", log.manifest()), outputs, information)  # fmt: skip
        return manifest, tensors

    def _fitted(self) -> tuple[Network, dict[str, np.ndarray], float]:
        network = self.network()
        state = synthetic_state(network.shapes(), self.seed, network.rule)
        network.load(state)
        overrides, r2 = fit_last_layer(network, self.shape, self.examples)
        network.load({**state, **overrides})
        return network, overrides, r2


def embedding_of(network: Network, t: torch.Tensor) -> dict[str, torch.Tensor]:
    """The sinusoidal embedding of times t (n,) float32, as an output of its own.

    Its last bits differ between libraries, CPUs and GPUs, so it is kept apart from the network behind it: replays are
    given the original's values, and their own are compared. Its floor includes times one ulp earlier and later, which
    is also what another order of its operations amounts to.
    """
    table, exact = network.embedding(t), network.embedding(t.double())
    moved = [network.embedding(torch.nextafter(t, torch.full_like(t, limit))) for limit in (-math.inf, math.inf)]
    return {"embedding": table, "embedding.f64": exact, "embedding.floor": floors([table, *moved], exact)}


def parameter_effects(
    network: Network, state: dict[str, np.ndarray], run: Callable[[], torch.Tensor]
) -> dict[str, float]:
    """What 1 % more of one parameter does to the output, relative: the smallest over all, and how many do nothing.

    A fixture cannot see a mistake in a parameter that does nothing.
    """
    output = run()
    effects = []
    for name, array in state.items():
        network.load({**state, name: array * np.float32(1.01)})
        effects.append(float((run() - output).norm() / output.norm()))
    network.load(state)
    alive = [effect for effect in effects if effect > 1e-6]
    return {"smallest_parameter_effect": min(alive), "parameters_without_effect": float(len(effects) - len(alive))}


def stable_integers(
    integers: Callable[[torch.Tensor], torch.Tensor], y32: torch.Tensor, y64: torch.Tensor, floor: float
) -> torch.Tensor:
    """int16: the uint8 images of the original's float32 result, -1 where rounding decides.

    Args:
        integers: the original's map from a result to uint8; monotone.
        y32: the float32 result.
        y64: the oracle's.
        floor: by element. Whatever is equivalent lies within `MAX_RHO` of it, and must give the same integers, unless
            the value is a clamp's, which no rounding moves.
    """
    bound = torch.where(y32 == y64, 0.0, MAX_RHO * floor * y64.abs().max())
    lowest, found, highest = (integers(result).to(torch.int16) for result in (y64 - bound, y32, y64 + bound))
    return torch.where((lowest == found) & (found == highest), found, -1)


def _manifest(
    case: ModelCase | PipelineCase,
    original: Original,
    commit: str,
    modified: bool,
    kind: Any,
    subject: Subject,
    weights: Weights,
    tape: Tape,
    outputs: list[Output],
    information: dict[str, float],
) -> Manifest:
    reference = original.reference(commit, modified, case.functions, case.changes, case.lifted, FLOAT32_PARTS)
    return Manifest(
        format=1,
        id=f"{original.system}/{case.name}",
        kind=kind,
        tier=case.tier,  # type: ignore[arg-type]
        title=case.title,
        paper=original.paper(case.location),
        reference=reference,
        recorder=recorder(original.system),
        environment=environment(),
        subject=subject,
        weights=weights,
        tape=tape,
        outputs=outputs,
        repeatable=True,
        float64_tolerance=FLOAT64_TOLERANCE,
        information=information,
        tensors=TensorFile("", "", {}),
    )
