"""``kilonova doctor``: whether what is booked is what servers hold, and what to do where it is not."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kilonova.cli.database import run, state_dir_option
from kilonova.db import audit_facts, quotas
from kilonova.db.engine import Tx
from kilonova.resources import audit
from kilonova.resources.audit import Finding


class Diagnosis(msgspec.Struct, frozen=True):
    """What was found, and of that what was mended."""

    servers: int
    found: list[Finding]
    mended: list[Finding]


def examine(tx: Tx, *, mend: bool = False) -> Diagnosis:
    """Compare everything, in one transaction; with ``mend`` what is safe is mended in it."""
    top, cell = audit_facts.of_top(tx), audit_facts.of_cell(tx)
    found = audit.findings(top, [cell])
    wrong = [_of_quota(each) for each in quotas.audit(tx)]
    mended = audit.repair(tx, top, found) if mend else []
    if mend and wrong:
        quotas.repair(tx)
        mended += wrong
    return Diagnosis(len(cell.servers), [*found, *wrong], mended)


def _of_quota(each: quotas.Mismatch) -> Finding:
    whose = f"the user {each.user_id} in the project" if each.user_id else "the project"
    return Finding(
        kind="wrong quota counter",
        subject=each.project_id,
        message=f"The quota of {whose} {each.project_id} counts {each.counted}, and its servers are "
        f"{each.held}.",
        advice="Repair it: the counters are set to the sums.",
        safe=True,
    )


@click.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended without harm; tell the rest.")
@state_dir_option
def doctor(state_dir: Path, repair: bool) -> None:
    """Compare allocations, claims, devices, counters and servers, and say what to do where they differ.

    The exit status is 1 when something is left to do.
    """
    diagnosis = run(state_dir, lambda tx: examine(tx, mend=repair), write=repair)
    console = Console()
    if not diagnosis.found:
        console.print(f"All is well: {diagnosis.servers} servers hold what is booked for them.")
        return
    shown = Table("what", "whom", "finding", "what to do" if not repair else "outcome")
    mended = {(each.kind, each.subject, each.message) for each in diagnosis.mended}
    left = 0
    for each in diagnosis.found:
        done = (each.kind, each.subject, each.message) in mended
        left += not done
        shown.add_row(
            *(escape(text) for text in (each.kind, each.subject, each.message)), _outcome(each, done)
        )
    console.print(shown)
    if left:
        raise SystemExit(1)


def _outcome(each: Finding, done: bool) -> str:
    return "repaired" if done else escape(each.advice)
