"""What `conformance verify` prints: what did not pass, and one verdict."""

from __future__ import annotations

from collections import defaultdict

from conformance.contracts.result import Status
from conformance.report.console import STYLES, open_console, plain
from conformance.verify.verification import Verification

MOST_CASES = 20  # that are shown; the JSON report has all


def print_verification(verification: Verification) -> None:
    """Print contracts that failed or do not apply, fixtures that are not bitwise, complaints, and the verdict line."""
    console = open_console()
    absent: dict[tuple[str, str], list[str]] = defaultdict(list)
    for check in verification.checks:
        if check.status is Status.NOT_APPLICABLE:
            absent[check.subject, check.reason].append(check.name)
    for (subject, reason), names in absent.items():
        console.print(f"[dim]not applicable[/] {subject}, {plain(reason)}: {', '.join(names)}", soft_wrap=True)
    for check in verification.checks:
        if check.status is Status.FAILED:
            waived = check.id in verification.waived
            status = "[yellow]waived[/]" if waived else "[red]failed[/]"
            example = f" [{check.example}]" if check.example else ""
            console.print(f"{status} {check.id}: {plain(check.reason + example)}", soft_wrap=True)
    told = [case for case in verification.cases if case.message or not case.verdict.green]
    for case in told[:MOST_CASES]:
        style = STYLES[case.verdict.value]
        console.print(f"[{style}]{case.verdict.value}[/] {case.id}: {plain(case.message)}", soft_wrap=True)
    if len(told) > MOST_CASES:
        console.print(f"… and {len(told) - MOST_CASES} more fixtures; --json has all")
    for complaint in verification.complaints:
        console.print(f"[red]{plain(complaint)}[/]", soft_wrap=True)
    console.print(f"[bold {'green' if verification.green else 'red'}]{plain(verification.line)}[/]", soft_wrap=True)
