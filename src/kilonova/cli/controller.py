"""``kilonova controller``: API, scheduler and journal of a cloud of many hosts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kilonova.cli.running import (
    config_file_option,
    progress,
    run,
    settings_of,
    state_dir_option,
    until_told,
)

if TYPE_CHECKING:
    from kilonova.settings import Settings


@click.command()
@state_dir_option
@click.option("--port-offset", type=click.IntRange(0, 50000), default=0, help="Added to every port.")
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address of all services.")
@config_file_option
def controller(state_dir: Path, port_offset: int, listen: str, config_file: Path | None) -> None:
    """Run one controller until SIGTERM or ^C: any number of them, all equal, serve a cloud."""
    settings = settings_of(state_dir, config_file, listen=listen, port_offset=port_offset)
    run(_run(settings), str(state_dir))


async def _run(settings: Settings) -> None:
    try:
        from kilonova.controller import Controller
    except ImportError as error:
        raise click.ClickException(
            f"A controller needs PostgreSQL's and NATS' clients: {error}. Install kilonova[fleet]."
        ) from error
    process = await Controller.assemble(settings)

    async def start() -> None:
        process.listen()
        await process.start(progress)
        await process.serve()

    await until_told(process, start, f"ready: {settings.url('compute')}/v2.1")
