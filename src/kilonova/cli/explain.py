"""``kilonova explain``: why a server is where it is, or why no host would take it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from oslo_config import cfg
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import bindparam, select

from kilonova.cli import explain_now
from kilonova.cli.database import in_cell, look, state_dir_option, where
from kilonova.cli.explain_now import Decision, Thought
from kilonova.db import instances
from kilonova.db.engine import Database, Statement, Tx
from kilonova.db.tables.compute import instances as table
from kilonova.db.tables.journal import actions
from kilonova.journal.model import ActionRow
from kilonova.journal.statements import row_to_action
from kilonova.model.instance import Instance
from kilonova.operations.create_checks import parse_zone
from kilonova.settings import Settings, read_options

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
@click.argument("server", required=False)
@click.option("--now", is_flag=True, help="Ask again, about the hosts as they are now: every host is told.")
@click.option("--dry-run", is_flag=True, help="Where would a server of this flavor and image go?")
@click.option("--flavor", help="Of a dry run: id or name.")
@click.option("--image", help="Of a dry run: id, or name of a public one; none: it boots from a volume.")
@click.option("--hint", multiple=True, help="Of a dry run: key=value, as often as need be.")
@click.option("--zone", help="Of a dry run: zone, zone:host or zone:host:node.")
@click.option("--host", help="Of a dry run: the host asked for (2.74).")
@click.option("--project", default="", help="Of a dry run: whose server it is.")
@click.option("--count", type=click.IntRange(1, 1000), default=1, help="Of a dry run: servers like this.")
@click.option("--config-file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@state_dir_option
def explain(
    server: str | None, state_dir: Path, config_file: Path | None, now: bool, dry_run: bool, **thought: Any
) -> None:
    """Say for each host why SERVER (an id or a name) was put there, or was not."""
    settings = Settings(state_dir=state_dir, options=_options(config_file))
    if dry_run == (server is not None):
        raise click.ClickException("Name a SERVER, or give --dry-run with a --flavor.")
    if server is None:
        return _dry_run(state_dir, settings, **thought)
    story = look(state_dir, settings, lambda db: _story(db, server))
    console = Console()
    _tell(console, story)
    if now:
        decision = look(
            state_dir, settings, lambda db: explain_now.decide_again(db, settings, story.instance)
        )
        console.print("If it had to be placed now:")
        explain_now.show(console, decision, 1)
    return None


async def _story(db: Database, server: str) -> Story:
    """In a cell besides the first a server is found by its uuid only."""
    cell = await where(db, server)
    return await in_cell(db, cell, lambda its: its.read(lambda tx: find(tx, server)))


def _options(config_file: Path | None) -> dict[str, dict[str, object]]:
    try:
        return read_options(config_file)
    except cfg.Error as error:
        raise click.ClickException(f"{config_file}: {error}") from error


def _dry_run(
    state_dir: Path,
    settings: Settings,
    *,
    flavor: str | None,
    image: str | None,
    hint: tuple[str, ...],
    zone: str | None,
    count: int,
    **asked: str | None,
) -> None:
    if flavor is None:
        raise click.ClickException("A dry run needs a --flavor.")
    hints = explain_now.hints_of(hint)

    async def decide(db: Database) -> Decision:
        name, host, node = parse_zone(zone, settings.text("default_schedule_zone") or None)
        more = {
            "availability_zone": name,
            "forced_host": host,
            "forced_node": node,
            "requested_host": asked["host"],
            "project_id": asked["project"],
            "hints": hints,
        }
        return await explain_now.decide(
            db, settings, Thought(flavor=flavor, image=image, count=count, more=more)
        )

    explain_now.show(Console(), look(state_dir, settings, decide), count)


def _tell(console: Console, story: Story) -> None:
    instance, action = story.instance, story.action
    console.print(f"[bold]{escape(instance.display_name)}[/] ({instance.uuid}) is {instance.vm_state}.")
    if action is None:
        console.print("Nothing is known of how it was placed.")
        return
    if action.error is not None:
        console.print(
            f"Its creation failed in the step '{action.error.step}': {escape(action.error.message)}"
        )
    hosts, counts = verdicts(action), removed(action)
    for name, count in counts.items():
        console.print(f"{name} refused {count} hosts.")
    if not hosts:
        console.print("No host has been looked at yet." if action.open else "There was no host to look at.")
        return
    shown = Table("host", "verdict")
    for host, verdict in hosts.items():
        shown.add_row(escape(host), escape(verdict))
    console.print(shown)
    if sum(counts.values()) > len(hosts):
        console.print("Not all hosts were written down: --now asks again about every one.")


def removed(action: ActionRow) -> dict[str, int]:
    """Filter -> hosts that it refused, when it was decided for the last time."""
    if action.error is not None:
        return action.error.removed
    found: dict[str, int] = (action.outputs.get("place") or {}).get("removed", {})
    return found
