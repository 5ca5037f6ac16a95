"""What `conformance explain` prints and writes: every output of one case, the first divergence in full, and its causes.

The JSON file, with infinite figures as null:

    {"schema": 1, "case": {…},                    as in the report of `conformance run`
     "first_divergence": {"output", "step", "detail"} | null,
     "module": {"module", "path", "output", "last_agreeing", "inputs", "around"} | null,
     "hints": [ATTEMPT, …],                       the causes that together explain it, in order
     "complete": bool,                            nothing is left with all hints applied
     "rivals": [cause, …],                        causes that explain it as well as a hint
     "tried": [cause, …], "seconds": float,
     "rounds": [{"calls": int | null, "attempts": [ATTEMPT, …]}, …]}

    ATTEMPT: {"cause", "statement", "change", "finding": "confirmed" | "partly" | "refuted", "kind": "repair" |
     "reproduction", "before", "after", "verdict": str | null, "then": {"output", "step"} | null}

`before` and `after` are the error at the first divergence, relative, without and with the change.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from conformance.compare import FLOAT64, Comparison
from conformance.explain.modules import Localisation
from conformance.explain.search import Explanation, Round
from conformance.explain.state import Target
from conformance.explain.trial import Attempt, Finding
from conformance.fixture import Fixture
from conformance.report.console import STYLES, figure, open_console, plain

BY_STEP = ("step", "sample", "pred_original_sample")


def print_explanation(explanation: Explanation) -> None:
    """Print the verdict, the outputs in the order of explanation, the first divergence, and what causes it."""
    fixture, result = explanation.fixture, explanation.result
    console = open_console()
    manifest = fixture.manifest
    console.print(f"{manifest.id}: {plain(manifest.title)}")
    console.print(f"  {plain(manifest.paper.title)} (arXiv:{manifest.paper.arxiv}), {plain(manifest.paper.location)}")
    console.print(
        f"  {manifest.reference.repository}@{manifest.reference.commit[:12]}: {', '.join(manifest.reference.functions)}"
    )
    console.print(f"verdict: [{STYLES[result.verdict.value]}]{result.verdict.value}[/]")
    if result.comparisons:
        console.print(_table(result.comparisons))
    if result.draws_match is not None:
        console.print(
            f"random stream: {'as the original' if result.draws_match else 'not consumed as by the original'}"
        )
    first = result.first_divergence
    if first is not None:
        console.print(f"first divergence: [red]{first.output}[/]{_where(fixture, Target.of(result))}")
        console.print(f"  {plain(first.detail)}", soft_wrap=True)
    elif result.message:
        console.print(plain(result.message))
    if explanation.module is not None:
        _print_module(console, explanation.module)
    if explanation.rounds:
        _print_causes(console, explanation)


def write_explanation(explanation: Explanation, path: Path) -> None:
    """Write the explanation as JSON; the schema is this module's docstring."""
    first = explanation.result.first_divergence
    module = explanation.module
    data = {
        "schema": 1,
        "case": explanation.result.to_dict(),
        "first_divergence": {"output": first.output, "step": first.step, "detail": first.detail} if first else None,
        "module": None if module is None else dataclasses.asdict(module),
        "hints": [_attempt(hint) for hint in explanation.hints],
        "complete": explanation.complete,
        "rivals": explanation.rivals,
        "tried": explanation.tried,
        "seconds": round(explanation.seconds, 4),
        "rounds": [{"calls": t.calls, "attempts": [_attempt(a) for a in t.attempts]} for t in explanation.rounds],
    }
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _print_module(console: Console, found: Localisation) -> None:
    if not found.module:
        console.print(f"every module agrees, up to {plain(found.last_agreeing)}: the fault is in what follows it")
        return
    console.print(
        f"first divergent module: [red]{plain(found.module)}[/] (here {plain(found.path)}), by {found.output}"
    )
    if found.last_agreeing:
        console.print(f"  the module before it, {plain(found.last_agreeing)}, agrees")
    inputs = " and ".join(found.inputs)
    if not found.around:
        console.print(f"  its input is that of {plain(inputs)}, which agrees: the fault is in this module")
    else:
        known = f", beside {plain(inputs)}, which agrees," if inputs else ""
        where = f"in this module, or in what {plain(found.around)} computes before it"
        console.print(f"  its input{known} is no module's output: the fault is {where}")


def _print_causes(console: Console, explanation: Explanation) -> None:
    for number, turn in enumerate(explanation.rounds):
        if turn.hint is not None:
            console.print(f"{'hint' if number == 0 else 'and'}: [green]{turn.hint.cause}[/]{_how_sure(turn)}")
            console.print(f"  {plain(turn.hint.statement)}", soft_wrap=True)
            console.print(f"  {_effect(explanation, turn, turn.hint)}", soft_wrap=True)
        elif turn.closest is not None:
            closest = turn.closest
            console.print(f"closest to a cause: {closest.cause}, which is not confirmed")
            console.print(f"  with {plain(closest.change)}: {_fall(closest)}", soft_wrap=True)
    if not explanation.hints:
        console.print("hint: none; no known cause removes the divergence")
    elif not explanation.complete:
        console.print(f"left: {_left(explanation)}")
    tried = ", ".join(explanation.tried)
    cut = next((turn.calls for turn in explanation.rounds if turn.calls is not None), None)
    within = "" if cut is None else f", on the first {cut} evaluations of the network"
    console.print(
        f"tried: {explanation.trials} trials in {explanation.seconds:.1f} s{within}: {tried or 'no cause fits'}",
        soft_wrap=True,
    )


def _how_sure(turn: Round) -> str:
    sure = " (confirmed)" if turn.hint is not None and turn.hint.finding is Finding.CONFIRMED else " (partly confirmed)"
    return sure + (f"; or, confirmed as well: {', '.join(turn.rivals)}" if turn.rivals else "")


def _effect(explanation: Explanation, turn: Round, hint: Attempt) -> str:
    """The change that was tried, and what became of the divergence."""
    if hint.reproduction:
        return (
            f"reproduced: the original's step {plain(hint.change)} gives what this step gives to {hint.after:.1e}; "
            f"the recording is {hint.before:.1e} away"
        )
    if hint.green and hint.verdict is not None:
        return f"with {plain(hint.change)}: {_fall(hint)}, and the case is {hint.verdict.value}"
    then = "" if hint.then is None else f"; then {hint.then.output}{_where(explanation.fixture, hint.then)} diverges"
    return f"with {plain(hint.change)}: {_fall(hint)}{then}"


def _fall(attempt: Attempt) -> str:
    if math.isinf(attempt.before):
        return "gone"
    return f"error {attempt.before:.1e} -> {attempt.after:.1e}"


def _left(explanation: Explanation) -> str:
    final = explanation.final
    first = final.first_divergence if final is not None else None
    if final is None or (first is None and final.draws_match is not False):
        return "steps that the hint does not explain"
    if first is None:
        return "the random stream"
    return f"{first.output}{_where(explanation.fixture, Target.of(final))}, error {first.error:.1e}"


def _where(fixture: Fixture, target: Target) -> str:
    if target.step is None:
        return ""
    times = fixture.tensors.get("times")
    by_step = target.output.split(".")[0] in BY_STEP
    if times is None or not by_step or target.step >= len(times):
        return f" at index {target.step}"
    return f" at step {target.step} of {len(times)} (network time {times[target.step].item():g})"


def _attempt(attempt: Attempt) -> dict[str, Any]:
    then = attempt.then
    return {
        "cause": attempt.cause,
        "statement": attempt.statement,
        "change": attempt.change,
        "finding": attempt.finding.value,
        "kind": "reproduction" if attempt.reproduction else "repair",
        "before": attempt.before if math.isfinite(attempt.before) else None,
        "after": attempt.after if math.isfinite(attempt.after) else None,
        "verdict": None if attempt.verdict is None else attempt.verdict.value,
        "then": None if then is None else {"output": then.output, "step": then.step},
    }


def _table(comparisons: list[Comparison]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("output", "verdict", "ρ", "error", "floor", "step"):
        table.add_column(name, justify="left" if name in ("output", "verdict") else "right", no_wrap=True)
    for c in comparisons:
        table.add_row(
            c.output,
            f"[{STYLES[c.verdict.value]}]{c.verdict.value}[/]",
            figure(None if c.output.endswith(FLOAT64) else c.rho, ".2f"),  # float64 is held to the floor column itself
            figure(c.error, ".1e"),
            figure(c.floor, ".1e"),
            "" if c.step is None else str(c.step),
        )
    return table
