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


class Worker:
    """``call`` from the event loop; ``close`` at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = asyncio.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] | None = None
        self._abandoned: set[threading.Thread] = set()
        self._thread: threading.Thread | None = None

    async def call(self, work: Callable[[], T], timeout: float, on_late: Callable[[], None]) -> T:
        """What ``work`` gives or raises.

        Raises TimeoutError when it takes longer than ``timeout`` seconds; ``on_late`` is called in the old
        thread if it then does return after all.  Raises TryAgain when too many calls hang already.
        """
        async with self._lock:
            jobs = self._open()
            loop = asyncio.get_running_loop()
            done: asyncio.Future[T] = loop.create_future()
            late = threading.Event()

            def job() -> None:
                outcome: tuple[Any, BaseException | None]
                try:
                    outcome = work(), None
                except BaseException as error:  # noqa: BLE001  # handed to the caller, whatever it is
                    outcome = None, error
                if late.is_set():
                    on_late()
                else:
                    loop.call_soon_threadsafe(_settle, done, *outcome)

            jobs.put(job)
            try:
                async with asyncio.timeout(timeout):
                    return await asyncio.shield(done)
            except (TimeoutError, asyncio.CancelledError):
                if not done.done():
                    late.set()
                    self._abandon()
                raise

    def _open(self) -> queue.SimpleQueue[Callable[[], None] | None]:
        if self._jobs is None:
            self._abandoned = {thread for thread in self._abandoned if thread.is_alive()}
            if len(self._abandoned) >= MOST_ABANDONED:
                raise TryAgain(
                    f"{len(self._abandoned)} calls of {self._name} hang; none is begun until one ends."
                )
            jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
            self._jobs = jobs
            self._thread = threading.Thread(target=_serve, args=(jobs,), name=self._name, daemon=True)
            self._thread.start()
        return self._jobs

    def _abandon(self) -> None:
        assert self._jobs is not None and self._thread is not None
        self._jobs.put(None)
        self._jobs = None
        self._abandoned.add(self._thread)

    async def close(self) -> None:
        async with self._lock:
            if self._jobs is not None and self._thread is not None:
                self._jobs.put(None)
                await asyncio.to_thread(self._thread.join, 5)
                self._jobs = None


def _serve(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)
