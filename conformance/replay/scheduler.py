"""Replaying a sampler: tables and times, each step alone (teacher-forced), the whole run, the random stream.

Order of the comparisons is the order of explanation: a wrong table explains a wrong step, a wrong step a wrong run.
- `timesteps`, tables and the scale of x_T, exactly;
- `step`: the recorded x_k and e_k go in, x_{k+1} must come out (and x0 with it); in float32 and in float64;
- `sample`: the closed loop with the analytic network, draws fed from the tape; in float32 and in float64;
- seeded: the same run with `torch.Generator("cpu").manual_seed(seed)`; the generator must be consumed as by the
  original and the result must be the replayed one; not for draws that came from elsewhere, as from a Brownian path;
- the same once more through a pipeline's own loop, where it is a pipeline that is under test (`loop.py`).

The state between two evaluations is the sampler's own: before the network scales it, after any noise that a sampler
adds ahead of the network (`add_noise_to_input`). It has the precision that the original kept it in, so a float32
replay of an original with a float64 state passes float64 states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from conformance.compare import (
    FLOAT64,
    ONE_ULP,
    Comparison,
    Verdict,
    compare_exactly,
    compare_float64,
    compare_steps,
    relative_errors,
)
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation, Scheduler
from conformance.network import AnalyticNetwork
from conformance.replay import Settings, loop
from conformance.replay.drive import Drive, Feed, lists_times
from conformance.tape import INITIAL, TORCH_CPU, StreamCheck, drawn_here, draws_by_call, preparation


@dataclass
class Trajectory:
    """What a run produced: x_{k+1} after each network call k, x0 if the scheduler reports it at every call, and the
    network's time at every call.

    reports_x0: whether what `step` returns has a place for x0, filled or not.
    """

    sample: torch.Tensor
    pred_original_sample: torch.Tensor | None
    times: list[float]
    reports_x0: bool


def compare(
    fixture: Fixture, implementation: Implementation, settings: Settings
) -> tuple[list[Comparison], bool | None]:
    """All comparisons of a scheduler fixture, and whether the random stream was consumed as by the original."""
    run = SchedulerReplay(fixture, implementation, settings.device)
    scheduler = run.prepared()
    comparisons = [run.times(scheduler), *run.tables(scheduler)]
    if not comparisons[0].verdict.green:
        return [*comparisons, *run.result(scheduler)], None
    recorded, policy = fixture.tensors, settings.policy
    tolerance = fixture.manifest.float64_tolerance

    def against_float32(name: str, observed: torch.Tensor, y32: torch.Tensor) -> Comparison:
        return compare_steps(name, observed, y32, recorded[name + FLOAT64], recorded[f"{name}.floor"], policy)

    y32 = torch.cat([recorded["inputs"][1:], recorded["final"][None]])
    if settings.dtype != torch.float64:
        forced = run.forced(settings.dtype)
        comparisons.append(against_float32("step", forced.sample, y32))
        if "pred_original_sample" in recorded and forced.reports_x0:
            comparisons.append(_x0(forced, lambda x0: against_float32(
                "pred_original_sample", x0, recorded["pred_original_sample"])))  # fmt: skip
        free = run.closed(settings.dtype)
        comparisons.append(against_float32("sample", free.sample, y32))
    if settings.dtype in (torch.float32, torch.float64):
        forced = run.forced(torch.float64)
        name = "step" + FLOAT64
        comparisons.append(compare_float64(name, forced.sample, recorded[name], tolerance))
        if "pred_original_sample" in recorded and forced.reports_x0:
            name64 = "pred_original_sample" + FLOAT64
            comparisons.append(_x0(forced, lambda x0: compare_float64(name64, x0, recorded[name64], tolerance)))
        closed = run.closed(torch.float64)
        comparisons.append(compare_float64("sample" + FLOAT64, closed.sample, recorded["sample" + FLOAT64], tolerance))
    draws_match = None
    if settings.dtype == torch.float32 and run.tape.generator == TORCH_CPU:
        seeded, expected, draws_match = run.seeded(free)
        comparisons.append(compare_exactly("seeded", seeded.sample[-1], expected.sample[-1]))
    around, draws_match_around = loop.compare(fixture, implementation, settings)
    return [*comparisons, *around], draws_match if draws_match_around is None else draws_match and draws_match_around


class SchedulerReplay:
    """Drives one implementation's scheduler through one fixture; a fresh scheduler for each run."""

    def __init__(self, fixture: Fixture, implementation: Implementation, device: str = "cpu") -> None:
        self.fixture, self.implementation, self.device = fixture, implementation, device
        self.subject, self.tape = fixture.manifest.subject, fixture.manifest.tape
        self.recorded = fixture.tensors
        self.network = AnalyticNetwork.from_dict(self.subject.network or {})
        draws = list(self.recorded["draws"])
        self.noises = draws_by_call(self.tape.draws, draws, len(self.recorded["times"]))
        self.first_noises = preparation(self.tape.draws, draws)

    def prepared(self) -> Scheduler:
        scheduler = self.implementation.scheduler(self.subject)
        self.implementation.set_timesteps(scheduler, self.subject)
        return scheduler

    def times(self, scheduler: Scheduler) -> Comparison:
        """The network's time at each evaluation: exactly, but for the rounding of a fraction to float32."""
        if lists_times(scheduler):
            times = self.implementation.network_times(scheduler)
        else:  # chosen on the way, from the samples
            times = self.forced(torch.float32).times
        observed, recorded = torch.tensor(times, dtype=torch.float64), self.recorded["times"]
        found = compare_exactly("timesteps", observed, recorded)
        if not found.verdict.green and _rounded_alike(observed, recorded):
            found = dataclasses.replace(found, verdict=Verdict.EQUIVALENT, step=None, detail="")
        return dataclasses.replace(found, level="times")

    def tables(self, scheduler: Scheduler) -> list[Comparison]:
        """The original's tables, exactly and in their precision."""
        names = [output.name for output in self.fixture.manifest.outputs if output.level == "table"]
        comparisons = []
        for name in names:
            if name != "timesteps":
                table = self._table(scheduler, name)
                found = compare_exactly(name, table, self.recorded[f"table.{name}"])
                comparisons.append(dataclasses.replace(found, level="table"))
        return comparisons

    def _table(self, scheduler: Scheduler, name: str) -> torch.Tensor:
        if name != INITIAL:
            return torch.as_tensor(getattr(scheduler, name, torch.empty(0)))
        draw = self.recorded["draws"][0].to(self.recorded[f"table.{INITIAL}"].dtype)
        return draw * float(getattr(scheduler, "init_noise_sigma", 1.0))

    def result(self, scheduler: Scheduler) -> list[Comparison]:
        """How far a run at other times than the original's ends from its result: no verdict, a figure.

        Nothing where draws matter and cannot be told apart by evaluation, or where the run fails.
        """
        if not lists_times(scheduler):
            return []
        count = len(self.implementation.network_times(scheduler))
        try:
            if count == len(self.noises) or not any(self.noises):
                final = self.closed(torch.float32).sample[-1:]
            else:
                final, other = (self._undirected(seed) for seed in (0, 1))
                if not torch.equal(final, other):
                    return []
        except Exception:  # noqa: BLE001 - the times are the divergence, whatever follows from them
            return []
        exact = self.recorded["sample" + FLOAT64][-1:]
        if final.shape != exact.shape:
            return []
        error = float(relative_errors(final, exact)[0])
        detail = f"after a run at these times, {error:.2g} away from the original's result"
        return [Comparison("result", Verdict.DIVERGENT, 0.0, error, detail=detail, observed=final, last=error)]

    def _undirected(self, seed: int) -> torch.Tensor:
        """The result of a run that draws for itself."""
        torch.default_generator.manual_seed(seed)  # a replay restores the caller's state
        return self._run(torch.float32, self._answer(torch.float32), noises=[[]]).sample[-1:]

    def forced(self, dtype: torch.dtype) -> Trajectory:
        """Each step alone: recorded inputs and network outputs go in."""
        inputs = self._state(self.recorded["inputs"], dtype)
        outputs = self._place(self.recorded["outputs"], self._answers_in(dtype))
        return self._run(dtype, lambda call, sample, scaled, t: (inputs[call], outputs[call]))

    def closed(self, dtype: torch.dtype) -> Trajectory:
        """The whole run from x_T, with the analytic network and the tape's noise."""
        return self._run(dtype, self._answer(dtype))

    def _answer(self, dtype: torch.dtype) -> Feed:
        answers_in = self._answers_in(dtype)
        return lambda call, sample, scaled, t: (sample, self.network(scaled.to(answers_in), t))

    def _answers_in(self, dtype: torch.dtype) -> torch.dtype:
        """The network's dtype: `dtype`, or float64 where the original's own network is in float64."""
        return self.recorded["outputs"].dtype if dtype == torch.float32 else dtype

    def seeded(self, free: Trajectory) -> tuple[Trajectory, Trajectory, bool]:
        """The closed loop in float32 with a seeded generator; the same with that generator's draws handed in, in the
        order of the tape; and whether the generator is consumed as the tape says.

        The draws are this machine's, which can differ from the recorded ones in the last bits; where they do not, the
        second run is `free`, the closed loop with the recorded draws.
        """
        check = StreamCheck(self.tape.seed, self.tape.draws)
        self._initial(check.generator)
        matches = True

        def after(call: int) -> None:
            nonlocal matches
            drawn = len(self.noises[call]) if call >= 0 else 1 + len(self.first_noises)
            matches = check.expect(drawn) and matches

        closed = self._answer(torch.float32)
        seeded = self._run(torch.float32, closed, generator=check.generator, after=after)
        own = drawn_here(self.tape.seed, self.tape.draws)
        if all(torch.equal(here, there) for here, there in zip(own, self.recorded["draws"], strict=True)):
            return seeded, free, matches
        handed = self._run(
            torch.float32,
            closed,
            noises=draws_by_call(self.tape.draws, own, len(self.noises)),
            first_noises=preparation(self.tape.draws, own),
        )
        return seeded, handed, matches

    def _initial(self, generator: torch.Generator) -> None:
        """Draw x_T, which a sampler's caller draws."""
        for draw in self.tape.draws:
            if draw.name == INITIAL:
                torch.randn(tuple(draw.shape), generator=generator)

    def _run(
        self,
        dtype: torch.dtype,
        feed: Feed,
        generator: torch.Generator | None = None,
        noises: Sequence[Sequence[torch.Tensor]] | None = None,
        first_noises: Sequence[torch.Tensor] | None = None,
        after: Callable[[int], None] = lambda call: None,
    ) -> Trajectory:
        """One run; `after` is called when the first evaluation is prepared (-1) and after every evaluation."""
        drive = Drive(self.implementation, self.prepared(), self.subject, generator)
        noises, first_noises = noises or self.noises, first_noises or self.first_noises
        given = lambda draws: [] if generator is not None else [self._state(draw, dtype) for draw in draws]
        sample = self._state(self.recorded.get(f"table.{INITIAL}", self.recorded["inputs"][0]), dtype)
        samples: list[torch.Tensor] = []
        x0: list[torch.Tensor | None] = []
        times: list[float] = []
        for call, t, time in drive.evaluations():
            if call == 0:
                sample = drive.prepare(t, sample, given(first_noises))
                after(-1)
            times.append(time)
            if call == len(self.noises) and not lists_times(drive.scheduler):
                break  # The sampler goes on after the original had arrived.
            sample, output = feed(call, sample, drive.scaled(sample, t, dtype), time)
            gradient = self.network.gradient(sample, time) if self.network.classifier_scale else None
            draws = given(noises[call] if call < len(noises) else ())
            result, sample = drive.step(call, output, t, sample, draws, gradient)
            samples.append(sample)
            x0.append(getattr(result, "pred_original_sample", None))
            after(call)
        complete = [value for value in x0 if value is not None]
        return Trajectory(
            torch.stack(samples).to("cpu"),
            torch.stack(complete).to("cpu") if len(complete) == len(x0) else None,
            times,
            hasattr(result, "pred_original_sample"),
        )

    def _place(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return tensor.to(self.device, dtype)

    def _state(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A state or a draw, in `dtype`, or in float64 where the original keeps its state in float64."""
        kept = self.recorded["inputs"].dtype
        return self._place(tensor, kept if dtype == torch.float32 else dtype)


def _rounded_alike(observed: torch.Tensor, recorded: torch.Tensor) -> bool:
    """Whether times differ by no more than one float32 ulp, and only where they are fractions."""
    if observed.shape != recorded.shape:
        return False
    whole = recorded == recorded.round()
    return bool(((observed - recorded).abs() <= torch.where(whole, 0.0, recorded.abs() * 2 * ONE_ULP)).all())


def _x0(trajectory: Trajectory, against: Callable[[torch.Tensor], Comparison]) -> Comparison:
    x0 = trajectory.pred_original_sample
    return against(torch.empty(0) if x0 is None else x0)
