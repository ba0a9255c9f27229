"""One thread for a library that blocks: calls one at a time, each with a limit of time.

A call that does not come back in time is abandoned together with its thread, and the next call gets a new
one; so one hung peer does not stop everything.  The thread is a daemon: it does not hold up the end of the
process either.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from kilonova.errors import TryAgain

T = TypeVar("T")

MOST_ABANDONED = 4
CLOSE = 5.0  # seconds that ``close`` waits for a call that is under way


class _Line:
    """A thread and its queue.

    It says itself when it has ended.  ``Thread.is_alive`` does not tell: eventlet, which os-vif imports,
    executes a second copy of ``threading``, and that takes the sign of its end from the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.ended = threading.Event()
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        finally:
            self.ended.set()

    def put(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def end(self) -> None:
        """It ends when the jobs that it has are done."""
        self._jobs.put(None)


class _Call:
    """Whether a call's outcome is still waited for; exactly one of the two sides decides."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decided = False

    def decide(self) -> bool:
        """True for whoever comes first: the outcome, or the end of the wait for it."""
        with self._lock:
            first, self._decided = not self._decided, True
            return first


class Worker:
    """``call`` from the event loop; ``close`` at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = asyncio.Lock()
        self._line: _Line | None = None
        self._abandoned: set[_Line] = set()

    async def call(self, work: Callable[[], T], timeout: float, on_late: Callable[[], None]) -> T:
        """What ``work`` gives or raises.

        Raises TimeoutError when it takes longer than ``timeout`` seconds; ``on_late`` is called in the old
        thread if it then does return after all.  Raises TryAgain when too many calls hang already.
        """
        async with self._lock:
            line = self._open()
            loop = asyncio.get_running_loop()
            done: asyncio.Future[T] = loop.create_future()
            call = _Call()

            def job() -> None:
                outcome: tuple[Any, BaseException | None]
                try:
                    outcome = work(), None
                except BaseException as error:  # noqa: BLE001  # handed to the caller, whatever it is
                    outcome = None, error
                if call.decide():
                    loop.call_soon_threadsafe(_settle, done, *outcome)
                else:
                    on_late()

            line.put(job)
            try:
                async with asyncio.timeout(timeout):
                    return await asyncio.shield(done)
            except (TimeoutError, asyncio.CancelledError) as error:
                if call.decide():
                    self._abandon(line)
                    raise
                if isinstance(error, TimeoutError):
                    return await done  # the work's own, or it ended at this very moment
                raise

    def _open(self) -> _Line:
        if self._line is None:
            self._abandoned = {line for line in self._abandoned if not line.ended.is_set()}
            if len(self._abandoned) >= MOST_ABANDONED:
                raise TryAgain(
                    f"{len(self._abandoned)} calls of {self._name} hang; none is begun until one ends."
                )
            self._line = _Line(self._name)
        return self._line

    def _abandon(self, line: _Line) -> None:
        line.end()
        self._abandoned.add(line)
        self._line = None

    async def close(self) -> None:
        """Wait for the call that is under way, but not for ever."""
        async with self._lock:
            if self._line is not None:
                line, self._line = self._line, None
                line.end()
                await asyncio.to_thread(line.ended.wait, CLOSE)


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)
