"""A controller and agents, composed as in their processes, in this one: on a real PostgreSQL and a real
nats-server, whose users are those of `kilonova host add`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kilonova.agent_process import AgentProcess
from kilonova.cli.main import main
from kilonova.clock import Clock, SystemClock
from kilonova.controller import Controller
from kilonova.db import hosts
from kilonova.model.host import Host
from kilonova.testing.bus import NatsServer, when_so
from kilonova.testing.embedded import settings_for
from tests.conftest import opened

PREFIX = "kn"


class House:
    """``controller`` serves; ``agent`` starts one of a host."""

    def __init__(self, bus: NatsServer, directory: Path, conninfo: str) -> None:
        self.bus, self.directory, self.conninfo = bus, directory, conninfo
        self.controller: Controller
        self.agents: list[AgentProcess] = []
        self._conf = directory / "controller.conf"
        self._conf.write_text(
            f"[nats]\nservers = {bus.url}\nsubject_prefix = {PREFIX}\nusers_file = {directory}/users.conf\n"
        )

    def add(self, name: str, *more: str) -> None:
        """Let a host or a controller onto the bus."""
        arguments = ["host", "add", name, "--out", str(self.directory / name), *more]
        done = CliRunner().invoke(main, [*arguments, "--config-file", str(self._conf)])
        assert done.exit_code == 0, done.output

    def settings(self, name: str, state: str, kind: str, **options: dict[str, object]) -> Any:
        nats: dict[str, object] = {
            "servers": [self.bus.url],
            "subject_prefix": PREFIX,
            "nkey_seed_file": str(self.directory / name / f"{kind}.nk"),
        }
        return settings_for(self.directory / state, nats=nats, **options)

    async def open(self) -> None:
        self.controller = await Controller.assemble(
            self.settings("ctl", "ctl-state", "controller", database={"connection": self.conninfo})
        )
        await self.controller.first_things("secret", "secret")
        await self.controller.start()

    def assemble(self, host: str, state: str = "", clock: Clock | None = None) -> AgentProcess:
        """An agent that has not started; its hands on a fake hypervisor are in its state directory."""
        default: dict[str, object] = {"host": host, "report_interval": 1}
        settings = self.settings(host, state or f"{host}-state", "agent", DEFAULT=default)
        made = AgentProcess.assemble(settings, clock)
        self.agents.append(made)
        return made

    async def agent(self, host: str, state: str = "", clock: Clock | None = None) -> AgentProcess:
        made = self.assemble(host, state, clock)
        await made.start()
        return made

    async def stop(self, agent: AgentProcess) -> None:
        self.agents.remove(agent)
        await agent.stop()

    async def host(self, name: str) -> Host | None:
        return await self.controller.db.read(lambda tx: hosts.show(tx, name))

    async def served_by(self, agent: AgentProcess) -> None:
        """Come back when the controllers speak to this life of an agent."""

        async def known() -> bool:
            found = await self.host(agent.host)
            return found is not None and found.session == agent.session

        await when_so(known)

    async def close(self) -> None:
        for each in self.agents:
            await each.stop()
        await self.controller.stop()


@contextlib.asynccontextmanager
async def house_of(request: pytest.FixtureRequest, bus: NatsServer, directory: Path) -> AsyncIterator[House]:
    """With one controller, and the hosts h1 and h2 let in."""
    async with opened(request, "postgresql", directory, SystemClock(), "house"):
        made = House(bus, directory, f"{request.getfixturevalue('postgresql_server')} dbname=house")
        made.add("ctl", "--controller")
        for each in ("h1", "h2"):
            made.add(each)
        bus.configure("authorization { include ../users.conf }")
        bus.start()
        await made.open()
        try:
            yield made
        finally:
            await made.close()
