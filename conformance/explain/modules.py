"""Where in a network a divergence begins: the first module whose inputs agree with the original's and output does not.

Taps are compared as sketches, in the order of execution. A tap of an outer module comes after those inside it, so the
first one that diverges is as far inside as taps reach. Its inputs agree if each is the output of a module that agrees;
an input that no tapped module returned was computed by the module around, between the taps that agree and this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from conformance.compare import EMBEDDING, FLOAT64, TAP
from conformance.fixture import Fixture
from conformance.implementations.base import Implementation
from conformance.replay import CaseResult, Settings
from conformance.replay.checkpoints import original_state
from conformance.replay.model import network_input
from conformance.sketch import sketch


@dataclass(frozen=True)
class Localisation:
    """The first divergent module of a network.

    Attributes:
        module: its name in the original; empty if every module agrees and only what follows them does not.
        path: its path in the implementation.
        output: the comparison that shows it, such as `tap:mid.block_1.f64`.
        last_agreeing: the module executed before it, whose output agrees; empty if there is none.
        inputs: the modules whose outputs are its inputs, and agree.
        around: where an input is no module's output: the module that computes it; empty if all inputs are known.
    """

    module: str
    path: str
    output: str
    last_agreeing: str = ""
    inputs: tuple[str, ...] = ()
    around: str = ""


def localise(
    fixture: Fixture, implementation: Implementation, settings: Settings, result: CaseResult
) -> Localisation | None:
    """The first divergent module of a model's case; None for other kinds, and where no tap says anything."""
    if fixture.manifest.kind != "model":
        return None
    order = [output.name.removeprefix(TAP) for output in fixture.manifest.outputs if output.level == "tap"]
    seen = {c.output: c for c in result.comparisons}
    if EMBEDDING in seen and not seen[EMBEDDING].verdict.green:
        return Localisation(EMBEDDING, "the embedding of the times", EMBEDDING, inputs=("the times",))
    compared = [name for name in order if TAP + name in seen]
    for index, name in enumerate(compared):
        shown = next((c for c in _both(seen, TAP + name) if not c.verdict.green), None)
        if shown is not None:
            before = compared[:index]
            last = before[-1] if before else ""
            sources, known = _inputs(fixture, implementation, settings, name, before)
            path = implementation.tap_modules(fixture.manifest.subject)[name]
            around = "" if known else (name.rpartition(".")[0] or "the network itself")
            return Localisation(name, path, shown.output, last, sources, around)
    output = next((c for c in _both(seen, "sample") if not c.verdict.green), None)
    return None if output is None or not compared else Localisation("", "", output.output, compared[-1])


def _both(seen: dict[str, Any], output: str) -> list[Any]:
    """The comparisons of an output, the sharper one first."""
    return [seen[name] for name in (output + FLOAT64, output) if name in seen]


def _inputs(
    fixture: Fixture, implementation: Implementation, settings: Settings, module: str, agreeing: list[str]
) -> tuple[tuple[str, ...], bool]:
    """Which agreeing modules the inputs of `module` come from, and whether all of its inputs do."""
    subject = fixture.manifest.subject
    model = implementation.model(subject, original_state(fixture, implementation.original_shapes(subject)))
    model = model.to(settings.device, torch.float64)
    modules = implementation.tap_modules(subject)
    outputs: dict[str, torch.Tensor] = {"": sketch(network_input(fixture))}
    inputs: list[torch.Tensor] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs.setdefault(name, sketch(output))

        return hook

    def enter(module: torch.nn.Module, given: Any, named: Any) -> None:
        if not inputs:
            inputs.extend(
                sketch(x) for x in (*given, *named.values()) if isinstance(x, torch.Tensor) and x.is_floating_point()
            )

    for name in agreeing:
        model.get_submodule(modules[name]).register_forward_hook(keep(name))
    model.get_submodule(modules[module]).register_forward_pre_hook(enter, with_kwargs=True)
    with torch.no_grad():
        call = {name: torch.tensor(value, device=settings.device) for name, value in (subject.call or {}).items()}
        sample = network_input(fixture).to(settings.device, torch.float64)
        model(sample, fixture.tensors["times"].to(settings.device), **call)
    sources = [
        next((name for name, seen in reversed(outputs.items()) if torch.equal(seen, given)), None) for given in inputs
    ]
    return tuple(name or "the input" for name in sources if name is not None), None not in sources and bool(sources)
