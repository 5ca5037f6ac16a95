"""Score-Based Generative Modeling through Stochastic Differential Equations (arXiv 2011.13456), Algorithm 1: predictors
and correctors. The SDEs themselves are in `score_sde_ve`, `score_sde_vp` and `score_sde_sub_vp`.

    code                  paper
    sample                x_i
    score                 s_θ(x, t), the estimate of ∇_x log p_t(x)
    t, 1/N                the time from 1 (noise) to ε (data), the step of the discretisation
    drift                 f(t) in the SDE dx = f(t)·x dt + g(t) dw, eq. 5
    diffusion             g(t); in discretised steps G
    snr                   r, the signal-to-noise ratio of the correctors
    step_size             ε in Algorithms 4 and 5
    variance_noise        z

A level t_i is visited by the corrector's sub-steps and then by the predictor. Each of them is one evaluation of the
network and has its own entry in `timesteps`. yang-song/score_sde_pytorch is reproduced bit for bit (for batches of
less than 16 samples, above which torch itself rounds its powers of σ otherwise), in its order of operations and of
draws: one draw in every evaluation, also in the last one and where the probability flow has no use for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diffusers_ref.configuration import ConfigError
from diffusers_ref.random import Generators
from diffusers_ref.schedulers.conventions import choose
from diffusers_ref.schedulers.scheduler import SchedulerMixin, SchedulerOutput, Time


class Predictor(str, Enum):
    """How the reverse-time SDE (eq. 6) is followed from one level to the next."""

    NONE = "none"
    """Not at all: the corrector alone brings the sample from level to level."""
    EULER_MARUYAMA = "euler_maruyama"
    """Euler–Maruyama steps of the reverse-time SDE."""
    REVERSE_DIFFUSION = "reverse_diffusion"
    """The forward process in its discretisation, reversed (eq. 46)."""
    ANCESTRAL_SAMPLING = "ancestral_sampling"
    """The sampler of DDPM and its counterpart for SMLD (eq. 4, 47). VE and VP only."""


class Corrector(str, Enum):
    """The Markov chain Monte Carlo steps at every level."""

    NONE = "none"
    """No corrector."""
    LANGEVIN = "langevin"
    """Langevin dynamics, its step size from the norms of score and noise, averaged over the batch (Algorithms 4, 5)."""
    ALD = "ald"
    """Annealed Langevin dynamics of NCSN: the step size follows from the noise level."""


class Rule(Protocol):
    """What a predictor does at one level, its coefficients rounded."""

    @property
    def noise(self) -> float:
        """The factor of z."""

    def __call__(self, x: Tensor, score: Tensor) -> Tensor:
        """The mean of the next state."""


class EulerMaruyama(NamedTuple):
    """x + (f·x − g²·s)·dt, with dt = −1/N."""

    drift: float
    diffusion_squared: float
    dt: float
    noise: float

    def __call__(self, x: Tensor, score: Tensor) -> Tensor:
        return x + (self.drift * x - self.diffusion_squared * score) * self.dt


class LangevinStep(NamedTuple):
    """A corrector's step at one level."""

    alpha: float  # α_i of Algorithm 5; 1 for VE
    step_size: float  # of annealed Langevin dynamics, and √(2·step_size)
    noise: float


class ScoreSdeScheduler(SchedulerMixin):
    """Algorithm 1 for any of the SDEs; a class of an SDE supplies what is particular to it, from `labels` on.

    A constructor calls `_choose` with what it offers.
    """

    order: int
    """Evaluations of a level: the corrector's sub-steps and the predictor."""

    _tables_in: dict[torch.dtype, _Coefficients]

    # --- construction ------------------------------------------------------------------------------------------------

    def _choose(
        self,
        predictor: str,
        corrector: str,
        probability_flow: bool,
        correct_steps: int,
        crashes: Collection[Enum] = (),
    ) -> None:
        """Check the options; crashes: the predictors and correctors that the original cannot run with this SDE."""
        self._predictor = choose(Predictor, "predictor", predictor)
        self._corrector = choose(Corrector, "corrector", corrector)
        for option, value in (("predictor", self._predictor), ("corrector", self._corrector)):
            if value in crashes:
                raise ConfigError(f"{option}={value.value!r} is not allowed here: the original {_CRASHES[value]}")
        if isinstance(correct_steps, bool) or not isinstance(correct_steps, int) or correct_steps < 0:
            raise ConfigError(f"correct_steps={correct_steps!r} is not allowed; it must be an integer of at least 0")
        if self._corrector is Corrector.NONE and correct_steps > 1:
            raise ConfigError(f"correct_steps={correct_steps} needs a corrector, but corrector='none'")
        self._correct_steps = 0 if self._corrector is Corrector.NONE else correct_steps
        self._predicts = self._predictor is not Predictor.NONE
        self.order = self._correct_steps + self._predicts
        if self.order == 0:
            raise ConfigError("predictor='none' without a corrector evaluates no network: choose at least one of them")
        if probability_flow and self._predictor is not Predictor.REVERSE_DIFFUSION:
            raise ConfigError(
                f"probability_flow=True is not allowed with predictor={predictor!r}: "
                f"{_NO_PROBABILITY_FLOW[self._predictor]}; take predictor='reverse_diffusion'"
            )
        self._score_weight = 0.5 if probability_flow else 1.0
        eps = self.config.sampling_eps
        if not 0 < eps <= 1:
            raise ConfigError(f"sampling_eps={eps} is not allowed; it must be above 0 and at most 1")
        count = self.config.num_train_timesteps
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"num_train_timesteps must be an integer of at least 1, not {count!r}")

    def __len__(self) -> int:
        """num_train_timesteps."""
        return int(self.config.num_train_timesteps)

    # --- the list of evaluations -------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sampling_eps: float | None = None,
    ) -> None:
        """Choose N levels from t = 1 to t = ε, evenly spaced, and begin anew, as if the scheduler had just been made.

        num_inference_steps: N, at least 1; None: num_train_timesteps. sampling_eps: ε, above 0 and at most 1, instead
        of the option. device: where `timesteps` lies. Raises ValueError that says what was given and what is allowed.
        """
        count = len(self) if num_inference_steps is None else num_inference_steps
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"num_inference_steps={count!r} is not allowed; it must be an integer of at least 1")
        eps = self.config.sampling_eps if sampling_eps is None else sampling_eps
        if not 0 < eps <= 1:
            raise ValueError(f"sampling_eps={eps} is not allowed; it must be above 0 and at most 1")
        self._levels = torch.linspace(1, eps, count)  # float32, as all that follows from it in float32 runs
        self._make_tables(count)
        self._tables_in = {}
        repeated = lambda column: [value for value in column.tolist() for _ in range(self.order)]
        self._adopt(repeated(self._levels), count, device, network_times=repeated(self.labels(self._levels)))
        self._coefficients(torch.float32)

    def _begins_step(self, index: int) -> bool:
        return index % self.order == 0

    def _table_index(self) -> Tensor:
        """(N,) the entry of a table of N levels, from clean to noisy, that each level reads; truncated in float32."""
        return (self._levels * (len(self._levels) - 1)).long()

    # --- one evaluation ----------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: Time | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """One step of the corrector or of the predictor, whichever this entry of `timesteps` is for.

        model_output, sample: (B, C, ...). timestep: an entry of `timesteps`; equal ones are told apart by the place.
        generator: where z is drawn from. variance_noise: (B, C, ...), z itself, instead of a draw.
        Returns the next state, in the dtype of `sample`; the arithmetic is in that dtype, at least in float32.

        Raises ValueError before `set_timesteps`, for a timestep that is not in the list, for shapes that do not fit.
        """
        dtype = self._check(model_output, sample)
        coefficients = self._coefficients(dtype)
        z = self._noise(sample, generator, variance_noise, dtype)
        index = self._advance(timestep)
        level, substep = divmod(index, self.order)
        x, score = sample.to(dtype), model_output.to(dtype)
        if coefficients.score_divisors is not None:
            score = score / coefficients.score_divisors[level]

        if substep < self._correct_steps:
            prev_sample = self._correct(x, score, z, coefficients.correctors[level])
        else:
            rule = coefficients.rules[level]
            prev_sample = rule(x, score)
            if rule.noise and not (self.config.noise_removal and index == len(self._times) - 1):
                prev_sample = prev_sample + rule.noise * z

        result = SchedulerOutput(prev_sample.to(sample.dtype))
        return result if return_dict else result.to_tuple()

    def _correct(self, x: Tensor, score: Tensor, z: Tensor, c: LangevinStep) -> Tensor:
        """Algorithm 4 (VE) and 5 (VP), lines 4 to 8."""
        if self._corrector is Corrector.ALD:
            return x + c.step_size * score + z * c.noise
        score_norm, noise_norm = (torch.linalg.vector_norm(v.reshape(len(v), -1), dim=-1).mean() for v in (score, z))
        step_size = (self.config.snr * noise_norm / score_norm) ** 2 * 2
        if c.alpha != 1:
            step_size = step_size * c.alpha
        return x + step_size * score + torch.sqrt(step_size * 2) * z

    # --- coefficients ------------------------------------------------------------------------------------------------

    def _coefficients(self, dtype: torch.dtype) -> _Coefficients:
        """The coefficients of every level, for arithmetic in `dtype`."""
        self._require_timesteps()
        if dtype not in self._tables_in:
            t = self._levels.to(dtype)
            divisors = self.score_divisors(t)
            self._tables_in[dtype] = _Coefficients(
                self._rules(t) if self._predicts else [],
                None if divisors is None else divisors.tolist(),
                self._corrector_steps(t) if self._correct_steps else [],
            )
        return self._tables_in[dtype]

    def _corrector_steps(self, t: Tensor) -> list[LangevinStep]:
        alpha = self._alphas(t)
        step_size = (self.config.snr * self._stds(t)) ** 2 * 2 * alpha
        columns = (alpha, step_size, torch.sqrt(step_size * 2))
        return [LangevinStep(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def _make_tables(self, count: int) -> None:
        """Make the tables of a discretisation with N = `count` levels."""
        raise NotImplementedError

    def _rules(self, t: Tensor) -> Sequence[Rule]:
        """The predictor's rule at every level; t: (N,) the levels in the dtype of the arithmetic."""
        raise NotImplementedError

    def _alphas(self, t: Tensor) -> Tensor:
        """(N,) α_i of the corrector."""
        raise NotImplementedError

    def _stds(self, t: Tensor) -> Tensor:
        """(N,) the standard deviation of p(x_t | x_0) at every level."""
        return self._marginal(t)[1]

    def _marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean factor and standard deviation of p(x_t | x_0) (eq. 29) at the times t, of any shape."""
        raise NotImplementedError

    # --- the SDE -----------------------------------------------------------------------------------------------------

    def labels(self, t: Tensor) -> Tensor:
        """(n,) what the network is given as time at the times t, (n,) float32."""
        raise NotImplementedError

    def score_divisors(self, t: Tensor) -> Tensor | None:
        """(n,) what the network's output is divided by to be the score, at the times t, (n,); None if it is that."""
        return None

    def drift_and_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) f(t) and g(t) at the times t, (n,)."""
        raise NotImplementedError

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | float) -> Tensor:
        """Draw x_t from p(x_t | x_0).

        original_samples, noise: (B, ...). timesteps: times in [0, 1], () or (B,). Returns (B, ...).
        """
        dtype = self._check(noise, original_samples)
        times = torch.as_tensor(timesteps).cpu()
        if not times.is_floating_point():
            raise ValueError(f"timesteps must be times from 0 to 1 in a floating dtype, not {times.dtype}")
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(original_samples))):
            raise ValueError(f"timesteps has the shape {tuple(times.shape)}; allowed: () or ({len(original_samples)},)")
        if times.numel() and not (times.min() >= 0 and times.max() <= 1):
            raise ValueError(f"timesteps {times.tolist()} are out of range; allowed: 0 to 1")
        mean, std = (
            value.to(original_samples.device, dtype).reshape(-1, *[1] * (original_samples.ndim - 1))
            for value in self._marginal(times.to(dtype).reshape(-1))
        )
        return (mean * original_samples.to(dtype) + std * noise.to(dtype)).to(original_samples.dtype)


class _Coefficients(NamedTuple):
    """One entry per level, as numbers, so that no device waits for them."""

    rules: Sequence[Rule]
    score_divisors: list[float] | None
    correctors: list[LangevinStep]


def rows(rule: Any, *columns: Tensor | float) -> list[Any]:
    """One `rule` a level, from columns of coefficients (N,) or numbers that are the same at every level."""
    count = next(len(column) for column in columns if isinstance(column, Tensor))
    listed = (column.tolist() if isinstance(column, Tensor) else [column] * count for column in columns)
    return [rule(*row) for row in zip(*listed, strict=True)]


_NO_PROBABILITY_FLOW = {
    Predictor.NONE: "there is no predictor that it could change",
    Predictor.EULER_MARUYAMA: "the original raises TypeError ('float' object is not subscriptable)",
    Predictor.ANCESTRAL_SAMPLING: "the original refuses it with an AssertionError",
}
_NO_ALPHAS = "raises AttributeError ('subVPSDE' object has no attribute 'alphas')"
_CRASHES: dict[Enum, str] = {
    Predictor.ANCESTRAL_SAMPLING: "raises NotImplementedError (SDE class subVPSDE not yet supported)",
    Corrector.LANGEVIN: _NO_ALPHAS,
    Corrector.ALD: _NO_ALPHAS,
}
