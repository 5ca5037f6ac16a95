"""Recording a sampler: the original's own loop around an analytic network, seen from the network's side.

Whatever an original's loop looks like inside, it is a map between consecutive network calls: input x_k and time t_k
go to the network, its output e_k comes back, and the next thing that happens is input x_{k+1} or the final sample.
That is what is recorded, and it is also what `step(model_output, timestep, sample)` returns.

Every case is run several times with the same draws:
- y32, the original as it is (twice: is it repeatable?);
- y64, the oracle: float64 arithmetic on the same tables, closed loop;
- teacher-forced: before each network call returns, the loop's state is overwritten in place with the recorded x_k and
  the recorded e_k is returned, so that each step is seen alone (in float64: the exact value of each float32 step);
- the float32 runs again with inputs moved by one ulp, for the noise floors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from conformance.compare import ONE_ULP, relative_errors
from conformance.errors import ConformanceError
from conformance.fixture import Manifest, Output, Subject, Tape, TensorFile
from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original
from conformance.recorders.environment import environment, recorder
from conformance.tape import INITIAL, TORCH_CPU, recorded_draws, replayed_draws

FLOAT64_TOLERANCE = 1e-12
MAX_FLOOR = 1e-4
NUDGED_RUNS = 3


@dataclass
class Run:
    """What an original's loop returned: final sample, x0 of each network call (if it reports one), its tables.

    initial: x_T as the original scaled it, where that is more than the draw; stored as a table.
    """

    final: torch.Tensor
    pred_original_sample: list[torch.Tensor] | None = None
    tables: dict[str, torch.Tensor] = field(default_factory=dict)
    initial: torch.Tensor | None = None


@dataclass(frozen=True)
class SchedulerCase:
    """One case: `run(network, shape, dtype)` drives the original, which draws through torch.randn and randn_like.

    `tables`: store the original's tables; cases that share a schedule with another may leave them out.
    `stream`: where draws come from; one other than torch's CPU generator is not drawn again by replays.
    """

    name: str
    title: str
    location: str
    cls: str
    config: dict[str, Any]
    set_timesteps: dict[str, Any]
    run: Callable[[Callable[..., torch.Tensor], Sequence[int], torch.dtype], Run]
    functions: Sequence[str]
    step: dict[str, Any] = field(default_factory=dict)
    network: AnalyticNetwork = field(default_factory=AnalyticNetwork)
    shape: tuple[int, ...] = (2, 3, 4, 2)
    seed: int = 0
    changes: Sequence[str] = ()
    lifted: Sequence[str] = ()
    tables: bool = True
    tier: str = "default"
    stream: str = TORCH_CPU
    float64_tolerance: float = FLOAT64_TOLERANCE

    def record(self, original: Original, commit: str, modified: bool) -> tuple[Manifest, dict[str, torch.Tensor]]:
        return record_scheduler_case(self, original, commit, modified)


def case_shape(steps: int) -> tuple[int, ...]:
    """(B, C, H, W) of a case: smaller for longer runs, so that every step is stored in full within the size budget."""
    return (2, 3, 4, 2) if steps <= 20 else (1, 2, 3, 2) if steps <= 100 else (1, 1, 1, 3)


def latent_pattern(shape: Sequence[int]) -> torch.Tensor:
    """What image-to-image begins with: fixed numbers from -1 to 1."""
    return torch.linspace(-1, 1, math.prod(shape)).reshape(tuple(shape))


class Probe:
    """The network as the original sees it: calls the real one and keeps the sampler's states, times and outputs.

    The state of a call is the network's input, or what `at` was told just before, by an original that scales its state
    for the network.
    """

    def __init__(self, network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.network = network
        self.inputs: list[torch.Tensor] = []
        self.times: list[float] = []
        self.outputs: list[torch.Tensor] = []
        self._state: torch.Tensor | None = None

    def at(self, state: torch.Tensor) -> None:
        """The sampler's state at the coming call: the loop's own tensor, which a forced run overwrites."""
        self._state = state.clone()
        self.place(state)

    def __call__(self, x: torch.Tensor, t: torch.Tensor | float, **_: Any) -> torch.Tensor:
        if self._state is None:
            self.at(x)
        assert self._state is not None
        self.inputs.append(self._state)
        self._state = None
        times = torch.as_tensor(t)
        self.times.append(float(times.reshape(-1)[0]))
        self.outputs.append(self.answer(x, times))
        return self.outputs[-1].clone()

    def place(self, state: torch.Tensor) -> None:
        """Put the state of the coming call in place; a free run leaves it as it is."""

    def answer(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.network(x, t)


class ForcedProbe(Probe):
    """Overwrites the loop's state in place with given states and answers with given outputs."""

    def __init__(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        super().__init__(lambda x, t: x)
        self._inputs, self._outputs = inputs, outputs

    def place(self, state: torch.Tensor) -> None:
        state.copy_(self._inputs[len(self.outputs)])

    def answer(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self._outputs[len(self.outputs)].to(x.dtype)


def record_scheduler_case(
    case: SchedulerCase, original: Original, commit: str, modified: bool
) -> tuple[Manifest, dict[str, torch.Tensor]]:
    """Run the original and assemble the fixture.

    Raises:
        ConformanceError: the case is ill conditioned (noise floor above its bound), not repeatable, or cannot show an
            error.
    """
    first = Probe(case.network)
    with recorded_draws(case.seed, lambda: len(first.outputs)) as log:
        y32 = case.run(first, case.shape, torch.float32)
    draws = log.values

    def again(probe: Probe, dtype: torch.dtype, values: Sequence[torch.Tensor] = draws) -> tuple[torch.Tensor, Run]:
        with replayed_draws(values):
            run = case.run(probe, case.shape, dtype)
        return torch.stack([*probe.inputs[1:], run.final]), run

    inputs, outputs = torch.stack(first.inputs), torch.stack(first.outputs)
    sample = torch.stack([*first.inputs[1:], y32.final])
    repeated, _ = again(Probe(case.network), torch.float32)
    if not torch.equal(repeated, sample):
        raise ConformanceError(f"{case.name}: two runs of the original differ")

    sample64, _ = again(Probe(case.network), torch.float64)
    step64, forced64 = again(ForcedProbe(inputs, outputs), torch.float64)

    nudged = [[nudge(value, seed=100 * n + i) for i, value in enumerate(draws)] for n in range(NUDGED_RUNS)]
    closed = [again(Probe(case.network), torch.float32, values)[0] for values in nudged]
    forced = [
        again(ForcedProbe(nudge(inputs, n), nudge(outputs, 50 + n)), torch.float32, values)
        for n, values in enumerate(nudged)
    ]
    tensors = {
        "inputs": inputs,
        "outputs": outputs,
        "times": torch.tensor(first.times, dtype=torch.float64),
        "final": y32.final,
        "draws": log.stacked(),
        "sample.f64": sample64,
        "sample.floor": floors([sample, *closed], sample64),
        "step.f64": step64,
        "step.floor": floors([sample, *(trajectory for trajectory, _ in forced)], step64),
    }
    names = ["step", "sample"]
    if y32.pred_original_sample is not None:
        assert forced64.pred_original_sample is not None
        tensors["pred_original_sample"] = torch.stack(y32.pred_original_sample)
        tensors["pred_original_sample.f64"] = torch.stack(forced64.pred_original_sample)
        runs = [y32.pred_original_sample, *(run.pred_original_sample for _, run in forced)]
        stacked = [torch.stack(run) for run in runs if run is not None]
        tensors["pred_original_sample.floor"] = floors(stacked, tensors["pred_original_sample.f64"])
        names.append("pred_original_sample")
    tables = dict(y32.tables) if case.tables else {}
    if y32.initial is not None:
        tables[INITIAL] = y32.initial
    tensors.update({f"table.{name}": table for name, table in tables.items()})

    one_later = Probe(lambda x, t: case.network(x, case.network.later(t)))
    shifted, _ = again(one_later, torch.float32)
    information = inform(case, inputs, sample, sample64, shifted, tensors.get("pred_original_sample"))
    declared = [
        Output("timesteps", "table", 0.0, 0.0),
        *(Output(name, "table", 0.0, 0.0) for name in tables),
        *(Output(name, "step", *map(float, tensors[f"{name}.floor"].amax(0))) for name in names),
    ]
    if (floor := max(output.noise_floor for output in declared)) > MAX_FLOOR:
        raise ConformanceError(f"{case.name}: noise floor {floor:.2g} is above {MAX_FLOOR:.2g}: ill conditioned")
    if (effect := information["time_shift_effect"]) < 10 * floor:
        raise ConformanceError(
            f"{case.name}: one step in time moves the result by {effect:.2g} only: it cannot show an error"
        )
    manifest = Manifest(
        format=1,
        id=f"{original.system}/{case.name}",
        kind="scheduler",
        tier=case.tier,  # type: ignore[arg-type]
        title=case.title,
        paper=original.paper(case.location),
        reference=original.reference(commit, modified, case.functions, case.changes, case.lifted),
        recorder=recorder(original.system),
        environment=environment(),
        subject=Subject(
            cls=case.cls,
            config=case.config,
            network=case.network.to_dict(),
            set_timesteps=case.set_timesteps,
            step=case.step,
        ),
        weights=None,
        tape=Tape(case.seed, case.stream, log.manifest()),
        outputs=declared,
        repeatable=True,
        float64_tolerance=case.float64_tolerance,
        information=information,
        tensors=TensorFile("", "", {}),
    )
    return manifest, tensors


def nudge(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    """Every element moved by one ulp up or down, at random."""
    up = torch.randint(0, 2, tensor.shape, generator=torch.Generator().manual_seed(seed)).bool()
    infinity = torch.full((), torch.inf, dtype=tensor.dtype)
    return torch.nextafter(tensor, torch.where(up, infinity, -infinity))


def floors(runs: Sequence[torch.Tensor], exact: torch.Tensor) -> torch.Tensor:
    """(n, 2) float64: the largest error, by norm and by element, of the original's float32 runs, row by row."""
    errors = [torch.stack(relative_errors(run, exact), dim=1) for run in runs]
    return torch.stack(errors).amax(0).clamp_min(ONE_ULP)


def inform(
    case: SchedulerCase,
    inputs: torch.Tensor,
    sample: torch.Tensor,
    sample64: torch.Tensor,
    shifted: torch.Tensor,
    x0: torch.Tensor | None,
) -> dict[str, float]:
    """How much the case can show: what a step does, what one step in time does, how much is clamped."""
    moved, _ = relative_errors(sample, inputs)
    late, _ = relative_errors(shifted[-1:], sample64[-1:])
    information = {
        "steps": float(len(inputs)),
        "median_step_effect": float(moved.median()),
        "time_shift_effect": float(late[0]),
        "largest_value": float(sample.abs().max()),
    }
    if x0 is not None and case.config.get("clip_sample"):
        clamped = (x0.abs() >= 1).to(torch.float64).flatten(1).mean(1)
        information["clamped_share_first"] = float(clamped[0])
        information["clamped_share_mean"] = float(clamped.mean())
        information["clamped_share_last"] = float(clamped[-1])
    return information
