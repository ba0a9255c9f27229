"""Hosts of `kilonova.testing.lab` with a layer-2 agent and stand-in guests each, and one network service.

The service, on a database of its own, is in the test's process.  On each host runs this file as a program:
an agent, a plugger and guests.  What a test does there are functions of its own, sent by name:
``await host.run(work, ...)`` is ``await work(lab, ...)`` on that host.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from kilonova.db import hosts as db_hosts
from kilonova.db.engine import Database
from kilonova.l2agent.options import L2Options
from kilonova.model.host import HostReport
from kilonova.model.port import Vif
from kilonova.model.wiring import NetworkDetails, PortDetails
from kilonova.testing.lab.daemon import HostDaemon
from kilonova.testing.lab.host import Host
from tests.real.guests import Guest, eventually
from tests.real.l2lab import BRIDGE, INSTANCE, Lab
from tests.unit.network.conftest import Cloud

ROOT = Path(__file__).parents[2]
Answer = Callable[[Any], Awaitable[Any]]


class Line:
    """Questions and answers over a stream, in both directions at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.ended = asyncio.create_task(self._read())

    async def ask(self, question: Any) -> Any:
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self._write("question", number, question)
        return await self._asked[number]

    def _write(self, kind: str, number: int, content: Any) -> None:
        text = pickle.dumps((kind, number, content))
        self._writer.write(len(text).to_bytes(4, "big") + text)

    async def _read(self) -> None:
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(4), "big")
                kind, number, content = pickle.loads(await self._reader.readexactly(length))
                if kind == "question":
                    task = asyncio.create_task(self._reply(number, content))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                elif (asked := self._asked.pop(number)).cancelled():
                    pass  # as when an agent is stopped in the middle of a question
                elif kind == "answer":
                    asked.set_result(content)
                else:
                    asked.set_exception(content)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            for asked in self._asked.values():
                if not asked.cancelled():
                    asked.set_exception(ConnectionError(f"the other side has gone: {error}"))
            self._asked.clear()

    async def _reply(self, number: int, question: Any) -> None:
        try:
            self._write("answer", number, await self._answer(question))
        except Exception as error:  # noqa: BLE001 - it is the asker's
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:  # noqa: BLE001 - some errors cannot travel
                error = AssertionError(f"{type(error).__name__}: {error}")
            self._write("failure", number, error)

    def close(self) -> None:
        self._writer.close()


# ---- on the host ----


class FarSource:
    """A WiringSource at the other end of the line."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self._changed: list[Callable[[str, str], None]] = []

    async def _ask(self, verb: str, *arguments: str) -> Any:
        assert self.line is not None
        return await self.line.ask((verb, *arguments))

    async def port(self, port_id: str, host: str) -> PortDetails | None:
        found: PortDetails | None = await self._ask("port", port_id, host)
        return found

    async def network(self, network_id: str) -> NetworkDetails | None:
        found: NetworkDetails | None = await self._ask("network", network_id)
        return found

    async def tell_peers(self, network_id: str, host: str) -> None:
        await self._ask("tell_peers", network_id, host)

    async def port_up(self, port_id: str, host: str) -> None:
        await self._ask("port_up", port_id, host)

    async def port_down(self, port_id: str, host: str) -> None:
        await self._ask("port_down", port_id, host)

    def subscribe(self, changed: Callable[[str, str], None]) -> Callable[[], None]:
        self._changed.append(changed)
        return lambda: self._changed.remove(changed)

    def tell(self, kind: str, thing: str) -> None:
        for changed in self._changed:
            changed(kind, thing)


class FarLab(Lab):
    """``kept`` is for what a test's functions have opened and will want again."""

    def __init__(self, directory: Path, host: str, local_ip: str) -> None:
        self.host = host
        self.local_ip = local_ip
        self.source = FarSource()
        self.kept: dict[str, Any] = {}
        super().__init__(directory)

    def options(self, interval: float = 60.0) -> L2Options:
        return msgspec.structs.replace(super().options(interval), host=self.host, local_ip=self.local_ip)

    def new_agent(self, source: Any = None, **more: Any) -> Any:
        return super().new_agent(source or self.source, **more)

    def guest(self, port_id: str) -> Guest:
        return next(guest for guest in self.guests if guest.vif.port_id == port_id)


async def _serve(path: str, name: str, local_ip: str, directory: str) -> None:
    lab = FarLab(Path(directory), name, local_ip)

    async def answer(question: Any) -> Any:
        work, *arguments = question
        return await work(lab, *arguments)

    line = Line(*await asyncio.open_unix_connection(path, limit=1 << 24), answer)
    lab.source.line = line
    await line.ask(("hello", name))
    await lab.open()
    await line.ask(("ready", name))
    await line.ended


# ---- what is done there ----


async def close(lab: FarLab) -> None:
    """See Lab.close."""
    await lab.close()


async def tell(lab: FarLab, kind: str, thing: str) -> None:
    lab.source.tell(kind, thing)


async def plug(lab: FarLab, vif: Vif) -> None:
    await lab.plugger.plug(vif, INSTANCE, "i")


async def unplug(lab: FarLab, vif: Vif) -> None:
    await lab.plugger.unplug(vif, INSTANCE, "i")


async def begin(lab: FarLab, vif: Vif, address: str) -> None:
    """Let a guest run on a port that is plugged."""
    guest = Guest(vif, address)
    lab.guests.append(guest)
    await guest.open()


async def end(lab: FarLab, vif: Vif) -> None:
    """The guest does not run any more; its port is still plugged."""
    guest = lab.guest(vif.port_id)
    lab.guests.remove(guest)
    if (wire := lab.kept.pop(f"wire {vif.port_id}", None)) is not None:
        await wire[0].__aexit__(None, None, None)
    await guest.close()


async def pings(lab: FarLab, vif: Vif, address: str, wait: float, size: int) -> bool:
    return await lab.guest(vif.port_id).pings(address, wait, size)


async def connects(lab: FarLab, vif: Vif, address: str, port: int, wait: float) -> bool:
    return await lab.guest(vif.port_id).connects(address, port, wait)


async def restart_agent(lab: FarLab) -> None:
    await lab.restart_agent()


async def stop_agent(lab: FarLab) -> None:
    await lab.agent.stop()


async def start_agent(lab: FarLab) -> None:
    lab.agent = lab.new_agent()
    await lab.agent.start()


async def tunnels(lab: FarLab) -> dict[str, list[int]]:
    """Where the host has tunnels to, and the VLANs that they carry."""
    ports = [port for port in lab.switch.ports().values() if port.type == "vxlan"]
    return {port.options["remote_ip"]: sorted(port.trunks) for port in ports}


# ---- in the test ----


class FarHost:
    """A host of the lab, with its agent."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.name = host.name
        self.local_ip = host.tunnel_address
        self.line: Line | None = None
        self.ready = asyncio.Event()
        self.process: HostDaemon | None = None
        self._directory = directory

    async def start(self, path: Path) -> None:
        program = (sys.executable, "-m", "tests.real.l2_hosts", str(path), self.name, self.local_ip)
        self.process = self.host.spawn(
            "l2-agent", "env", f"PYTHONPATH={ROOT}", *program, str(self._directory / self.name)
        )
        await self.process.start()
        try:
            async with asyncio.timeout(60):
                await self.ready.wait()
        except TimeoutError:
            raise AssertionError(self.process.log.read_text()[-3000:]) from None

    async def run(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        assert self.line is not None
        async with asyncio.timeout(120):
            return await self.line.ask((work, *arguments))

    async def tunnels(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = await self.run(tunnels)
        return found


class FarGuest:
    """A server's guest with its one port; ``at`` is where it runs."""

    def __init__(self, instance: str, vif: Vif, at: FarHost) -> None:
        self.instance = instance
        self.vif = vif
        self.at = at
        self.address = vif.fixed_ips[0].address

    async def run(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        return await self.at.run(work, self.vif, *arguments)

    async def pings(self, other: FarGuest | str, wait: float = 30.0, size: int = 8) -> bool:
        address = other if isinstance(other, str) else other.address
        return bool(await self.run(pings, address, wait, size))

    async def connects(self, other: FarGuest, port: int, wait: float = 30.0) -> bool:
        return bool(await self.run(connects, other.address, port, wait))


class Hosts:
    """The hosts with one network service.  ``down`` checks that nothing is left on any of them."""

    def __init__(self, database: Database, hosts: list[Host], directory: Path) -> None:
        self.database = database
        self.cloud = Cloud(database)
        self.cloud.service.options = msgspec.structs.replace(
            self.cloud.service.options, bridge=BRIDGE, tunnels=True
        )
        self.all = [FarHost(host, directory) for host in hosts]
        self.guests: list[FarGuest] = []
        self.news: list[tuple[str, str]] = []
        self._path = directory / "line"
        self._server: asyncio.Server | None = None

    async def up(self) -> None:
        for far in self.all:
            report = HostReport(
                host=far.name,
                compute_id=str(uuid.uuid4()),
                hypervisor_hostname=far.name,
                hypervisor_type="QEMU",
                hypervisor_version=1,
                host_ip=far.host.address,
                inventories={},
                details={"datapath_type": "netdev", "tunneling_ip": far.local_ip},
            )
            await self.database.write(lambda tx, report=report: db_hosts.upsert(tx, report, 0))  # type: ignore[misc]
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=1 << 24)
        self.cloud.service.subscribe(self._tell)
        for far in self.all:
            await far.start(self._path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: list[FarHost] = []

        async def answer(question: Any) -> Any:
            verb, *arguments = question
            if verb in ("hello", "ready"):
                far = next(each for each in self.all if each.name == arguments[0])
                if verb == "hello":
                    far.line = line
                    mine.append(far)
                else:
                    far.ready.set()
                return None
            if verb == "network":
                arguments.append(mine[0].name)
            return await getattr(self.cloud.service, verb)(*arguments)

        line = Line(reader, writer, answer)

    def _tell(self, kind: str, thing: str) -> None:
        self.news.append((kind, thing))
        for far in self.all:
            if far.line is not None and far.ready.is_set():
                asyncio.get_running_loop().create_task(far.run(tell, kind, thing))

    async def boot(self, network: str, at: FarHost, project: str = "alpha", **more: Any) -> FarGuest:
        """A guest on a wired port."""
        instance = str(uuid.uuid4())
        (vif,) = await self.cloud.boot(instance, network, host=at.name, project=project, **more)
        guest = FarGuest(instance, vif, at)
        await at.run(plug, vif)
        await at.run(begin, vif, guest.address)
        self.guests.append(guest)
        await eventually(lambda: self.heard(vif))
        return guest

    def heard(self, vif: Vif) -> bool:
        return ("network-vif-plugged", vif.port_id) in [(each[1], each[2]) for each in self.cloud.events]

    async def remove(self, guest: FarGuest) -> None:
        """As the deletion of a server does it."""
        self.guests.remove(guest)
        await guest.run(end)
        await guest.run(unplug)
        await self.cloud.service.deallocate(guest.instance)

    async def down(self) -> None:
        try:
            for guest in list(self.guests):
                await self.remove(guest)
            for far in self.all:
                try:
                    await far.run(close)
                except (TimeoutError, AssertionError) as error:
                    assert far.process is not None
                    left = far.process.log.read_text()[-3000:]
                    raise AssertionError(f"{far.name} is not as it was: {error!r}: {left}") from error
        finally:
            for far in self.all:
                if far.line is not None:
                    far.line.close()
                if far.process is not None:
                    await far.process.kill()
            if self._server is not None:
                self._server.close()
            await self.cloud.service.close()


if __name__ == "__main__":
    from tests.real import l2_hosts  # not __main__: functions travel by the name of their module

    asyncio.run(l2_hosts._serve(*sys.argv[1:]))
