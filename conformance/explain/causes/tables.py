"""A table of the forward process in another precision, or made by another recipe, than the original's.

Where the fixture holds the original's tables they are put in. Elsewhere they are made from the implementation's own
betas, computed anew without any cast to a narrow type, by each of the recipes that originals use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from conformance.explain.alteration import Alteration
from conformance.explain.schedule_tables import install
from conformance.explain.state import State
from conformance.explain.trial import Cause, Repair
from conformance.fixture import Subject

NARROW = (torch.float32, torch.float16, torch.bfloat16)
WIDENED = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

RECIPES: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "in float64": lambda betas: (betas, (1 - betas).cumprod(0)),
    "in float64 and rounded to float32 once": lambda betas: (betas.float(), (1 - betas).cumprod(0).float()),
    "from betas rounded to float32, by a product in float32": lambda betas: (
        betas.float(),
        (1 - betas.float()).cumprod(0),
    ),
}
"""How originals make (betas, alphas_cumprod) from float64 betas."""

TABLES = ("betas", "alphas_cumprod")

HELD = (
    (False, "", ""),
    (True, ", held in float64", ", and coefficients are computed from them in their narrow type"),
)


class _Tables(Alteration):
    """The scheduler's tables replaced by these; `wide`: held in float64, so that arithmetic on them is."""

    replaces_tables = True

    def __init__(self, tables: Mapping[str, torch.Tensor], wide: bool) -> None:
        self._tables = {name: table.double() if wide else table for name, table in tables.items()}

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        install(scheduler, self._tables)


class _Recipe(Alteration):
    """The scheduler's tables made anew by a recipe; `wide` as above."""

    replaces_tables = True

    def __init__(self, recipe: str, linspace: Callable[..., torch.Tensor] | None, wide: bool) -> None:
        self._recipe, self._linspace, self._wide = RECIPES[recipe], linspace, wide
        self._exact: torch.Tensor | None = None

    def building(self, build: Callable[[], Any]) -> Any:
        if self._exact is None:
            with without_casts(self._linspace):
                self._exact = getattr(build(), "betas", None)
        return build()

    def scheduler(self, scheduler: Any, subject: Subject) -> None:
        exact = self._exact
        if exact is None and hasattr(type(scheduler), "from_config"):  # made by a pipeline
            with without_casts(self._linspace):
                exact = getattr(type(scheduler).from_config(scheduler.config), "betas", None)
        if exact is not None:
            betas, alphas_cumprod = self._recipe(exact.double())
            _Tables({"betas": betas, "alphas_cumprod": alphas_cumprod}, self._wide).scheduler(scheduler, subject)


class _Lifted(Alteration):
    """Whatever is computed on construction and in `set_timesteps` is computed without casts to a narrow type."""

    def building(self, build: Callable[[], Any]) -> Any:
        with without_casts():
            return build()


def trials(state: State) -> Iterator[Repair]:
    if not state.at("step", "pred_original_sample", "sample", "images", *TABLES):
        return
    tensors = state.fixture.tensors
    is_pipeline = state.fixture.manifest.kind == "pipeline"  # whose replays take long
    recorded = {name: tensors[f"table.{name}"] for name in TABLES if f"table.{name}" in tensors}
    for wide, held, rounded in HELD[1:] if is_pipeline else HELD:
        if recorded:
            names = " and ".join(recorded)
            statement = f"{names}: not the original's{rounded}{_precisions(state)}"
            yield Repair(statement, f"the original's {names}{held}", _Tables(recorded, wide))
        for recipe in RECIPES if hasattr(state.scheduler, "betas") else ():
            for linspace, filled in FILLED[:1] if is_pipeline else FILLED:
                statement = f"the original makes its tables {recipe}{filled}; these are not made so{rounded}"
                change = f"tables made {recipe}{filled}{held}"
                yield Repair(statement, change, _Recipe(recipe, linspace, wide))
    yield Repair("tables are rounded to a narrow type", "no casts to float32 in tables", _Lifted())


def _precisions(state: State) -> str:
    """Which table has which precision, and should have which."""
    found = []
    for comparison in state.result.comparisons:
        recorded = state.fixture.tensors.get(f"table.{comparison.output}")
        if recorded is not None and comparison.observed is not None and comparison.observed.dtype != recorded.dtype:
            pair = [str(tensor.dtype).removeprefix("torch.") for tensor in (comparison.observed, recorded)]
            found.append(f"{comparison.output} is {pair[0]}, the original's {pair[1]}")
    return f": {', '.join(found)}" if found else ""


@contextmanager
def without_casts(linspace: Callable[..., torch.Tensor] | None = None) -> Iterator[None]:
    """Torch and NumPy compute in float64 where the code asks for a narrower type; `linspace` replaces torch's."""
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(_WithoutCasts(linspace))
        for name in ("float32", "float16"):
            stack.enter_context(patch.object(np, name, np.float64))
        stack.callback(torch.set_default_dtype, default)
        torch.set_default_dtype(torch.float64)
        yield


class _WithoutCasts(TorchFunctionMode):
    def __init__(self, linspace: Callable[..., torch.Tensor] | None) -> None:
        super().__init__()
        self._linspace = linspace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value

        args, kwargs = tuple(map(wide, args)), {name: wide(value) for name, value in (kwargs or {}).items()}
        if func in WIDENED:
            func = torch.Tensor.double
        elif func is torch.linspace and self._linspace is not None:
            func = self._linspace
        return func(*args, **kwargs)


def _numpy_linspace(start: float, end: float, steps: int, **options: Any) -> torch.Tensor:
    return torch.from_numpy(np.linspace(float(start), float(end), int(steps)))


FILLED = ((None, ""), (_numpy_linspace, ", betas filled by NumPy"))
"""What replaces `torch.linspace`, whose float64 values differ from NumPy's in the last bits."""

CAUSE = Cause("dtype of a table", trials)
