"""Telling hosts which of their ports and networks have changed."""

from __future__ import annotations

import asyncio

import structlog

from kilonova.clock import Clock
from kilonova.db import hosts, network_ports
from kilonova.db.engine import Database, Tx
from kilonova.rpc.nats_desk import CHANGED, HostVoice

log = structlog.get_logger("kilonova.hosts")

GATHER = 0.02  # seconds in which changes become one look at whom they concern
MOST = 1000  # news in one message

News = tuple[str, str]
"""What has changed ("port" or "network") and its id."""


class WiringNews:
    """``changed`` takes what the network service says.  What is lost, agents find by comparing."""

    def __init__(self, db: Database, clock: Clock, voice: HostVoice) -> None:
        self._db = db
        self._clock = clock
        self._voice = voice
        self._changed: set[News] = set()
        self._task: asyncio.Task[None] | None = None

    def changed(self, kind: str, thing: str) -> None:
        self._changed.add((kind, thing))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell(), name="wiring news")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _tell(self) -> None:
        while self._changed:
            await self._clock.sleep(GATHER)
            changed, self._changed = sorted(self._changed), set()
            try:
                concerned = await self._db.read(lambda tx, all_=changed: _concerned(tx, all_))  # type: ignore[misc]
                for (host, session), news in concerned.items():
                    for first in range(0, len(news), MOST):
                        self._voice.say(host, session, CHANGED, tuple(news[first : first + MOST]))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is late and not lost
                log.error("hosts are not told of changes", changes=len(changed), error=repr(error))


def _concerned(tx: Tx, changed: list[News]) -> dict[tuple[str, str], list[News]]:
    """Host and session of its agent -> what it should look at."""
    ports = network_ports.hosts_of_ports(tx, [thing for kind, thing in changed if kind == "port"])
    sessions: dict[str, str] = {}
    result: dict[tuple[str, str], list[News]] = {}
    for kind, thing in changed:
        of_port = ports.get(thing, set())
        found = of_port if kind == "port" else network_ports.hosts_of_network(tx, thing)
        for host in sorted(found):
            if host not in sessions:
                known = hosts.session(tx, host)
                sessions[host] = known[0] if known else ""
            if sessions[host]:
                result.setdefault((host, sessions[host]), []).append((kind, thing))
    return result
