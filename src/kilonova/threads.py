"""Threads for what blocks: libvirt's calls, and work on files.

They are daemons, unlike those of concurrent.futures: a call that hangs does not hold up the end of the
process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple["concurrent.futures.Future[Any]", Callable[[], Any]]


class Threads:
    """``number`` threads, started when the first work comes."""

    def __init__(self, name: str, number: int) -> None:
        self._name = name
        self._number = number
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], T]) -> concurrent.futures.Future[T]:
        job: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._jobs.put((job, work))
        if len(self.threads) < self._number:
            name = f"{self._name}-{len(self.threads)}"
            thread = threading.Thread(target=_serve, args=(self._jobs,), name=name, daemon=True)
            self.threads.append(thread)
            thread.start()
        return job

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, done in one of the threads."""
        return await finished(self.submit(work))

    def close(self) -> None:
        """Let the threads end when they have done what was asked so far."""
        for _ in self.threads:
            self._jobs.put(None)
        self.threads = []


async def in_own_thread(name: str, work: Callable[[], T], stop: Callable[[], None] = lambda: None) -> T:
    """What ``work`` gives, from a thread of its own: it may take hours.  ``stop`` as in ``finished``."""
    threads = Threads(name, 1)
    job = threads.submit(work)
    threads.close()
    return await finished(job, stop)


async def finished(job: concurrent.futures.Future[T], stop: Callable[[], None] = lambda: None) -> T:
    """The result of a job.

    A caller that is cancelled does not leave work behind its back: what has not begun is dropped, what has
    begun is told to ``stop``, and awaited.
    """
    future = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        job.cancel()
        stop()
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # looked at: nobody else will
        raise


def _serve(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (entry := jobs.get()) is not None:
        job, work = entry
        if not job.set_running_or_notify_cancel():
            continue
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # it is the caller's
            job.set_exception(error)
        else:
            job.set_result(result)
        del job, work, entry
