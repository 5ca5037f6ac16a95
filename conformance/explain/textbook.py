"""The step of DDPM and DDIM as the papers print it, with every suspect a parameter.

It is not exact: originals round tables and coefficients in ways of their own. It is good to about 1e-7, which is enough
to tell what another step does when it is off by more: with the right suspect changed, the textbook gives its numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from conformance.compare import FLOAT64, relative_errors
from conformance.explain.state import State
from conformance.explain.trial import Reproduction, observed_steps
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation
from conformance.tape import draws_by_call

CLOSE = 1e-4
"""The textbook stands for an original whose steps it reproduces to this, relative."""


@dataclass(frozen=True)
class Textbook:
    """x_t -> x_s on a grid (DDIM, arXiv 2010.02502, eq. 12; DDPM is η = 1 with ε taken from the clipped x_0).

    Attributes:
        levels: (T,) float64 ᾱ.
        grid: visited timesteps, in order.
        prediction: what the network returns.
        eta: η.
        clip: bound of x_0, or None.
        rederive: ε is derived from the clipped x_0.
        ends_clean: the ᾱ after the last timestep is 1, else ᾱ_0.
        large: the noise has variance β_t instead of β̃_t.
        noise_at_end: noise in the last step.
        stride: the previous timestep is t - stride; None: the next of the grid.
        offset: added to every index into ᾱ.
        clip_result: bound of x_s, or None.
    """

    levels: torch.Tensor
    grid: tuple[int, ...]
    prediction: str = "epsilon"
    eta: float = 0.0
    clip: float | None = None
    rederive: bool = False
    ends_clean: bool = True
    large: bool = False
    noise_at_end: bool = True
    stride: int | None = None
    offset: int = 0
    clip_result: float | None = None

    def steps(self, inputs: torch.Tensor, outputs: torch.Tensor, noises: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """(n, ...) float64: each step alone from the recorded inputs and network outputs, (n, ...)."""
        rows = zip(inputs.double(), outputs.double(), noises, strict=True)
        return torch.stack([self._step(k, x, e, z) for k, (x, e, z) in enumerate(rows)])

    def _step(self, k: int, x: torch.Tensor, output: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        t, last = self.grid[k], k == len(self.grid) - 1
        s = t - self.stride if self.stride is not None else -1 if last else self.grid[k + 1]
        a, a_next = self._level(t), self._end() if s < 0 else self._level(s)

        if self.prediction == "sample":
            x0 = output
        elif self.prediction == "v_prediction":
            x0 = a.sqrt() * x - (1 - a).sqrt() * output
        else:
            x0 = (x - (1 - a).sqrt() * output) / a.sqrt()
        epsilon = output if self.prediction == "epsilon" else (x - a.sqrt() * x0) / (1 - a).sqrt()
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        if self.rederive:
            epsilon = (x - a.sqrt() * x0) / (1 - a).sqrt()

        sigma = self.eta * ((1 - a_next) / (1 - a) * (1 - a / a_next).clamp(min=0)).sqrt()
        result = a_next.sqrt() * x0 + (1 - a_next - sigma**2).clamp(min=0).sqrt() * epsilon
        if z is not None and not (last and not self.noise_at_end):
            result = result + ((1 - a / a_next).clamp(min=0).sqrt() if self.large else sigma) * z
        return result if self.clip_result is None else result.clamp(-self.clip_result, self.clip_result)

    def _level(self, t: int) -> torch.Tensor:
        return self.levels[min(max(t + self.offset, 0), len(self.levels) - 1)]

    def _end(self) -> torch.Tensor:
        return torch.ones((), dtype=torch.float64) if self.ends_clean else self.levels[0]


def textbook_of(state: State) -> Textbook | None:
    """The textbook with the fixture's options, or None where it does not reproduce the recording."""
    fixture = state.fixture
    if fixture.manifest.kind != "scheduler" or observed_steps(state.result) is None:
        return None
    book = _from_options(state.whole, state.implementation)
    if book is None or max(book.grid) >= len(book.levels):
        return None
    return book if bool((_resolution(fixture, book) <= CLOSE).all()) else None


def reproductions(state: State, *changes: tuple[str, str, dict[str, object]]) -> Iterator[Reproduction]:
    """A trial for each (statement, change, options of the textbook that differ); none where there is no textbook."""
    book = textbook_of(state)
    if book is None or state.target.step is None:
        return
    for statement, change, options in changes:
        if any(getattr(book, name) != value for name, value in options.items()):
            other = dataclasses.replace(book, **options)  # type: ignore[arg-type]
            yield Reproduction(statement, change, _steps(state.fixture, other), _resolution(state.fixture, book))


def _from_options(fixture: Fixture, implementation: Implementation) -> Textbook | None:
    subject = fixture.manifest.subject
    config, step = subject.config, subject.step or {}
    learned = str(config.get("variance_type", "")).startswith("learned")
    if subject.cls not in ("DDIMScheduler", "DDPMScheduler") or config.get("thresholding"):
        return None
    stochastic = subject.cls == "DDPMScheduler"
    if config.get("prediction_type") == "previous_sample" or (learned and stochastic):
        return None
    betas = fixture.tensors.get("table.betas")
    if betas is None:
        betas = getattr(implementation.scheduler(subject), "betas", None)
    if not isinstance(betas, torch.Tensor):
        return None
    scale = float((subject.network or {}).get("time_scale", 1.0))
    float32_cumprod = config.get("coefficients") == "float32_cumprod"
    return Textbook(
        levels=(1 - betas.to("cpu", torch.float64)).cumprod(0),
        grid=tuple(round(float(t) / scale) for t in fixture.tensors["times"]),
        prediction=config.get("prediction_type", "epsilon"),
        eta=1.0 if stochastic else float(step.get("eta", 0.0)),
        clip=float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else None,
        rederive=stochastic or bool(config.get("rederive_epsilon") or step.get("use_clipped_model_output")),
        ends_clean=stochastic or bool(config.get("set_alpha_to_one", True)),
        large=stochastic and (float32_cumprod or str(config.get("variance_type", "")).startswith("fixed_large")),
        noise_at_end=not stochastic,
    )


def _steps(fixture: Fixture, book: Textbook) -> torch.Tensor:
    recorded, tape = fixture.tensors, fixture.manifest.tape
    inputs, outputs = recorded["inputs"], recorded["outputs"]
    noises = draws_by_call(tape.draws, list(recorded["draws"]), len(inputs))
    return book.steps(inputs, outputs[:, :, : inputs.shape[2]], [n[-1].double() if n else None for n in noises])


def _resolution(fixture: Fixture, book: Textbook) -> torch.Tensor:
    norm, _ = relative_errors(_steps(fixture, book), fixture.tensors["step" + FLOAT64])
    return norm
