"""An agent on the bus: it reports, gives signs of life, and does what controllers ask of it.

The echo of a sign of life comes by the way of commands.  Who gives signs and hears no echo can speak but does
not hear, and takes a new connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from kilonova.clock import SECOND, Clock
from kilonova.errors import KilonovaError, Refused, TryAgain
from kilonova.model.host import HostReport
from kilonova.rpc import subjects, wire
from kilonova.rpc.answers import Answerer
from kilonova.rpc.desk import Alive, Desk, Echo, Welcome
from kilonova.rpc.host import HostAgent
from kilonova.rpc.local import Hands
from kilonova.rpc.mover import Mover
from kilonova.rpc.nats_desk import ALIVE, CHANGED, ECHO
from kilonova.rpc.nats_link import Link

log = structlog.get_logger("kilonova.agent")

DEAF = 3  # signs of life without an echo after which the connection is taken to be deaf
SKEW = 5 * SECOND  # how far the host's clock may be from the controllers'
PAUSE = 1.0  # seconds before a report that nobody took is made again; doubled up to
LONGEST_PAUSE = 10.0

_encode = msgspec.msgpack.Encoder().encode
_echo = msgspec.msgpack.Decoder(Echo)
_changed = msgspec.msgpack.Decoder(tuple[tuple[str, str], ...])

MOVES = wire.verbs_of(Mover)
VERBS = {**wire.verbs_of(HostAgent), **MOVES}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What serves as a host, in one life of its agent, whose name is ``session``.

    ``report`` gives what the host has now, ``changed`` hears of ports and networks, ``guard`` sees the
    parameters of each command first and may refuse it by raising.  ``superseded`` is called with the reason
    when this life must end: another one serves as this host.
    """

    host: str
    session: str
    agent: Hands
    report: Callable[[], Awaitable[HostReport]]
    changed: Callable[[str, str], None]
    guard: Callable[[Any], None]
    superseded: Callable[[str], None]


class AgentOnBus:
    """``open`` it to serve; signs of life are given every ``interval`` seconds."""

    def __init__(self, link: Link, clock: Clock, desk: Desk, serving: Serving, interval: float) -> None:
        self._link = link
        self._clock = clock
        self._desk = desk
        self._serving = serving
        self._host = serving.host
        self._interval = interval
        self._prefix = link.options.prefix
        self._answers = Answerer(link, clock, VERBS, self._hands, guard=serving.guard)
        self._sequence = 0
        self._echoed = 0
        self._skewed = False
        self._reporting = asyncio.Event()  # the controllers do not know us (any more)
        self._end: Callable[[], None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Report, and serve from then on.  Waits for a controller as long as it takes.

        Raises Conflict or Invalid when this host may not serve, with the reason.
        """
        self._answers.start()
        subject = subjects.to_host(self._prefix, self._host, self._serving.session, "*")
        self._end = await self._link.subscribe(subject, self._heard)
        await self._say_hello()
        self._tasks = [
            asyncio.create_task(self._beat(), name="signs of life"),
            asyncio.create_task(self._report_again(), name="reports"),
        ]

    async def close(self) -> None:
        """Hear no more commands; those that are being done end first, or are told to be asked for again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._end is not None:
            self._end()
            await self._link.settled()  # from now on the bus tells at once that nobody is there
        await self._answers.stop()

    def report_soon(self) -> None:
        """What the host has is not what it was."""
        self._reporting.set()

    # ---- inside ----

    def _hands(self, subject: str) -> HostAgent | Mover:
        agent = self._serving.agent
        return agent.mover if subject.rpartition(".")[2] in MOVES else agent

    def _heard(self, subject: str, data: bytes, reply: str) -> None:
        verb = subject.rpartition(".")[2]
        try:
            if verb == ECHO:
                self._take_echo(_echo.decode(data))
            elif verb == CHANGED:
                for kind, thing in _changed.decode(data):
                    self._serving.changed(kind, thing)
            else:
                self._answers.heard(subject, data, reply)
        except (msgspec.DecodeError, ValueError) as error:
            log.warning("a message is malformed", subject=subject, error=str(error))

    def _take_echo(self, echo: Echo) -> None:
        self._echoed = max(self._echoed, echo.sequence)
        if echo.superseded:
            self._serving.superseded(
                f"Another agent serves as the host '{self._host}' with the same compute id: two agents "
                "must not share a name or a state directory."
            )
        elif not echo.known:
            self._reporting.set()
        skew = self._clock.now() - echo.now
        if (abs(skew) > SKEW) != self._skewed:
            self._skewed = not self._skewed
            say = log.warning if self._skewed else log.info
            say("the clocks of this host and its controllers differ", seconds=skew / SECOND)

    async def _say_hello(self) -> Welcome:
        pause = PAUSE
        report = await self._serving.report()  # the first says that the agent starts: it has to be taken
        while True:
            try:
                welcome = await self._desk.hello(report, self._serving.session)
            except TryAgain as error:
                log.warning("no controller has taken the report", host=self._host, error=str(error))
                await self._clock.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            log.info("reported", host=self._host, session=self._serving.session, controller=welcome.version)
            return welcome

    async def _report_again(self) -> None:
        while True:
            await self._reporting.wait()
            self._reporting.clear()
            try:
                await self._say_hello()
            except Refused as error:
                log.critical("this host is refused", host=self._host, reason=str(error))
                await self._clock.sleep(LONGEST_PAUSE)
                self._reporting.set()
            except KilonovaError as error:
                log.error("the host could not be reported", host=self._host, error=str(error))
                await self._clock.sleep(LONGEST_PAUSE)
                self._reporting.set()

    async def _beat(self) -> None:
        self._echoed = self._sequence
        while True:
            self._sequence += 1
            sign = Alive(session=self._serving.session, sequence=self._sequence, now=self._clock.now())
            try:
                subject = subjects.from_host(self._prefix, self._host, ALIVE)
                await self._link.publish(subject, _encode(sign))
            except KilonovaError as error:
                log.info("no sign of life could be given", host=self._host, error=str(error))
                self._echoed = self._sequence
            await self._clock.sleep(self._interval)
            if self._sequence - self._echoed >= DEAF:
                log.warning("no echo is heard; the connection is made anew", host=self._host)
                self._echoed = self._sequence
                self._link.renew()
