"""``kilonova cell``: the cells of a deployment, in the words of nova-manage cell_v2."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kilonova.cells_admin import CellsAdmin, CellShown, Verdict, masked
from kilonova.cli.running import config_file_option, run, settings_of, state_dir_option

verbose_option = click.option("--verbose", is_flag=True, help="Show passwords in URLs.")


def _with_admin(fn: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A command whose first argument is the opened administration."""

    @state_dir_option
    @config_file_option
    @wraps(fn)
    def command(*words: Any, state_dir: Path, config_file: Path | None, **options: Any) -> None:
        async def go() -> None:
            admin = await CellsAdmin.open(settings_of(state_dir, config_file))
            try:
                await fn(admin, *words, **options)
            finally:
                await admin.close()

        run(go(), str(state_dir))

    return command


@click.group()
def cell() -> None:
    """Cells: parts of a deployment, each with servers in a database and hosts on a bus of its own."""


@cell.command()
@click.option("--name", required=True)
@click.option("--database-connection", required=True, help="postgresql://user:password@host/name")
@click.option("--transport-url", required=True, help="nats://host:4222/PREFIX; no hosts: those of [nats]")
@click.option("--disabled", is_flag=True, help="It takes no new servers yet.")
@_with_admin
async def create(
    admin: CellsAdmin, name: str, database_connection: str, transport_url: str, disabled: bool
) -> None:
    """Add a cell: make its tables, and have the controllers take it in within a minute."""
    made = await admin.create(name, database_connection, transport_url, disabled=disabled)
    click.echo(made.uuid)


@cell.command("list")
@verbose_option
@_with_admin
async def list_(admin: CellsAdmin, verbose: bool) -> None:
    """List the cells."""
    _print([await admin.shown(each) for each in await admin.all()], verbose)


@cell.command()
@click.argument("word", metavar="CELL")
@verbose_option
@_with_admin
async def show(admin: CellsAdmin, word: str, verbose: bool) -> None:
    """Show one cell, by its name or uuid."""
    _print([await admin.shown(await admin.found(word))], verbose)


def _print(cells: list[CellShown], verbose: bool) -> None:
    table = Table("name", "uuid", "database", "bus", "new servers", "hosts", "servers", "state")
    for each in cells:
        urls = (each.database_connection, each.transport_url)
        if not verbose:
            urls = (masked(urls[0]), masked(urls[1]))
        table.add_row(
            escape(each.name),
            each.uuid,
            escape(urls[0]),
            escape(urls[1]),
            "no" if each.disabled else "yes",
            str(each.hosts),
            "?" if each.servers is None else str(each.servers),
            escape(each.state),
        )
    Console().print(table)


@cell.command()
@click.argument("word", metavar="CELL")
@click.option("--name")
@click.option("--database-connection")
@click.option("--transport-url")
@click.option("--disable/--enable", "disabled", default=None, help="Whether it takes new servers.")
@_with_admin
async def update(
    admin: CellsAdmin,
    word: str,
    name: str | None,
    database_connection: str | None,
    transport_url: str | None,
    disabled: bool | None,
) -> None:
    """Change a cell; controllers follow within a minute."""
    changed = await admin.update(
        word,
        name=name,
        database_connection=database_connection,
        transport_url=transport_url,
        disabled=disabled,
    )
    click.echo(changed.uuid)


@cell.command()
@click.argument("word", metavar="CELL")
@click.option("--force", is_flag=True, help="Also when it has hosts, which are forgotten.")
@_with_admin
async def delete(admin: CellsAdmin, word: str, force: bool) -> None:
    """Remove a cell that has no servers.  Its database is left as it is."""
    await admin.delete(word, force=force)
    click.echo(f"{word} is no cell any more.")


@cell.command("list-hosts")
@click.argument("word", metavar="[CELL]", required=False)
@_with_admin
async def list_hosts(admin: CellsAdmin, word: str | None) -> None:
    """List the hosts of all cells, or of one.  A host is in the cell on whose bus it registered."""
    table = Table("cell", "host", "node")
    for name, host, node in await admin.hosts(word):
        table.add_row(escape(name), escape(host), escape(node))
    Console().print(table)


@cell.command("map-instances")
@click.argument("word", metavar="CELL")
@click.option("--max-count", type=click.IntRange(min=1), help="At most so many now; repeat until it ends.")
@_with_admin
async def map_instances(admin: CellsAdmin, word: str, max_count: int | None) -> None:
    """Map servers of a cell's database that have no mapping yet (as after the top database was restored).

    Their quota is booked, so that they count.
    """
    mapped, left = await admin.map_instances(word, max_count)
    click.echo(f"{mapped} servers mapped, {left} left.")
    if left:
        raise SystemExit(1)


@cell.command()
@click.argument("server")
@click.option("--quiet", is_flag=True, help="Say nothing: the exit code tells.")
@_with_admin
async def verify(admin: CellsAdmin, server: str, quiet: bool) -> None:
    """Verify that a server is where its mapping says.

    Ends with 0 if it is, 1 if nobody knows it, 2 while it is not made yet, 3 if it is mapped and not there,
    4 if its cell does not answer.
    """
    verdict: Verdict = await admin.verify(server)
    if not quiet:
        click.echo(verdict.text)
    if verdict.code:
        raise SystemExit(verdict.code)
