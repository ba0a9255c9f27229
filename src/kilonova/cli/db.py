"""``kilonova db``: the database of a cloud of many hosts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kilonova.cli.running import config_file_option, run, settings_of, state_dir_option

if TYPE_CHECKING:
    from kilonova.settings import Settings


@click.group()
def db() -> None:
    """Make and upgrade the PostgreSQL database of controllers."""


@db.command()
@state_dir_option
@config_file_option
def upgrade(state_dir: Path, config_file: Path | None) -> None:
    """Bring the database to this release, and make accounts, flavors and a network in a new one.

    May be repeated.  The passwords of a new cloud's users are in STATE_DIR/passwords.json, and
    STATE_DIR/clouds.yaml has them for the openstack client.
    """
    run(_upgrade(settings_of(state_dir, config_file)), str(state_dir))


async def _upgrade(settings: Settings) -> None:
    from kilonova.clock import SystemClock
    from kilonova.control_plane import ControlPlane
    from kilonova.controller import open_database, places_of
    from kilonova.db.schema import bring_up, revision
    from kilonova.rpc.local import LocalHosts
    from kilonova.state_dir import StateDir

    state = StateDir.open(settings.state_dir)
    database = open_database(settings)
    plane = ControlPlane.compose(
        settings, places_of(settings, state), SystemClock(), database, LocalHosts(), "db-upgrade"
    )
    try:
        before = await revision(database)
        await bring_up(database)
        passwords = state.passwords()
        await plane.first_things(passwords["admin"], passwords["demo"])
        plane.write_clouds_yaml(passwords)
        click.echo(f"schema: {before} -> {await revision(database)}")
        click.echo(f"clouds.yaml: {plane.places.clouds_yaml}")
    finally:
        await plane.close()
        state.close()


@db.command()
@config_file_option
def version(config_file: Path | None) -> None:
    """Print the schema that the database has, and the one that this release needs."""
    from oslo_config import cfg

    from kilonova.settings import Settings, read_options

    try:
        options = read_options(config_file)
    except cfg.Error as error:
        raise click.ClickException(f"{config_file}: {error}") from error
    asyncio.run(_version(Settings(state_dir=Path("/nonexistent"), options=options)))


async def _version(settings: Settings) -> None:
    from kilonova.controller import open_database
    from kilonova.db.schema import REVISION, revision
    from kilonova.errors import KilonovaError

    try:
        database = open_database(settings)
        try:
            click.echo(f"database {await revision(database)}, release {REVISION}")
        finally:
            await database.close()
    except KilonovaError as error:
        raise click.ClickException(str(error)) from error
