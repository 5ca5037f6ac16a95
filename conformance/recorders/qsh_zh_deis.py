"""Recorder for qsh-zh/deis: `th_deis`, every method of its `get_sampler`, on discrete chains.

Times, rho and coefficients are jax's, in float32. How jax rounds them depends on its version, on the machine and on the
number of elements: its compiler contracts, reorders and replaces operations, and sums in an order of its own. Recorded
is what the original's source says, operation by operation; `CHANGES` lists how.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from conformance.errors import ConformanceError
from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape

ORIGINAL = Original(
    system="deis",
    repository="qsh-zh/deis",
    commit="a30709f434ddddefaf2201d014ce4158e62c2a33",
    licence="none stated",
    paper_title="Fast Sampling of Diffusion Models with Exponential Integrator",
    arxiv="2204.13902",
)
XLA_FLAG = "--xla_disable_hlo_passes=algsimp"
CHANGES = (
    "jax.disable_jit, and XLA without algebraic simplification: every operation is rounded by itself",
    "jnp.power, exp and log in th_deis.sde: correctly rounded",
    "jnp.sum in th_deis.multistep: of the float32 terms, in float64, rounded once",
    "_promote_dtypes_inexact, which jax has moved, is put back",
)
LIFTED = ("VPSDE.x2v: x_T is scaled in float32",)


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules, and `plain()`, the context in which its jax computes as `CHANGES` says.

    Raises:
        ConformanceError: jax is not installed, or has been used in this process before.
    """
    if XLA_FLAG not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAG}".strip()
    try:
        jax, jnp = importlib.import_module("jax"), importlib.import_module("jax.numpy")
    except ImportError as error:
        raise ConformanceError(f"deis computes its coefficients with jax: {error}") from error
    values = np.linspace(1.0, 2.0, 1000, dtype=np.float32)
    if not np.array_equal(jnp.asarray(values) / np.float32(3.0), values / np.float32(3.0)):
        raise ConformanceError("jax was used in this process before: record deis in a process of its own")
    moved = importlib.import_module("jax._src.numpy.util").promote_dtypes_inexact
    elsewhere = importlib.import_module("jax._src.numpy.lax_numpy")
    names = ("th_deis", "th_deis.sde", "th_deis.multistep", "th_deis.sampler")
    with patch.object(elsewhere, "_promote_dtypes_inexact", moved, create=True), importing(source, names) as modules:
        package, sde, multistep, sampler = modules

        @contextmanager
        def plain() -> Iterator[None]:
            rounded = {name: partial(correctly_rounded, jnp, getattr(np, name)) for name in ("power", "exp", "log")}
            exact_sum = partial(sum_rounded_once, jax)
            with (
                jax.disable_jit(),
                patch.object(sde, "jnp", Overlay(jnp, **rounded)),
                patch.object(multistep, "jnp", Overlay(jnp, sum=exact_sum)),
            ):
                yield

        yield SimpleNamespace(package=package, sampler=sampler, plain=plain)


class Overlay:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def correctly_rounded(jnp: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function` of float32 values, in float64, as float32."""
    wide = [np.asarray(value, dtype=np.float32).astype(np.float64) for value in arguments]
    return jnp.asarray(np.asarray(function(*wide)).astype(np.float32))


def sum_rounded_once(jax: Any, terms: Any) -> Any:
    """The sum over the last axis."""
    result = jax.ShapeDtypeStruct(terms.shape[:-1], terms.dtype)
    add = lambda values: np.asarray(values).sum(-1, dtype=np.float64).astype(np.float32)
    return jax.pure_callback(add, result, terms, vmap_method="broadcast_all")


class Case(NamedTuple):
    """Arguments of the original, in its words; `which` is ab_order, or rk_method."""

    method: str
    which: int | str
    ts_phase: str
    ts_order: float
    num_step: int
    betas: tuple[str, int, float, float] = ("linear", 1000, 1e-4, 0.02)


class Sampler:
    """The original's sampler of a case, built once: its tables do not depend on the run."""

    def __init__(self, code: SimpleNamespace, case: Case) -> None:
        self.code, self.case = code, case
        self._state: tuple[torch.Tensor, Any] | None = None

    @cached_property
    def _built(self) -> tuple[Any, Any, list[torch.Tensor]]:
        """The process, the sampler and the tensors that it was given."""
        case, code = self.case, self.code
        sde = code.package.DiscreteVPSDE(alphas_cumprod(case))
        to_scaled, self._to_input = sde.v2x, sde.v2x

        def noted(state: torch.Tensor, t: Any) -> torch.Tensor:
            self._state = (state, t)
            return to_scaled(state, t)

        sde.v2x = noted
        scale = sde.x2v
        sde.x2v = lambda x, t: scale(x.float(), t).to(x.dtype)
        given: list[torch.Tensor] = []
        convert = code.sampler.jax2th

        def kept(array: Any, *like: Any) -> torch.Tensor:
            given.append(convert(array, *like))
            return given[-1]

        which = {"rk_method": case.which} if case.method == "rho_rk" else {"ab_order": case.which}
        with patch.object(code.sampler, "jax2th", kept):
            run = code.package.get_sampler(
                sde, self._epsilon, case.ts_phase, case.ts_order, case.num_step, method=case.method, **which
            )
        return sde, run, list(given)

    def _epsilon(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The network, as the original's examples wrap it."""
        if self._state is not None:
            state, level = self._state
            self._network.at(state)
            x, self._state = self._to_input(state, level), None
        return self._network(x, torch.ones(x.shape[0]) * t)

    def __call__(self, network: Any, shape: Sequence[int], dtype: torch.dtype) -> Run:
        x = torch.randn(shape, dtype=dtype)
        self._network, self._state = network, None
        with self.code.plain():
            sde, run, given = self._built
            final = run(x)
            rhos = torch.from_numpy(np.asarray(sde.t2rho(np.asarray(given[0]))).copy())
            start = np.asarray(given[0])[0]
            initial = sde.x2v(x, start) if self.case.method.startswith("rho") else None
        tables = {"alphas_cumprod": alphas_cumprod(self.case), "sigmas": rhos}
        if self.case.method != "rho_rk":
            tables["step_weights"] = given[1]
        return Run(final, None, tables, initial)


def alphas_cumprod(case: Case) -> torch.Tensor:
    """(T,) as the original's example makes it (demo/discrete_celeba/runner/schedule.py)."""
    kind, steps, start, end = case.betas
    if kind == "quad":
        betas = np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2
    else:
        betas = np.linspace(start, end, steps, dtype=np.float64)
    return (1.0 - torch.from_numpy(betas).float()).cumprod(dim=0)


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Methods and orders, pairwise over the grids of times; whole times where the grid has repeats; 1 to 100 steps."""
    for row in ROWS:
        yield _case(code, Case(*row))  # type: ignore[arg-type]


def _case(code: SimpleNamespace, case: Case) -> SchedulerCase:
    kind, total, start, end = case.betas
    config: dict[str, Any] = {
        "num_train_timesteps": total,
        "beta_schedule": {"quad": "scaled_linear"}.get(kind, kind),
        "beta_start": start,
        "beta_end": end,
        "coefficients": "float32_cumprod",
    }
    if case.method == "rho_rk":
        config["rk_method"] = case.which
    else:
        config |= {"solver_type": case.method, "solver_order": 4 if case.method == "ipndm" else int(case.which) + 1}
    grid = "" if case.method == "ipndm" else f"-{case.ts_phase}"
    if grid:
        config["ts_phase"] = case.ts_phase
        if case.ts_phase != "log":
            config["ts_order"] = case.ts_order
            grid += f"{case.ts_order:g}"
    chain = "" if case.betas == Case._field_defaults["betas"] else f"-{kind}-{total}"
    which = "" if case.method == "ipndm" else f"-{case.which}"
    runge_kutta = case.method == "rho_rk"
    evaluations = case.num_step * (int(str(case.which)[0]) if runge_kutta else 1)
    return SchedulerCase(
        name=f"{case.method.replace('_', '-')}{which}{grid}{chain}-{case.num_step}",
        title=f"{case.method} {case.which}, {case.num_step} steps, times by {case.ts_phase} of order "
        f"{case.ts_order:g}, {kind} betas, T = {total}",
        location={"t_ab": "equations 14 and 15", "ipndm": "appendix H.2"}.get(case.method, "equations 17 and 18"),
        cls="DEISRungeKuttaScheduler" if runge_kutta else "DEISMultistepScheduler",
        config=config,
        set_timesteps={"num_inference_steps": case.num_step},
        run=Sampler(code, case),
        network=AnalyticNetwork(total),
        functions=(
            f"th_deis/sampler.py:get_sampler_{case.method}",
            "th_deis/vpsde.py:DiscreteVPSDE",
            "th_deis/sde.py:get_rev_ts",
            f"th_deis/rk.py:{case.which}" if runge_kutta else "th_deis/multistep.py:get_ab_eps_coef, ab_step",
        ),
        shape=case_shape(evaluations),
        seed=case.num_step,
        changes=CHANGES,
        lifted=LIFTED if case.method.startswith("rho") else (),
    )


SMALL = ("linear", 40, 1e-4, 0.4)
QUAD = ("quad", 1000, 0.00085, 0.012)
ROWS: tuple[tuple[Any, ...], ...] = (
    ("t_ab", 0, "t", 1.0, 5),
    ("t_ab", 1, "rho", 5.0, 1),
    ("t_ab", 2, "log", 1.0, 8, QUAD),
    ("t_ab", 3, "t", 2.0, 10),
    ("t_ab", 2, "t", 2.0, 30, SMALL),
    ("t_ab", 3, "t", 2.0, 100),
    ("rho_ab", 3, "rho", 7.0, 2),
    ("rho_ab", 2, "t", 2.0, 6),
    ("rho_ab", 0, "rho", 7.0, 7, QUAD),
    ("rho_ab", 3, "log", 1.0, 8),
    ("ipndm", 3, "t", 1.0, 1),
    ("ipndm", 3, "t", 1.0, 7),
    ("rho_rk", "2heun", "rho", 7.0, 4),
    ("rho_rk", "3kutta", "t", 2.0, 3),
    ("rho_rk", "3ral", "log", 1.0, 2),
    ("rho_rk", "3heun", "t", 2.0, 1),
    ("rho_rk", "3vdh", "rho", 5.0, 4, QUAD),
    ("rho_rk", "3ssprk", "t", 3.0, 5),
    ("rho_rk", "4rk", "t", 1.0, 4),
)
