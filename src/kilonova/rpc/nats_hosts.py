"""The agents of hosts, over NATS: what a controller speaks to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from kilonova.errors import Unreachable
from kilonova.model.port import Vif
from kilonova.model.volume import Attachment
from kilonova.rpc import subjects, versions, wire
from kilonova.rpc.calls import Caller, NobodyThere
from kilonova.rpc.host import HostAgent
from kilonova.rpc.messages import Command, Diagnostics, GuestSpec, Observed
from kilonova.rpc.mover import Mover
from kilonova.rpc.nats_mover import NatsMover

log = structlog.get_logger("kilonova.bus")

VERBS = {**wire.verbs_of(HostAgent), **wire.verbs_of(Mover)}
AT_ONCE = 128  # questions to one host; more wait for their turn

Sessions = Callable[[str], Awaitable[tuple[str, str] | None]]
"""Host -> the session of its agent and the version that it knows; None for an unknown host."""


class NatsHosts:
    """A HostDirectory.  ``sessions`` reads from the database who serves as a host."""

    def __init__(self, caller: Caller, prefix: str, sessions: Sessions, pin: str | None = None) -> None:
        self._caller = caller
        self._prefix = prefix
        self._sessions = sessions
        self._pin = pin
        self._known: dict[str, tuple[str, str]] = {}
        self._agents: dict[str, NatsAgent] = {}
        self._movers: dict[str, Mover] = {}

    def agent(self, host: str) -> HostAgent:
        found = self._agents.get(host)
        if found is None:
            found = self._agents[host] = NatsAgent(self, host)
        return found

    def mover(self, host: str) -> Mover:
        found = self._movers.get(host)
        if found is None:
            found = self._movers[host] = NatsMover(NatsAgent(self, host).ask)
        return found

    def forget(self, host: str) -> None:
        """Somebody else may serve as that host now."""
        self._known.pop(host, None)

    async def call(self, host: str, name: str, arguments: dict[str, Any]) -> Any:
        """Ask the agent of a host; once more if it turns out to be another one by now."""
        known = self._known.get(host)
        if known is not None:
            try:
                return await self._ask(host, known, name, arguments)
            except NobodyThere:
                self._known.pop(host, None)
        now = await self._sessions(host)
        if now is None or not now[0]:
            raise Unreachable(f"No agent has reported for the host '{host}'.")
        if now == known:
            raise NobodyThere(f"The agent of host '{host}' is not connected to the bus.")
        self._known[host] = now
        return await self._ask(host, now, name, arguments)

    async def _ask(self, host: str, known: tuple[str, str], name: str, arguments: dict[str, Any]) -> Any:
        session, version = known
        speak = versions.usable(version or versions.OLDEST, self._pin)
        if speak != versions.VERSION:
            _check(host, speak, name, arguments)
        subject = subjects.to_host(self._prefix, host, session, name)
        return await self._caller.call(subject, VERBS[name], arguments, f"The agent of host '{host}'")


def _check(host: str, version: str, name: str, arguments: dict[str, Any]) -> None:
    """Raises HostFault for what the agent would not understand, or would overlook."""
    versions.require(host, version, name)
    for value in arguments.values():
        if isinstance(value, msgspec.Struct):
            for field in msgspec.structs.fields(value):
                if getattr(value, field.name) != field.default:
                    versions.require(host, version, f"{type(value).__name__}.{field.name}")


class NatsAgent:
    """Implements rpc.host.HostAgent: every verb is a question on the bus."""

    def __init__(self, hosts: NatsHosts, host: str) -> None:
        self._hosts = hosts
        self._host = host
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def ask(self, verb: str, **arguments: Any) -> Any:
        async with self._turns:
            return await self._hosts.call(self._host, verb, arguments)

    async def prepare(self, command: Command, guest: GuestSpec) -> None:
        await self.ask("prepare", command=command, guest=guest)

    async def plug(self, command: Command, guest: GuestSpec) -> None:
        await self.ask("plug", command=command, guest=guest)

    async def start(self, command: Command, guest: GuestSpec, *, paused: bool) -> Observed:
        found: Observed = await self.ask("start", command=command, guest=guest, paused=paused)
        return found

    async def resume(self, command: Command, uuid: str) -> Observed:
        found: Observed = await self.ask("resume", command=command, uuid=uuid)
        return found

    async def shut_down(self, command: Command, uuid: str, *, timeout: float, clean: bool) -> Observed:
        found: Observed = await self.ask(
            "shut_down", command=command, uuid=uuid, timeout=timeout, clean=clean
        )
        return found

    async def reboot(self, command: Command, guest: GuestSpec, *, hard: bool, timeout: float) -> Observed:
        found: Observed = await self.ask("reboot", command=command, guest=guest, hard=hard, timeout=timeout)
        return found

    async def destroy(self, command: Command, uuid: str) -> None:
        await self.ask("destroy", command=command, uuid=uuid)

    async def unplug(self, command: Command, uuid: str, vifs: tuple[Vif, ...]) -> None:
        await self.ask("unplug", command=command, uuid=uuid, vifs=vifs)

    async def attach_interface(self, command: Command, guest: GuestSpec, vif: Vif) -> None:
        await self.ask("attach_interface", command=command, guest=guest, vif=vif)

    async def detach_interface(self, command: Command, guest: GuestSpec, vif: Vif) -> None:
        await self.ask("detach_interface", command=command, guest=guest, vif=vif)

    async def attach_volume(self, command: Command, guest: GuestSpec, attachment: Attachment) -> None:
        await self.ask("attach_volume", command=command, guest=guest, attachment=attachment)

    async def detach_volume(self, command: Command, guest: GuestSpec, attachment: Attachment) -> None:
        await self.ask("detach_volume", command=command, guest=guest, attachment=attachment)

    async def discard(self, command: Command, uuid: str) -> None:
        await self.ask("discard", command=command, uuid=uuid)

    async def snapshot(self, command: Command, uuid: str, image_id: str) -> None:
        await self.ask("snapshot", command=command, uuid=uuid, image_id=image_id)

    async def upload_snapshot(self, command: Command, uuid: str, image_id: str) -> None:
        await self.ask("upload_snapshot", command=command, uuid=uuid, image_id=image_id)

    async def drop_snapshot(self, command: Command, uuid: str, image_id: str) -> None:
        await self.ask("drop_snapshot", command=command, uuid=uuid, image_id=image_id)

    async def observe(self, uuid: str) -> Observed:
        found: Observed = await self.ask("observe", uuid=uuid)
        return found

    async def console_output(self, uuid: str) -> bytes:
        found: bytes = await self.ask("console_output", uuid=uuid)
        return found

    async def diagnostics(self, uuid: str) -> Diagnostics:
        found: Diagnostics = await self.ask("diagnostics", uuid=uuid)
        return found
