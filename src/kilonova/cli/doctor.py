"""``kilonova doctor``: whether what is booked is what servers hold, and what to do where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from oslo_config import cfg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kilonova.cell_parts import open_database
from kilonova.cli.database import look, state_dir_option
from kilonova.cli.running import config_file_option
from kilonova.clock import SystemClock
from kilonova.db import audit_facts, cell_mappings, quotas
from kilonova.db.audit_facts import CellFacts
from kilonova.db.cell_mappings import CellMapping
from kilonova.db.cells import PatientDatabase
from kilonova.db.engine import Database, DatabaseUnavailable, Tx
from kilonova.errors import Failed
from kilonova.resources import audit
from kilonova.resources.audit import Finding
from kilonova.settings import Settings, read_options

PATIENCE = 30.0  # seconds for a cell to answer


class Diagnosis(msgspec.Struct, frozen=True):
    """What was found, and of that what was mended."""

    servers: int
    found: list[Finding]
    mended: list[Finding]


def examine(tx: Tx, others: Sequence[CellFacts] = (), *, mend: bool = False) -> Diagnosis:
    """Compare everything, in one transaction; with ``mend`` what is safe is mended in it.

    ``others``: what the databases of further cells have told.  What is held for their deleted servers is
    found, and left: that they are deleted is not for this transaction to see.
    """
    top, cells = audit_facts.of_top(tx), [audit_facts.of_cell(tx), *others]
    found = audit.findings(top, cells)
    wrong = [_of_quota(each) for each in quotas.audit(tx)]
    mended = audit.repair(tx, top, found) if mend else []
    if mend and wrong:
        quotas.repair(tx)
        mended += wrong
    return Diagnosis(sum(len(cell.servers) for cell in cells), [*found, *wrong], mended)


async def consult(db: Database, *, mend: bool = False) -> Diagnosis:
    """The same for a whole deployment.  Raises Failed when a cell does not answer: all must be heard."""
    others = [await _facts(mapping) for mapping in await db.read(cell_mappings.list_all)]
    if mend:
        return await db.write(lambda tx: examine(tx, others, mend=True))
    return await db.read(lambda tx: examine(tx, others))


async def _facts(mapping: CellMapping) -> CellFacts:
    clock = SystemClock()
    db = open_database(mapping.database_connection, clock)
    try:
        return await PatientDatabase(db, mapping.name, clock, PATIENCE).read(audit_facts.of_cell)
    except DatabaseUnavailable as error:
        raise Failed(f"The cell {mapping.name} cannot be asked: {error}") from error
    finally:
        await db.close()


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
@config_file_option
@state_dir_option
def doctor(state_dir: Path, repair: bool, config_file: Path | None) -> None:
    """Compare allocations, claims, devices, counters and servers, and say what to do where they differ.

    The exit status is 1 when something is left to do.
    """
    try:
        settings = Settings(state_dir=state_dir, options=read_options(config_file))
    except cfg.Error as error:
        raise click.ClickException(f"{config_file}: {error}") from error
    diagnosis = look(state_dir, settings, lambda db: consult(db, mend=repair))
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
