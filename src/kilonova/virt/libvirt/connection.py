"""The connection to libvirtd: calls in threads, events in the loop, and back by itself when it was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import structlog

from kilonova.clock import Clock
from kilonova.errors import Failed, TryAgain, Unreachable
from kilonova.virt.libvirt import binding
from kilonova.virt.libvirt.faults import translated, words
from kilonova.virt.libvirt.threads import Threads, finished

log = structlog.get_logger("kilonova.virt")

T = TypeVar("T")

THREADS = 8  # more gained nothing when 20 guests were started at once
KEEPALIVE = (5, 3)  # seconds between questions, and how many may go unanswered
OPEN_TIMEOUT = 15.0  # seconds; a libvirtd that hangs accepts and says nothing
LONGEST_PAUSE = 5.0


class Listener(Protocol):
    """Who hears of a host's guests.  Called in the event loop."""

    def lifecycle(self, uuid: str, event: int, detail: int) -> None: ...

    def rebooted(self, uuid: str) -> None: ...

    def lost(self) -> None:
        """libvirtd is gone; events are missed from here on."""

    async def back(self) -> None:
        """libvirtd is there again.  Raises TryAgain."""


class Connection:
    """One connection of one process to its hypervisor."""

    def __init__(self, uri: str, listener: Listener, clock: Clock) -> None:
        self._uri = uri
        self._listener = listener
        self._clock = clock
        self._threads = Threads("libvirt-call", THREADS)
        self._opener = Threads("libvirt-open", 1)
        self._link: Any = None
        self._opening: asyncio.Task[Any] | None = None
        self._return: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Raises Failed without the library, Unreachable without libvirtd."""
        self.libvirt = await asyncio.to_thread(binding.load)
        self._loop = asyncio.get_running_loop()
        await self._alive()

    async def close(self) -> None:
        self._closed = True
        for task in (self._return, self._opening):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        link, self._link = self._link, None
        if link is not None:
            job = self._opener.submit(lambda: self._let_go(link))
            await asyncio.wait({asyncio.wrap_future(job)}, timeout=5)
        self._threads.close()
        self._opener.close()

    async def call(self, work: Callable[[Any], T]) -> T:
        """What ``work`` gives, called with the connection in a thread.

        Raises what it raises, libvirt's errors as HostFault, and TryAgain when libvirtd is not there.  When
        the caller is cancelled, the call is over before that goes on.
        """
        link = await self._alive()
        try:
            return await finished(self._threads.submit(lambda: work(link)))
        except self.libvirt.libvirtError as error:
            raise translated(self.libvirt, error, alive=self._is_alive(link)) from error

    # ---- there and gone ----

    def _is_alive(self, link: Any) -> bool:
        try:
            return bool(link.isAlive())
        except self.libvirt.libvirtError:
            return False

    async def _alive(self) -> Any:
        """A connection that works, as far as we know.  Raises Unreachable."""
        if self._link is not None and self._is_alive(self._link):
            return self._link
        if self._closed:
            raise TryAgain("The libvirt driver is closed.")
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open_link(), name="libvirt-open")
        return await asyncio.shield(self._opening)

    async def _open_link(self) -> Any:
        job = self._opener.submit(self._connect)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                link = await asyncio.shield(asyncio.wrap_future(job))
        except (TimeoutError, asyncio.CancelledError) as error:
            if not job.cancel():  # what comes late is not wanted
                job.add_done_callback(self._drop)
            if isinstance(error, TimeoutError):
                raise Unreachable(
                    f"libvirtd at {self._uri} accepts no connection within {OPEN_TIMEOUT:g} seconds."
                ) from None
            raise
        except self.libvirt.libvirtError as error:
            raise Unreachable(
                f"libvirtd cannot be reached at {self._uri}: {words(error)}. Is it running?"
            ) from error
        again = self._link is not None or self._return is not None
        self._link = link
        if again:
            log.info("libvirtd is back", uri=self._uri)
            self._begin_return()
        return link

    def _connect(self) -> Any:
        """Open, and register for events before anybody can ask for a guest: nothing falls in between."""
        libvirt = self.libvirt
        link = libvirt.open(self._uri)
        link.setKeepAlive(*KEEPALIVE)
        link.registerCloseCallback(self._on_close, None)
        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot),
        ):
            link.domainEventRegisterAny(None, event, callback, None)
        return link

    def _drop(self, job: Any) -> None:
        if not job.cancelled() and job.exception() is None:
            self._let_go(job.result())

    def _let_go(self, link: Any) -> None:
        try:
            link.unregisterCloseCallback()
            link.close()
        except self.libvirt.libvirtError as error:
            log.info("the connection to libvirtd was gone already", error=words(error))

    def _lost(self, link: Any) -> None:
        self._opener.submit(lambda: self._let_go(link))
        if link is not self._link or self._closed:
            return
        log.warning("libvirtd is gone; guests run on", uri=self._uri)
        self._listener.lost()
        self._begin_return()

    def _begin_return(self) -> None:
        if self._return is None or self._return.done():
            self._return = asyncio.create_task(self._come_back(), name="libvirt-return")

    async def _come_back(self) -> None:
        """Connect again, however long it takes, and let the listener look at what it has missed."""
        pause = 0.1
        while True:
            try:
                await self._alive()
                await self._listener.back()
                return
            except TryAgain as error:
                log.info("libvirtd is not back yet", error=str(error))
            except Failed:
                log.exception("libvirtd is back, but not usable")
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    # ---- called by libvirt's event thread: hand over, and never call libvirt from here ----

    def _on_close(self, link: Any, reason: int, opaque: object) -> None:
        self._tell(lambda: self._lost(link))

    def _on_lifecycle(self, link: Any, domain: Any, event: int, detail: int, opaque: object) -> None:
        uuid = domain.UUIDString()
        self._tell(lambda: self._listener.lifecycle(uuid, event, detail))

    def _on_reboot(self, link: Any, domain: Any, opaque: object) -> None:
        uuid = domain.UUIDString()
        self._tell(lambda: self._listener.rebooted(uuid))

    def _tell(self, news: Callable[[], None]) -> None:
        if self._closed:
            return
        try:
            self._loop.call_soon_threadsafe(news)
        except RuntimeError:
            log.debug("the event loop has ended before libvirt's events")
