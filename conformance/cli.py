"""The command line: thin over pytest (which runs and selects) and the library. Importing it does not import torch.

Exit codes: 0 all pass, 1 a divergence, 2 a usage or environment error.
"""

from __future__ import annotations

import typer

from conformance.commands.audit import audit
from conformance.commands.check import check
from conformance.commands.explain import explain
from conformance.commands.gate import gate
from conformance.commands.list_cases import list_cases
from conformance.commands.new import new
from conformance.commands.record import record
from conformance.commands.run import run
from conformance.commands.verify import verify

app = typer.Typer(
    name="conformance",
    help="Replay recordings of original paper code on an implementation: is it 1-to-1? If not, where does it diverge?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("list")(list_cases)
app.command()(run)
app.command()(check)
app.command()(verify)
app.command()(new)
app.command()(record)
app.command()(explain)
app.command()(gate)
app.command()(audit)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="conformance")


if __name__ == "__main__":
    main()
