"""The controllers, over NATS: what an agent speaks to, and the ear that controllers have for agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from kilonova.clock import Clock
from kilonova.errors import Invalid, KilonovaError
from kilonova.model.host import HostReport
from kilonova.model.instance import Instance
from kilonova.model.wiring import NetworkDetails, PortDetails
from kilonova.rpc import subjects, versions, wire
from kilonova.rpc.answers import Answerer
from kilonova.rpc.calls import Caller
from kilonova.rpc.desk import Alive, Desk, DeskDirectory, Welcome
from kilonova.rpc.messages import Observed
from kilonova.rpc.nats_link import Link

log = structlog.get_logger("kilonova.bus")

VERBS = wire.verbs_of(Desk)
ALIVE = "alive"
ECHO = "echo"
CHANGED = "changed"
MOST = 1024  # questions of all agents that one controller answers at a time
MOST_OF_ONE = 256  # and of one agent: whatever it does, the others are answered

_encode = msgspec.msgpack.Encoder().encode
_alive = msgspec.msgpack.Decoder(Alive)


class NatsDesk:
    """A Desk of this host: every verb is a question to whichever controller hears it."""

    def __init__(self, caller: Caller, prefix: str, host: str) -> None:
        self._caller = caller
        self._prefix = prefix
        self._host = host

    async def _call(self, verb: str, **arguments: Any) -> Any:
        subject = subjects.from_host(self._prefix, self._host, verb)
        return await self._caller.call(subject, VERBS[verb], arguments, "The controller")

    async def hello(self, report: HostReport, session: str, *, again: bool = False) -> Welcome:
        told = msgspec.structs.replace(report, version=versions.VERSION)  # whoever has made it
        found: Welcome = await self._call("hello", report=told, session=session, again=again)
        return found

    async def observed(self, seen: tuple[Observed, ...], *, all_at: int = 0) -> None:
        await self._call("observed", seen=seen, all_at=all_at)

    async def port(self, port_id: str) -> PortDetails | None:
        found: PortDetails | None = await self._call("port", port_id=port_id)
        return found

    async def network(self, network_id: str) -> NetworkDetails | None:
        found: NetworkDetails | None = await self._call("network", network_id=network_id)
        return found

    async def tell_peers(self, network_id: str) -> None:
        await self._call("tell_peers", network_id=network_id)

    async def port_up(self, port_id: str) -> None:
        await self._call("port_up", port_id=port_id)

    async def port_down(self, port_id: str) -> None:
        await self._call("port_down", port_id=port_id)

    async def image(self, image_id: str, offset: int) -> bytes:
        found: bytes = await self._call("image", image_id=image_id, offset=offset)
        return found

    async def put_image(self, image_id: str, offset: int, data: bytes) -> int:
        found: int = await self._call("put_image", image_id=image_id, offset=offset, data=data)
        return found

    async def finish_image(self, image_id: str, size: int, sha512: str, disk_format: str) -> None:
        await self._call("finish_image", image_id=image_id, size=size, sha512=sha512, disk_format=disk_format)

    async def guest_at(self, network_id: str, address: str) -> Instance | None:
        found: Instance | None = await self._call("guest_at", network_id=network_id, address=address)
        return found

    async def keep_password(self, uuid: str, password: str) -> None:
        await self._call("keep_password", uuid=uuid, password=password)


class Ear:
    """Hears the agents for one controller.

    Answers their questions at the desk, and passes their signs of life on (``alive``, with host and sign).
    Who speaks is told by the subject, which the bus checks.
    """

    def __init__(
        self, link: Link, clock: Clock, prefix: str, desks: DeskDirectory, alive: Callable[[str, Alive], None]
    ) -> None:
        self._link = link
        self._prefix = prefix
        self._desks = desks
        self._alive = alive
        self._answers = Answerer(link, clock, VERBS, self._desk_of, most=MOST, most_of_one=MOST_OF_ONE)
        self._end: Callable[[], None] | None = None

    async def open(self) -> None:
        self._answers.start()
        self._end = await self._link.subscribe(
            subjects.from_anybody(self._prefix), self._heard, subjects.CONTROLLERS
        )

    async def close(self) -> None:
        """Hear no more; what is being answered ends first."""
        if self._end is not None:
            self._end()
        await self._answers.stop()

    def _heard(self, subject: str, data: bytes, reply: str) -> None:
        try:
            host = self._host_of(subject)
            if subject.rpartition(".")[2] != ALIVE:
                self._check_reply(host, reply)
                self._answers.heard(subject, data, reply)
                return
            sign = _alive.decode(data)
            subjects.checked_session(sign.session)
        except (KilonovaError, msgspec.DecodeError, ValueError) as error:
            log.warning("a message is refused", subject=subject, error=str(error))
            return
        self._alive(host, sign)

    def _check_reply(self, host: str, reply: str) -> None:
        """We may speak where the one who asks may not: an answer goes to its own inbox only.

        Raises Invalid.
        """
        if reply and not reply.startswith(f"{subjects.inbox(self._prefix, host)}."):
            raise Invalid(f"The host '{host}' wants an answer sent to '{reply}', which is not its own.")

    def _host_of(self, subject: str) -> str:
        parts = subject.removeprefix(f"{self._prefix}.").split(".")
        if len(parts) != 3:
            raise Invalid(f"'{subject}' is no subject of ours.")
        return subjects.name_of(parts[1])

    def _desk_of(self, subject: str) -> Desk:
        return self._desks.desk(self._host_of(subject))


class HostVoice:
    """One-way messages to the agents of hosts."""

    def __init__(self, link: Link, prefix: str) -> None:
        self._link = link
        self._prefix = prefix
        self._sending: set[asyncio.Task[None]] = set()

    def say(
        self, host: str, session: str, verb: str, message: msgspec.Struct | tuple[tuple[str, str], ...]
    ) -> None:
        """Say it, if there is a bus; what is lost is found by comparing."""
        subject = subjects.to_host(self._prefix, host, session, verb)
        task = asyncio.ensure_future(self._publish(subject, _encode(message)))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _publish(self, subject: str, data: bytes) -> None:
        try:
            await self._link.publish(subject, data)
        except KilonovaError as error:
            log.info("a message to a host is lost", subject=subject, error=str(error))
