"""``kilonova host``: what an operator does to compute hosts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from kilonova.cli.credentials import add, list_, remove
from kilonova.cli.database import state_dir_option
from kilonova.cli.drain import drain
from kilonova.errors import KilonovaError


@click.group()
def host() -> None:
    """Compute hosts: who may use the bus, what is on this one, and emptying one."""


for command in (add, list_, remove, drain):
    host.add_command(command)


@host.command()
@state_dir_option
@click.option("--config-file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def cleanup(state_dir: Path, config_file: Path | None) -> None:
    """Take guests' ports, taps, network namespaces and DHCP servers off this host.

    For a host that is being left, or before the switch is stopped: the cloud must not run, and no guest
    should.  A server that is started later gets its ports again.  Neutron's neutron-ovs-cleanup and
    neutron-netns-cleanup do the same.
    """
    from kilonova.clock import SystemClock
    from kilonova.host_parts import l2_options
    from kilonova.l2agent.cleanup import clean_up
    from kilonova.settings import Settings, read_options
    from kilonova.state_dir import StateDir

    settings = Settings(state_dir=state_dir.absolute(), options=read_options(config_file))
    try:
        state = StateDir.open(settings.state_dir)  # keeps a cloud from starting meanwhile
        try:
            connection = settings.text("ovsdb_connection", "ovs")
            removed = asyncio.run(clean_up(connection, l2_options(settings, state), SystemClock()))
        finally:
            state.close()
    except KilonovaError as error:
        raise click.ClickException(str(error)) from error
    for each in removed:
        click.echo(f"removed {each}")
    click.echo(f"{len(removed)} things removed from this host.")
