"""The roll of hosts: agents' signs of life are gathered, written once a second, and echoed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kilonova.clock import SECOND, Clock
from kilonova.db import hosts
from kilonova.db.engine import Database, Tx
from kilonova.errors import KilonovaError
from kilonova.rpc.desk import Alive, Echo
from kilonova.rpc.nats_desk import ECHO, HostVoice

log = structlog.get_logger("kilonova.hosts")

GATHER = 1.0  # seconds
LATE = 3 * SECOND  # that writing them down may take; more is an outage of the database
MOST_LIVES = 4  # of one host's agents that are heard of at a time: they may be two, by mistake


class Roll:
    """``heard`` takes a sign of life.  Nothing is echoed that was not written down."""

    def __init__(self, db: Database, clock: Clock, voice: HostVoice) -> None:
        self.on_outage: Callable[[], None] = lambda: None  # signs of life were lost, or were late
        self._db = db
        self._clock = clock
        self._voice = voice
        self._signs: dict[str, dict[str, Alive]] = {}  # host -> session -> its last sign
        self._task: asyncio.Task[None] | None = None

    def heard(self, host: str, sign: Alive) -> None:
        lives = self._signs.setdefault(host, {})
        if sign.session in lives or len(lives) < MOST_LIVES:
            lives[sign.session] = sign

    def start(self) -> None:
        self._task = asyncio.create_task(self._gather(), name="roll of hosts")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _gather(self) -> None:
        while True:
            await self._clock.sleep(GATHER)
            signs, self._signs = self._signs, {}
            began = self._clock.now()
            if signs:
                try:
                    await self._write(signs)
                except KilonovaError as error:
                    log.error("signs of life are lost", hosts=len(signs), error=str(error))
                    self.on_outage()
                except Exception:
                    log.critical("signs of life are lost", hosts=len(signs), exc_info=True)
                    self.on_outage()
            if self._clock.now() - began > LATE:
                self.on_outage()

    async def _write(self, signs: dict[str, dict[str, Alive]]) -> None:
        now = self._clock.now()

        def write(tx: Tx) -> list[tuple[str, Alive, tuple[bool, bool]]]:
            return [
                (host, sign, _note(tx, host, sign, now))
                for host in sorted(signs)
                for sign in signs[host].values()
            ]

        for host, sign, (known, superseded) in await self._db.write(write):
            echo = Echo(sequence=sign.sequence, known=known, superseded=superseded, now=self._clock.now())
            self._voice.say(host, sign.session, ECHO, echo)


def _note(tx: Tx, host: str, sign: Alive, now: int) -> tuple[bool, bool]:
    """Whether the host is known, and whether another session serves as it."""
    if hosts.heartbeat(tx, host, now, sign.session):
        return True, False
    known = hosts.session(tx, host)
    return known is not None, known is not None and known[0] not in ("", sign.session)
