"""What samplers share that choose their step size as they go, so that the number of evaluations is not known before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusers_ref.schedulers.scheduler import SchedulerMixin, Time


class NextTimes:
    """`timesteps` of an adaptive sampler: each time as a () tensor, known when the step before it has been taken."""

    def __init__(self, scheduler: AdaptiveScheduler, device: torch.device | str | None = None) -> None:
        self._scheduler = scheduler
        self._device = device

    def __iter__(self) -> Iterator[Tensor]:
        while (time := self._scheduler.next_time) is not None:
            yield torch.tensor(time, dtype=torch.float64 if _needs_double(time) else torch.float32, device=self._device)


class AdaptiveScheduler(SchedulerMixin):
    """A sampler driven one evaluation at a time: `for t in timesteps` goes on until it has arrived.

    Rejected trials count: an evaluation that ends one returns the state from which the next trial starts. There is no
    list of times, so sampling cannot begin in the middle of one.

    A subclass begins with `_begin`, checks each evaluation with `_expect`, and ends `step` with `_continue`.
    """

    timesteps: NextTimes  # type: ignore[assignment]
    """The time of every evaluation, one after the other; it has no length."""

    next_time: float | None = None
    """The time of the next evaluation; None before `set_timesteps` and when sampling is done."""

    evaluations: int = 0
    """Evaluations of this run so far."""

    accepted: int = 0
    """Trials of this run so far after which the state moved on."""

    rejected: int = 0
    """Trials of this run so far that were thrown away."""

    _begun: bool = False

    def _begin(self, first_time: float, device: torch.device | str | None = None) -> None:
        """Begin a run whose first evaluation is at `first_time`; times are handed out on `device`."""
        self.timesteps = NextTimes(self, device)
        self.next_time = first_time
        self.evaluations = self.accepted = self.rejected = 0
        self.num_inference_steps = 0
        self._begun = True
        self._restart()

    def _expect(self, timestep: Time | Tensor) -> None:
        """Raise ValueError if `timestep` is not that of the next evaluation."""
        if not self._begun:
            raise ValueError("the scheduler has no timesteps yet: call set_timesteps before step")
        if self.next_time is None:
            raise ValueError("the run has ended: call set_timesteps before another")
        if isinstance(timestep, Tensor):
            if timestep.numel() != 1:
                raise ValueError(
                    f"step takes one timestep for the whole batch, not a tensor of shape {tuple(timestep.shape)}"
                )
            timestep = timestep.item()
        if timestep != self.next_time:
            raise ValueError(f"timestep {timestep} is not the next evaluation of this run, which is {self.next_time}")

    def _continue(self, next_time: float | None) -> None:
        """The evaluation is done; the next is at `next_time`, or the run has ended."""
        self.evaluations += 1
        self.num_inference_steps = self.evaluations
        self.next_time = next_time

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Refused, unless it is 0: there is no list of times to begin in."""
        if begin_index != 0:
            raise ValueError(f"begin_index={begin_index} is not allowed: an adaptive sampler has no list of times")

    @property
    def step_index(self) -> int | None:
        """Evaluations of this run so far; None before the first."""
        return self.evaluations or None

    @property
    def begin_index(self) -> int | None:
        """None: there is no list of times to begin in."""
        return None

    def network_timestep(self, timestep: Time | Tensor) -> Time | Tensor:
        """What the network is given as time: the entry itself."""
        return timestep


def _needs_double(time: float) -> bool:
    return torch.tensor(time, dtype=torch.float32).item() != time
