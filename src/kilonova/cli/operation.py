"""``kilonova operation``: what is under way, and what needs a decision."""

from __future__ import annotations

import getpass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kilonova.cli.database import run, state_dir_option
from kilonova.clock import SystemClock, iso_z
from kilonova.journal import attention


@click.group()
def operation() -> None:
    """Look at unfinished operations, and decide about those that need attention."""


@operation.command("list")
@state_dir_option
def list_open(state_dir: Path) -> None:
    """List unfinished operations, the oldest first."""
    rows = run(state_dir, attention.open_actions)
    shown = Table("id", "operation", "server", "state", "step", "since", "why")
    for row in rows:
        step = row.plan[row.cursor] if 0 <= row.cursor < len(row.plan) else ""
        why = row.why or (row.error.message if row.error else "")
        since = iso_z(row.start_time)
        shown.add_row(str(row.id), row.operation, row.instance_uuid, row.state, step, since, escape(why))
    Console().print(shown)


def _resolve(state_dir: Path, action_id: int, verb: str) -> None:
    now = SystemClock().now()
    run(state_dir, lambda tx: attention.resolve(tx, action_id, verb, getpass.getuser(), now), write=True)
    click.echo(f"Operation {action_id}: {verb}.")


@operation.command()
@click.argument("action_id", type=click.IntRange(1, 2**63 - 1))
@state_dir_option
def retry(action_id: int, state_dir: Path) -> None:
    """Try the failing step again."""
    _resolve(state_dir, action_id, "retry")


@operation.command()
@click.argument("action_id", type=click.IntRange(1, 2**63 - 1))
@state_dir_option
def skip(action_id: int, state_dir: Path) -> None:
    """Go on as if the failing step had succeeded: you have done it by hand."""
    _resolve(state_dir, action_id, "skip")


@operation.command()
@click.argument("action_id", type=click.IntRange(1, 2**63 - 1))
@state_dir_option
def abandon(action_id: int, state_dir: Path) -> None:
    """End the operation: undo no more, and leave the server as a failure of it does."""
    _resolve(state_dir, action_id, "abandon")
