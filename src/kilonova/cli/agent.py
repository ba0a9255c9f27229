"""``kilonova agent``: the hands of one host."""

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


class Replaced(click.ClickException):
    """Another agent serves as the host: to start this one again would only shut that one out."""

    exit_code = 78  # deploy/kilonova-agent.service knows it


@click.command()
@click.option("--driver", type=click.Choice(["libvirt", "fake"]), default="libvirt", show_default=True)
@state_dir_option
@config_file_option
def agent(driver: str, state_dir: Path, config_file: Path | None) -> None:
    """Run the agent of this host until SIGTERM or ^C; its guests outlive it."""
    settings = settings_of(state_dir, config_file, driver=driver)
    run(_run(settings), str(state_dir))


async def _run(settings: Settings) -> None:
    try:
        from kilonova.agent_process import AgentProcess
    except ImportError as error:
        raise click.ClickException(
            f"An agent needs NATS' client: {error}. Install kilonova[agent]."
        ) from error
    process = AgentProcess.assemble(settings)
    ready = f"ready: host {process.host}, session {process.session}"
    await until_told(process, lambda: process.start(progress), ready, process.over)
    if process.why:
        raise Replaced(process.why)
