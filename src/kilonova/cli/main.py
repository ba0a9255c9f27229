"""The ``kilonova`` command."""

from __future__ import annotations

from typing import ClassVar

import click

from kilonova import __version__


class _Lazy(click.Group):
    """Commands are imported when they are used: ``up`` must be quick."""

    commands_by_name: ClassVar = {
        "up": "kilonova.cli.up:up",
        "controller": "kilonova.cli.controller:controller",
        "agent": "kilonova.cli.agent:agent",
        "simulate": "kilonova.cli.simulate:simulate",
        "db": "kilonova.cli.db:db",
        "demo-fleet": "kilonova.cli.demo_fleet:demo_fleet",
        "demo-two-hosts": "kilonova.cli.demo_two_hosts:demo_two_hosts",
        "demo": "kilonova.cli.demo:demo",
        "host": "kilonova.cli.host:host",
        "cell": "kilonova.cli.cell:cell",
        "explain": "kilonova.cli.explain:explain",
        "doctor": "kilonova.cli.doctor:doctor",
        "operation": "kilonova.cli.operation:operation",
        "states": "kilonova.cli.states:states",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = self.commands_by_name.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        found = getattr(__import__(module, fromlist=[name]), name)
        assert isinstance(found, click.Command)
        return found


@click.command(cls=_Lazy)
@click.version_option(__version__)
def main() -> None:
    """Kilonova: a compute cloud in one process."""
