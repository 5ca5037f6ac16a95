"""The common sampling loop around any scheduler, one evaluation of the network at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from conformance.errors import Unsupported
from conformance.fixture import Subject
from conformance.implementations.base import Implementation, Scheduler
from conformance.tape import replayed_draws

Feed = Callable[[int, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]
"""(call, state, the network's input, the network's time) -> the state that `step` is given, and the model output."""


class Drive:
    """One run of a scheduler that has its timesteps: noise from `generator`, or as handed to each method."""

    def __init__(
        self,
        implementation: Implementation,
        scheduler: Scheduler,
        subject: Subject,
        generator: torch.Generator | None = None,
    ) -> None:
        self.scheduler, self.generator = scheduler, generator
        self.options = implementation.step_options(scheduler, subject)
        names = ("variance_noise", "generator", "classifier_gradient")
        takes = {name: implementation.step_takes(scheduler, name) for name in names}
        self.takes_gradient = takes["classifier_gradient"]
        self.takes_noise, self.takes_generator = takes["variance_noise"], takes["generator"]
        self.prepares = hasattr(scheduler, "add_noise_to_input") and lists_times(scheduler)
        scale = getattr(scheduler, "scale_model_input", None)
        self.scales_to_dtype = scale is not None and "dtype" in inspect.signature(scale).parameters
        self._times: list[float] | None = None
        if lists_times(scheduler):
            self._times = implementation.network_times(scheduler)

    def evaluations(self) -> Iterator[tuple[int, Any, float]]:
        """(call, entry of `timesteps`, the network's time) of every evaluation, while the run goes on."""
        for call, t in enumerate(self.scheduler.timesteps):
            if self._times is None:  # The sampler chooses its times as it goes.
                yield call, t, float(self.scheduler.network_timestep(t))  # type: ignore[attr-defined]
            else:
                yield call, t, self._times[call]

    def prepare(self, t: Any, sample: torch.Tensor, noises: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """The state that the network is to see at `t`: noisier than `sample` where a sampler adds noise first."""
        if not self.prepares:
            return sample
        with handing_out(noises):
            return self.scheduler.add_noise_to_input(sample, t, **self._generator())  # type: ignore[attr-defined]

    def scaled(self, sample: torch.Tensor, t: Any, dtype: torch.dtype) -> torch.Tensor:
        """The network's input; a scheduler whose state is wider than its network is told the network's `dtype`."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        if scale is None:
            return sample
        return scale(sample, t, dtype=dtype) if self.scales_to_dtype else scale(sample, t)

    def step(
        self,
        call: int,
        output: torch.Tensor,
        t: Any,
        sample: torch.Tensor,
        noises: Sequence[torch.Tensor] = (),
        gradient: torch.Tensor | None = None,
    ) -> tuple[Any, torch.Tensor]:
        """What `step` returned, and the state at the next evaluation, prepared; `gradient`: of a classifier.

        Raises:
            Unsupported: there is a gradient, and `step` takes none.
        """
        given = list(noises)
        noise = self._generator() if self.takes_generator else {}
        if gradient is not None:
            if not self.takes_gradient:
                raise Unsupported(f"step of {type(self.scheduler).__name__} takes no classifier's gradient")
            noise["classifier_gradient"] = gradient
        if self.takes_noise and len(given) == 1 and not self.prepares:
            noise["variance_noise"] = given.pop()
        with handing_out(given):
            result = self.scheduler.step(output, t, sample, **self.options, **noise)
            sample = result.prev_sample
            if self.prepares and call + 1 < len(self.scheduler.timesteps):
                sample = self.prepare(self.scheduler.timesteps[call + 1], sample)
        return result, sample

    def _generator(self) -> dict[str, Any]:
        return {} if self.generator is None else {"generator": self.generator}


def lists_times(scheduler: Scheduler) -> bool:
    """Whether the times are known before the run; an adaptive sampler chooses them as it goes."""
    return isinstance(scheduler.timesteps, torch.Tensor)


def handing_out(noises: Sequence[torch.Tensor]) -> AbstractContextManager[None]:
    """Draws come from these, in order; from where they always come if there are none."""
    return replayed_draws(noises) if noises else nullcontext()
