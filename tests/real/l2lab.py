"""A host with a layer-2 agent on the real Open vSwitch, a network service in memory, and stand-in guests."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kilonova.clock import Clock, SystemClock
from kilonova.l2agent import flows
from kilonova.l2agent.agent import L2Agent
from kilonova.l2agent.cleanup import clean_up
from kilonova.l2agent.options import L2Options
from kilonova.l2agent.ovsdb import Ovsdb
from kilonova.l2agent.source import WiringSource
from kilonova.l2agent.switch import TABLES, Switch, SwitchPort
from kilonova.model.port import Vif
from kilonova.model.wiring import FilterRule
from kilonova.vif.ovs import OsVifPlugger
from tests.real.guests import Guest, eventually
from tests.real.memory_cloud import PING_IN, MemoryCloud

DATABASE = "unix:/run/openvswitch/db.sock"
BRIDGE = "br-l2"  # other clouds may have others beside it
PREFIX = "kl"
INSTANCE = "11111111-2222-4333-8444-555555555555"


async def serve_metadata(network_id: str, link: socket.socket) -> Callable[[], Awaitable[None]]:
    """A metadata service that says which network was asked, and by whom."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"\r\n" in await reader.read(1000):
            body = f"{network_id} {writer.get_extra_info('peername')[0]}".encode()
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        writer.close()

    server = await asyncio.start_server(answer, sock=link)

    async def close() -> None:
        server.close()

    return close


class Lab:
    """A cloud, an agent, a plugger and guests; ``agent`` can be stopped and made anew."""

    def __init__(self, directory: Path) -> None:
        self.cloud = MemoryCloud(BRIDGE)
        self.directory = directory
        self.plugger = OsVifPlugger(DATABASE, datapath_type="netdev")
        self.agent = self.new_agent()
        self.guests: list[Guest] = []
        self.ovsdb = Ovsdb(DATABASE, SystemClock())
        self.switch = Switch(self.ovsdb, BRIDGE, lambda names: None)

    def new_agent(
        self,
        source: WiringSource | None = None,
        *,
        interval: float = 60.0,
        serve: object = serve_metadata,
        clock: Clock | None = None,
    ) -> L2Agent:
        ovsdb = Ovsdb(DATABASE, SystemClock())
        clock = clock or SystemClock()
        source = source or self.cloud.source()
        return L2Agent(source, ovsdb, clock, self.options(interval), serve)  # type: ignore[arg-type]

    def options(self, interval: float = 60.0) -> L2Options:
        return L2Options(
            host="here",
            directory=self.directory,
            bridge=BRIDGE,
            prefix=PREFIX,
            compare_interval=interval,
        )

    async def open(self) -> None:
        await self.agent.start()
        await self.ovsdb.open(TABLES, self.switch)

    async def restart_agent(self, **more: Any) -> None:
        await self.agent.stop()
        self.agent = self.new_agent(**more)
        await self.agent.start()

    async def plug(self, vif: Vif, address: str | None = None) -> Guest:
        """Plug a port and give it a guest, wired or not."""
        await self.plugger.plug(vif, INSTANCE, "i")
        guest = Guest(vif, address)
        self.guests.append(guest)
        await guest.open()
        return guest

    async def boot(self, network: str, address: str, *rules: FilterRule, **more: object) -> Guest:
        """A guest on a wired port, with its address set."""
        vif = self.cloud.port(network, address, rules or (PING_IN,), **more)
        guest = await self.plug(vif, address)
        await self.cloud.up(vif)
        return guest

    async def unplug(self, guest: Guest) -> None:
        self.guests.remove(guest)
        await guest.close()
        await self.plugger.unplug(guest.vif, INSTANCE, "i")

    def port(self, thing: Guest | Vif) -> SwitchPort:
        """What the switch has of a guest's port now."""
        return self.switch.ports()[(thing.vif if isinstance(thing, Guest) else thing).devname]

    def flows_of(self, guest: Guest) -> list[str]:
        """The flows that are in for a guest's port."""
        zone = self.port(guest).zone
        return dump(flows.port_cookie(zone)) if zone is not None else []

    def dnsmasqs(self) -> list[int]:
        """The processes that are DHCP servers of ours."""
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if re.match(f".*/dnsmasq\0--conf-file={re.escape(str(self.directory))}/", read(path))
        ]

    async def close(self) -> None:
        """The end of every test is a test: when the guests have gone, nothing of a network is left."""
        try:
            for guest in list(self.guests):
                await self.unplug(guest)
            await eventually(lambda: namespaces() == [])
            await eventually(lambda: set(self.switch.ports()) == {BRIDGE})
            await eventually(lambda: len(dump()) == len(flows.base_flows()))
            assert self.dnsmasqs() == []
        except BaseException:
            await self.agent.stop()
            await clean_up(DATABASE, self.options(), SystemClock())  # the next test is not to blame
            raise
        finally:
            await self.agent.stop()
            await self.plugger.close()
            await self.ovsdb.close()


# ---- what the host has ----


def dump(cookie: int | None = None) -> list[str]:
    """The flows of the bridge that are in, as ovs-ofctl prints them; those of one cookie or all."""
    which = [] if cookie is None else [f"cookie={cookie:#x}/-1"]
    command = ["ovs-ofctl", "-O", "OpenFlow14", "dump-flows", BRIDGE, *which, "--no-stats"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.strip() for line in done.stdout.splitlines() if "actions=" in line]


def settle() -> None:
    """Return when the switch has forgotten what it decided before its flows changed."""
    subprocess.run(["ovs-appctl", "revalidator/wait"], check=True, capture_output=True)


def namespaces() -> list[str]:
    """Those of networks here, of guests, and others whose names look like ours."""
    done = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
    names = [line.split()[0] for line in done.stdout.splitlines()]
    return [name for name in names if name.startswith((f"{PREFIX}-", "g-"))]


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""


# ---- the switch's daemons ----


def daemon_pid(name: str) -> int:
    """The process of that name; there is one in the sandbox, whoever started it."""
    found = [path for path in Path("/proc").glob("[0-9]*/comm") if read(path) == f"{name}\n"]
    (pid,) = [int(path.parent.name) for path in found if read(path.parent / "cmdline")]
    return pid


def kill_daemon_at_once(name: str) -> None:
    """End one of the switch's daemons without warning, and let nothing of ours run until it has."""
    handle = os.pidfd_open(daemon_pid(name))
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    # Readable when the last of its threads has ended and let go of its sockets and its pid file.
    ready, _, _ = select.select([handle], [], [], 60)
    os.close(handle)
    assert ready, f"{name} does not end"


async def kill_daemon(name: str) -> None:
    await asyncio.to_thread(kill_daemon_at_once, name)


def start_vswitchd() -> None:
    _start("ovs-vswitchd", "unix:/run/openvswitch/db.sock")


def start_database() -> None:
    _start("ovsdb-server", "/etc/openvswitch/conf.db", "--remote=punix:/run/openvswitch/db.sock")


def _start(*command: str) -> None:
    options = ["--pidfile", "--log-file", "--detach", "--no-chdir", "-vconsole:off"]
    subprocess.run([*command, *options], check=True)
