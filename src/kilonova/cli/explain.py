"""``kilonova explain``: why a server is where it is, or why no host would take it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import bindparam, select

from kilonova.cli.database import run, state_dir_option
from kilonova.db import instances
from kilonova.db.engine import Statement, Tx
from kilonova.db.tables.compute import instances as table
from kilonova.db.tables.journal import actions
from kilonova.journal.model import ActionRow
from kilonova.journal.statements import row_to_action
from kilonova.model.instance import Instance

BY_NAME = Statement(
    select(table.c.uuid).where(table.c.display_name == bindparam("name")).order_by(table.c.id.desc()).limit(1)
)
CREATED = Statement(
    select(*actions.columns)
    .where(actions.c.instance_uuid == bindparam("uuid"), actions.c.operation == "create")
    .order_by(actions.c.id.desc())
    .limit(1)
)


@dataclass
class Story:
    instance: Instance
    action: ActionRow | None


def find(tx: Tx, server: str) -> Story:
    """The server of that id or, the newest of several, of that name."""
    found = instances.show_any(tx, server)
    if found is None:
        found = instances.show_any(tx, str(tx.scalar(BY_NAME, name=server)))
    if found is None:
        raise click.ClickException(f"There is no server '{server}'.")
    row = tx.one(CREATED, uuid=found.uuid)
    return Story(found, None if row is None else row_to_action(row))


def verdicts(action: ActionRow) -> dict[str, str]:
    """Host -> what became of it, in the order in which they were looked at."""
    result: dict[str, str] = {}
    place = action.outputs.get("place") or {}
    result.update(place.get("rejected", {}))
    result.update({host: f"tried, failed: {why}" for host, why in action.outputs.get("tried", {}).items()})
    if action.error is not None:
        result.update(action.error.reasons)
        if action.error.host and not action.error.reasons:
            result[action.error.host] = f"tried, failed: {action.error.message}"
    if place.get("host") and action.error is None:
        result[place["host"]] = "chosen"
    return result


@click.command()
@click.argument("server")
@state_dir_option
def explain(server: str, state_dir: Path) -> None:
    """Say for each host why SERVER (an id or a name) was put there, or was not."""
    story = run(state_dir, lambda tx: find(tx, server))
    console = Console()
    instance, action = story.instance, story.action
    console.print(f"[bold]{escape(instance.display_name)}[/] ({instance.uuid}) is {instance.vm_state}.")
    if action is None:
        console.print("Nothing is known of how it was placed.")
        return
    if action.error is not None:
        console.print(
            f"Its creation failed in the step '{action.error.step}': {escape(action.error.message)}"
        )
    hosts = verdicts(action)
    if not hosts:
        console.print("No host has been looked at yet." if action.open else "There was no host to look at.")
        return
    shown = Table("host", "verdict")
    for host, verdict in hosts.items():
        shown.add_row(escape(host), escape(verdict))
    console.print(shown)
