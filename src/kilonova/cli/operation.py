"""``kilonova operation``: what is under way, and what needs a decision."""

from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
from oslo_config import cfg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kilonova.cli.database import in_cell, look, state_dir_option
from kilonova.clock import SystemClock, iso_z
from kilonova.db.cell_mappings import FIRST_CELL_NAME
from kilonova.db.engine import Database
from kilonova.journal import attention
from kilonova.settings import Settings, read_options

T = TypeVar("T")


@click.group()
def operation() -> None:
    """Look at unfinished operations, and decide about those that need attention."""


config_file_option = click.option(
    "--config-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of controllers, for a cloud of many hosts.",
)
cell_option = click.option(
    "--cell", default=FIRST_CELL_NAME, show_default=True, help="Whose operations: name or uuid."
)


def _in(state_dir: Path, config_file: Path | None, cell: str, fn: Callable[[Database], Awaitable[T]]) -> T:
    try:
        options = read_options(config_file)
    except cfg.Error as error:
        raise click.ClickException(f"{config_file}: {error}") from error
    settings = Settings(state_dir=state_dir, options=options)
    return look(state_dir, settings, lambda db: in_cell(db, cell, fn))


@operation.command("list")
@state_dir_option
@config_file_option
@cell_option
def list_open(state_dir: Path, config_file: Path | None, cell: str) -> None:
    """List unfinished operations of a cell, the oldest first."""
    rows = _in(state_dir, config_file, cell, lambda db: db.read(attention.open_actions))
    shown = Table("id", "operation", "server", "state", "step", "since", "why")
    for row in rows:
        step = row.plan[row.cursor] if 0 <= row.cursor < len(row.plan) else ""
        why = row.why or (row.error.message if row.error else "")
        since = iso_z(row.start_time)
        shown.add_row(str(row.id), row.operation, row.instance_uuid, row.state, step, since, escape(why))
    Console().print(shown)


def _resolver(verb: str, words: str) -> click.Command:
    @click.command(verb, help=words)
    @click.argument("action_id", type=click.IntRange(1, 2**63 - 1))
    @state_dir_option
    @config_file_option
    @cell_option
    def resolve(action_id: int, state_dir: Path, config_file: Path | None, cell: str) -> None:
        now, who = SystemClock().now(), getpass.getuser()
        _in(
            state_dir,
            config_file,
            cell,
            lambda db: db.write(lambda tx: attention.resolve(tx, action_id, verb, who, now)),
        )
        click.echo(f"Operation {action_id}: {verb}.")

    return resolve


for each in (
    ("retry", "Try the failing step again."),
    ("skip", "Go on as if the failing step had succeeded: you have done it by hand."),
    ("abandon", "End the operation: undo no more, and leave the server as a failure of it does."),
):
    operation.add_command(_resolver(*each))
