"""Asking over the bus: one inbox for all answers, and a watch on those who have gone silent.

A question is answered by a row of "working" and then a result or a fault.  Nobody is given up for taking
long, only for saying nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from typing import Any

import structlog

from kilonova.clock import SECOND, Clock
from kilonova.errors import Invalid, KilonovaError, Unreachable
from kilonova.rpc import wire
from kilonova.rpc.nats_link import Link

log = structlog.get_logger("kilonova.bus")

SILENCE = 8.0  # seconds without a word after which whoever was asked is taken to be unreachable
LOOK = 1.0
RENEW = (
    60.0  # seconds after which a command is sent once more, so that its answer stays welcome (credentials.py)
)


class NobodyThere(Unreachable):
    """The bus says that nobody listens there."""


class _Waiting:
    __slots__ = ("answer", "asked", "heard", "question", "whom")

    def __init__(self, whom: str, now: int, question: tuple[str, bytes, str] | None) -> None:
        self.answer: asyncio.Future[wire.Result | wire.Fault] = asyncio.get_running_loop().create_future()
        self.heard = self.asked = now
        self.whom = whom
        self.question = question  # what may be sent again: it joins what is done


class Caller:
    """Asks others over one link; ``open`` it first."""

    def __init__(self, link: Link, clock: Clock, silence: float = SILENCE) -> None:
        self._link = link
        self._clock = clock
        self._silence = int(silence * SECOND)
        self._waiting: dict[str, _Waiting] = {}
        self._numbers = iter(range(1, 1 << 62))
        self._me = ""
        self._inbox = ""
        self._watch: asyncio.Task[None] | None = None

    async def open(self, me: str, inboxes: str = "") -> None:
        """``me`` tells our answers from those to others behind the same inbox.

        ``inboxes`` (with a ``*``) are those of all that ``behind`` is used for.
        """
        self._me = me
        self._inbox = f"{inboxes or self._link.inbox}.{me}"
        await self._link.subscribe(f"{self._inbox}.*", self._heard)
        self._link.on_lost.append(self._lost)
        self._watch = asyncio.create_task(self._look(), name="bus calls")

    def behind(self, inbox: str) -> Caller:
        """The same caller, with another inbox for the answers: a simulation has one for each host."""
        other = copy.copy(self)
        other._inbox = f"{inbox}.{self._me}"
        return other

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self._lost()

    async def call(self, subject: str, verb: wire.Verb, arguments: dict[str, Any], whom: str) -> Any:
        """What the verb gives.  Raises what it raises, and Unreachable (NobodyThere if the bus says so)."""
        number = str(next(self._numbers))
        question = (subject, verb.encode(arguments), f"{self._inbox}.{number}")
        repeatable = question if "command" in arguments else None
        waiting = self._waiting[number] = _Waiting(whom, self._clock.now(), repeatable)
        try:
            await self._link.publish(*question)
            return wire.value_of(verb, await waiting.answer)
        finally:
            del self._waiting[number]

    def _heard(self, subject: str, data: bytes, _: str) -> None:
        waiting = self._waiting.get(subject.rpartition(".")[2])
        if waiting is None or waiting.answer.done():
            return  # whoever asked has gone
        if not data:
            waiting.answer.set_exception(NobodyThere(f"{waiting.whom} is not connected to the bus."))
            return
        try:
            answer = wire.answer(data)
        except Invalid as error:
            waiting.answer.set_exception(error)
            return
        if isinstance(answer, wire.Working):
            waiting.heard = self._clock.now()
        else:
            waiting.answer.set_result(answer)

    def _lost(self) -> None:
        for waiting in tuple(self._waiting.values()):
            _give_up(waiting, Unreachable(f"The bus was lost while {waiting.whom} was asked."))

    async def _look(self) -> None:
        while True:
            await self._clock.sleep(LOOK)
            now = self._clock.now()
            for waiting in tuple(self._waiting.values()):
                if now - waiting.heard > self._silence:
                    seconds = self._silence // SECOND
                    _give_up(waiting, Unreachable(f"{waiting.whom} has said nothing for {seconds} seconds."))
                elif waiting.question is not None and now - waiting.asked > RENEW * SECOND:
                    waiting.asked = now
                    with contextlib.suppress(Unreachable):  # then the waiting ends by itself
                        await self._link.publish(*waiting.question)


def _give_up(waiting: _Waiting, error: KilonovaError) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
