"""The connection to libvirtd: calls in threads, events in the loop, and back by itself when it was lost."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import structlog

from kilonova.clock import Clock
from kilonova.errors import KilonovaError, TryAgain, Unreachable
from kilonova.threads import Threads, finished
from kilonova.virt.libvirt import binding
from kilonova.virt.libvirt.faults import translated, words

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

    def device_removed(self, uuid: str, alias: str, *, refused: bool) -> None:
        """A guest has let go of a device, or says that it will not."""

    def lost(self) -> None:
        """libvirtd is gone; events are missed from here on."""

    async def back(self) -> None:
        """libvirtd is there again.  Raises TryAgain."""


class _Link:
    """One virConnect, and what is registered with it."""

    def __init__(self, connect: Any, events: list[int]) -> None:
        self.connect = connect
        self._events = events

    def is_alive(self) -> bool:
        return bool(self.connect.isAlive())

    def let_go(self, libvirt: Any) -> None:
        """Registered callbacks hold the connection open: they go first."""
        try:
            for event in self._events:
                self.connect.domainEventDeregisterAny(event)
            self.connect.unregisterCloseCallback()
            self.connect.close()
        except libvirt.libvirtError as error:
            log.debug("the connection to libvirtd was gone already", error=words(error))


class Connection:
    """One connection of one process to its hypervisor."""

    def __init__(self, uri: str, listener: Listener, clock: Clock) -> None:
        self._uri = uri
        self._listener = listener
        self._clock = clock
        self._threads = Threads("libvirt-call", THREADS)
        self._opener = Threads("libvirt-open", 1)
        self._link: _Link | None = None
        self._opening: asyncio.Task[_Link] | None = None
        self._return: asyncio.Task[None] | None = None
        self._gone = False
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
            job = self._opener.submit(lambda: link.let_go(self.libvirt))
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
            return await finished(self._threads.submit(lambda: work(link.connect)))
        except self.libvirt.libvirtError as error:
            raise translated(self.libvirt, error, alive=link.is_alive()) from error

    async def submit(self, threads: Threads, work: Callable[[Any], T]) -> concurrent.futures.Future[T]:
        """Begin what may take hours, with the connection in one of the caller's own threads.

        It gives what ``work`` gives or raises, untranslated.  Raises Unreachable when libvirtd is not there.
        """
        link = await self._alive()
        return threads.submit(lambda: work(link.connect))

    # ---- there and gone ----

    async def _alive(self) -> _Link:
        """A connection that works, as far as we know.  Raises Unreachable."""
        if self._closed:
            raise TryAgain("The libvirt driver is closed.")
        if self._link is not None:
            if self._link.is_alive():
                return self._link
            self._lost()
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open_link(), name="libvirt-open")
            self._opening.add_done_callback(_look_at)
        return await asyncio.shield(self._opening)

    async def _open_link(self) -> _Link:
        job = self._opener.submit(self._connect)
        opened = asyncio.wrap_future(job)
        opened.add_done_callback(_look_at)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                link = await asyncio.shield(opened)
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
        old, self._link = self._link, link
        self._gone = False
        if old is not None:
            log.info("libvirtd is back", uri=self._uri)
            self._opener.submit(lambda: old.let_go(self.libvirt))
        return link

    def _connect(self) -> _Link:
        """Open, and register for events before anybody can ask for a guest: nothing falls in between."""
        libvirt = self.libvirt
        link = libvirt.open(self._uri)
        try:
            link.setKeepAlive(*KEEPALIVE)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # a driver without a daemon
                raise
        link.registerCloseCallback(self._on_close, None)
        events = [
            link.domainEventRegisterAny(None, event, callback, None)
            for event, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._on_device_removed),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, self._on_device_kept),
            )
        ]
        return _Link(link, events)

    def _drop(self, job: Any) -> None:
        if not job.cancelled() and job.exception() is None:
            job.result().let_go(self.libvirt)

    def _lost(self) -> None:
        """Told by libvirt, or noticed by a call: some connection is closed, perhaps one that was replaced."""
        if self._closed or self._gone or self._link is None or self._link.is_alive():
            return
        self._gone = True
        log.warning("libvirtd is gone; guests run on", uri=self._uri)
        self._listener.lost()
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
            except KilonovaError:
                log.exception("libvirtd is back, but does not tell its guests")
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    # ---- called by libvirt's event thread: hand over, and never call libvirt from here ----

    def _on_close(self, link: Any, reason: int, opaque: object) -> None:
        self._tell(self._lost)

    def _on_lifecycle(self, link: Any, domain: Any, event: int, detail: int, opaque: object) -> None:
        uuid = domain.UUIDString()
        self._tell(lambda: self._listener.lifecycle(uuid, event, detail))

    def _on_reboot(self, link: Any, domain: Any, opaque: object) -> None:
        uuid = domain.UUIDString()
        self._tell(lambda: self._listener.rebooted(uuid))

    def _on_device_removed(self, link: Any, domain: Any, alias: str, opaque: object) -> None:
        uuid = domain.UUIDString()
        self._tell(lambda: self._listener.device_removed(uuid, alias, refused=False))

    def _on_device_kept(self, link: Any, domain: Any, alias: str, opaque: object) -> None:
        uuid = domain.UUIDString()
        self._tell(lambda: self._listener.device_removed(uuid, alias, refused=True))

    def _tell(self, news: Callable[[], None]) -> None:
        if self._closed:
            return
        try:
            self._loop.call_soon_threadsafe(news)
        except RuntimeError:
            log.debug("the event loop has ended before libvirt's events")


def _look_at(future: asyncio.Future[Any]) -> None:
    """A failure that nobody waits for any more is no news."""
    if not future.cancelled():
        future.exception()
