"""``kilonova up``: the whole cloud in this process."""

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
@click.option("--driver", type=click.Choice(["libvirt", "fake"]), default="libvirt", show_default=True)
@state_dir_option
@click.option("--port-offset", type=click.IntRange(0, 50000), default=0, help="Added to every port.")
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address of all services.")
@config_file_option
def up(driver: str, state_dir: Path, port_offset: int, listen: str, config_file: Path | None) -> None:
    """Run a whole compute cloud until SIGTERM or ^C."""
    settings = settings_of(state_dir, config_file, driver=driver, listen=listen, port_offset=port_offset)
    run(_run(settings), str(state_dir))


async def _run(settings: Settings) -> None:
    from kilonova.app import EmbeddedCloud

    cloud = await EmbeddedCloud.assemble(settings)

    async def start() -> None:
        cloud.listen()
        await cloud.start(progress)
        await cloud.serve()

    ready = (
        f"ready: {settings.url('compute')}/v2.1 "
        f"(export OS_CLIENT_CONFIG_FILE={settings.state_dir}/clouds.yaml OS_CLOUD=kilonova)"
    )
    await until_told(cloud, start, ready)
