"""Answering over the bus: each question is a task, and a repeat joins the one that runs.

A command that is repeated (its asker has died, or the answer was lost) has the same id: it is not done twice
at a time.  Whoever waits hears a sign of life every two seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from kilonova.clock import SECOND, Clock, end_within
from kilonova.errors import Invalid, KilonovaError, TryAgain, Unreachable
from kilonova.rpc import wire
from kilonova.rpc.nats_link import Link

log = structlog.get_logger("kilonova.bus")

SIGN = 2.0  # seconds between signs of life
MOST = 256  # questions that are being answered at a time
DRAIN = 3.0  # seconds that they have to end at a shutdown


class _Job:
    __slots__ = ("began", "replies", "task")

    def __init__(self, task: asyncio.Task[bytes], began: int) -> None:
        self.task = task
        self.replies: set[str] = set()
        self.began = began


class Answerer:
    """Does what is asked of ``target``, whose verbs are those of a Protocol.

    ``taken`` is told of the subject of each question and gives the object to ask; ``guard`` sees the
    parameters.  Both may refuse by raising.  ``most`` questions are answered at a time, ``most_of_one`` of
    those whose subjects differ in the verb only.
    """

    def __init__(
        self,
        link: Link,
        clock: Clock,
        verbs: dict[str, wire.Verb],
        taken: Callable[[str], Any],
        *,
        guard: Callable[[Any], None] = lambda params: None,
        most: int = MOST,
        most_of_one: int | None = None,
    ) -> None:
        self._link = link
        self._clock = clock
        self._verbs = verbs
        self._taken = taken
        self._guard = guard
        self._most = most
        self._most_of_one = most_of_one or most
        self._asking: Counter[str] = Counter()
        self._jobs: dict[str, _Job] = {}
        self._numbers = iter(range(1, 1 << 62))
        self._sending: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._signs: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._signs = asyncio.create_task(self._give_signs(), name="bus signs of life")

    async def stop(self) -> None:
        """Take no more; let what runs end for a moment; who still waits then hears that it may ask again."""
        self._stopping = True
        await end_within(DRAIN, self._clock, [job.task for job in self._jobs.values()])
        if self._signs is not None:
            self._signs.cancel()
            await asyncio.gather(self._signs, return_exceptions=True)
        await asyncio.gather(*self._sending, return_exceptions=True)

    def heard(self, subject: str, data: bytes, reply: str) -> None:
        """A question has come; for `Link.subscribe`."""
        name = subject.rpartition(".")[2]
        try:
            verb = self._verbs.get(name)
            if verb is None:
                raise Invalid(f"There is no verb '{name}' in this release.")
            if self._stopping:
                raise TryAgain("It is being shut down.")
            target = self._taken(subject)
            params = verb.decode(data)
            self._guard(params)
            self._begin(verb, target, params, subject.rpartition(".")[0], reply)
        except KilonovaError as error:
            if not isinstance(error, TryAgain):
                log.warning("a message is refused", subject=subject, error=str(error))
            self._send({reply}, wire.fault(error))

    def _begin(self, verb: wire.Verb, target: Any, params: Any, whose: str, reply: str) -> None:
        command = getattr(params, "command", None)
        key = f"?{next(self._numbers)}" if command is None else command.id
        job = self._jobs.get(key)
        if job is None:
            if len(self._jobs) >= self._most or self._asking[whose] >= self._most_of_one:
                raise TryAgain(f"It is busy with {len(self._jobs)} other things.")
            work = getattr(target, verb.name)(**_arguments(verb, params))
            task = asyncio.create_task(self._do(verb, work), name=f"bus {verb.name}")
            job = self._jobs[key] = _Job(task, self._clock.now())
            self._asking[whose] += 1
            task.add_done_callback(lambda task: self._done(key, whose, task))
        else:
            self._send({reply}, wire.WORKING)
        job.replies.add(reply)

    async def _do(self, verb: wire.Verb, work: Awaitable[Any]) -> bytes:
        try:
            return wire.result(await work)
        except KilonovaError as error:
            return wire.fault(error)
        except asyncio.CancelledError:
            return wire.fault(TryAgain("It was interrupted."))
        except Exception as error:
            log.exception("a question was not answered", verb=verb.name)
            return wire.fault(TryAgain(f"Unexpected fault: {type(error).__name__}."))

    def _done(self, key: str, whose: str, task: asyncio.Task[bytes]) -> None:
        job = self._jobs.pop(key)
        self._asking[whose] -= 1
        if not self._asking[whose]:
            del self._asking[whose]
        answer = wire.fault(TryAgain("It was interrupted.")) if task.cancelled() else task.result()
        self._send(job.replies, answer)

    def _send(self, replies: set[str], data: bytes) -> None:
        for reply in replies:
            if reply:
                task = asyncio.create_task(self._publish(reply, data))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _publish(self, reply: str, data: bytes) -> None:
        try:
            await self._link.publish(reply, data)
        except Unreachable:
            log.info("an answer was lost with the bus; it will be asked for again")
        except KilonovaError as error:
            log.error("an answer cannot be sent", error=str(error))
            with contextlib.suppress(Unreachable):
                await self._link.publish(reply, wire.fault(error))

    async def _give_signs(self) -> None:
        while True:
            await self._clock.sleep(SIGN)
            old = self._clock.now() - int(SIGN / 2 * SECOND)
            for job in tuple(self._jobs.values()):
                if job.began <= old:
                    self._send(job.replies, wire.WORKING)


def _arguments(verb: wire.Verb, params: Any) -> dict[str, Any]:
    return {name: getattr(params, name) for name in verb.params.__struct_fields__}
