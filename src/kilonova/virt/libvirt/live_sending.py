"""Sending guests while they run: libvirt does it, at its own pace, whoever of us lives.

The source keeps a shell of the guest that has gone, "shut off, migrated", until `leave`: so libvirt itself
says that the guest has passed, to a later asker too.  Nothing is concluded from a call that came to nothing;
it is looked at again.
"""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from kilonova.clock import Clock
from kilonova.errors import HostFault, TryAgain, Unreachable
from kilonova.rpc.moves import LiveOutcome, LivePlan, Presence
from kilonova.threads import Threads
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.faults import words
from kilonova.virt.libvirt.live_job import DomainJob, Seen
from kilonova.virt.libvirt.live_monitor import Monitor, size_in_gib
from kilonova.virt.libvirt.live_options import LiveOptions
from kilonova.virt.libvirt.xml.moved import moved

log = structlog.get_logger("kilonova.virt")

MEND = 5.0  # seconds between tries to go on with a post-copy migration
HERE = (Presence.RUNNING, Presence.PAUSED)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What libvirt is asked for: the URI of the destination's libvirtd, typed parameters and flags."""

    uri: str
    parameters: dict[str, Any]
    flags: int


class Sender:
    """All guests that are being sent from this host."""

    def __init__(self, connection: Connection, options: LiveOptions, clock: Clock) -> None:
        self._connection = connection
        self._options = options
        self._clock = clock
        self._under_way: dict[str, asyncio.Task[LiveOutcome]] = {}
        self._monitors: dict[str, Monitor] = {}
        self._called_back: set[str] = set()

    async def send(self, uuid: str, plan: LivePlan) -> LiveOutcome:
        """How it has ended.  A caller that is cancelled, or dies, ends nothing; the next one takes over.

        Raises HostFault for a guest that cannot be sent like this, Unreachable when libvirtd cannot be asked.
        """
        task = self._under_way.get(uuid)
        if task is None or task.done():
            task = self._under_way[uuid] = asyncio.create_task(self._send(uuid, plan), name=f"send {uuid}")
            task.add_done_callback(lambda done: self._forget(uuid, done))
        return await asyncio.shield(task)

    def job(self, uuid: str) -> DomainJob:
        return DomainJob(
            self._connection,
            uuid,
            postcopy=self._options.permit_post_copy,
            called_back=self._called_back,
        )

    async def force_complete(self, uuid: str) -> None:
        """At once, or as soon as it can be done.  Raises HostFault if nobody of us watches over it."""
        try:
            await self.job(uuid).force_complete()
        except HostFault as error:
            monitor = self._monitors.get(uuid)
            if monitor is None:
                raise
            log.warning("a live migration is brought to its end later", instance=uuid, reason=str(error))
            monitor.force_complete()

    async def close(self) -> None:
        """Let go; libvirt goes on."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- inside ----

    def _forget(self, uuid: str, task: asyncio.Task[LiveOutcome]) -> None:
        if self._under_way.get(uuid) is task:
            del self._under_way[uuid]
            self._monitors.pop(uuid, None)
        if not task.cancelled():
            task.exception()  # looked at: whoever asked may be gone

    async def _send(self, uuid: str, plan: LivePlan) -> LiveOutcome:
        job = self.job(uuid)
        gib = size_in_gib(plan.memory_mb, plan.disks.values())
        monitor = self._monitors[uuid] = Monitor(uuid, job, self._options, gib, self._clock)
        fault: Any = None
        try:
            seen = await job.seen()
            if seen.presence in HERE:
                self._called_back.discard(uuid)
                paused = seen.presence == Presence.PAUSED
                fault = await self._begin(uuid, plan, monitor, paused=paused)
                seen = await job.seen()
            while seen.sent is not None or seen.is_broken:
                if seen.is_broken:
                    fault = await self._mend(uuid, plan) or fault
                else:  # by somebody who is gone, or whose connection is
                    log.info("a guest that is being sent is taken over", instance=uuid)
                    await monitor.watch(lambda: True)
                seen = await job.seen()
            return await self._outcome(uuid, seen, fault)
        except Unreachable:
            raise
        except TryAgain as error:
            raise Unreachable(str(error)) from error

    async def _begin(self, uuid: str, plan: LivePlan, monitor: Monitor, *, paused: bool) -> Any:
        """Have libvirt send it; libvirt's error if it came to nothing."""
        libvirt = self._connection.libvirt
        stored = libvirt.VIR_DOMAIN_XML_INACTIVE
        flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE

        def read(link: Any) -> tuple[str, str]:
            domain = link.lookupByUUIDString(uuid)
            return domain.XMLDesc(flags), domain.XMLDesc(flags | stored)

        # a paused guest comes to its end without post-copy, and libvirt refuses it
        options = replace(self._options, permit_post_copy=False) if paused else self._options
        asked = order(libvirt, plan, options, *await self._connection.call(read))
        ended = await self._migrate(uuid, asked)
        watch = asyncio.create_task(monitor.watch(ended.done), name=f"watch {uuid}")
        try:
            await asyncio.wait({ended})
        finally:
            watch.cancel()
            await asyncio.wait({watch})
        if not watch.cancelled() and (trouble := watch.exception()) is not None:
            log.warning("a guest was sent unwatched to the end", instance=uuid, error=str(trouble))
        return ended.result()

    async def _mend(self, uuid: str, plan: LivePlan) -> Any:
        """Go on with a post-copy migration that has lost its connection, until it ends or loses it again."""
        libvirt = self._connection.libvirt
        log.warning("a guest is in two halves: its migration is gone on with", instance=uuid)
        fault = await asyncio.shield(await self._migrate(uuid, mending(libvirt, plan, self._options)))
        if fault is not None:
            log.warning("it could not be gone on with yet", instance=uuid, error=words(fault))
            await self._clock.sleep(MEND)
        return fault

    async def _migrate(self, uuid: str, asked: Order) -> asyncio.Future[Any]:
        """Have libvirt do it; the future has libvirt's error if it came to nothing."""
        libvirt = self._connection.libvirt

        def work(link: Any) -> Any:
            try:
                domain = link.lookupByUUIDString(uuid)
                domain.migrateToURI3(asked.uri, asked.parameters, asked.flags)
            except libvirt.libvirtError as error:
                return error
            return None

        thread = Threads(f"libvirt-send-{uuid[:8]}", 1)  # its own: it may take hours
        ended = asyncio.wrap_future(await self._connection.submit(thread, work))
        thread.close()
        return ended

    async def _outcome(self, uuid: str, seen: Seen, fault: Any) -> LiveOutcome:
        reason = "" if fault is None else words(fault)
        presence = seen.presence
        if presence == Presence.LEFT:
            return _with_figures(LiveOutcome(state="completed"), await self.job(uuid).completed())
        if presence in HERE or (presence == Presence.OFF and not seen.may_have_passed):
            aborted = uuid in self._called_back or _is_abort(self._connection.libvirt, fault)
            self._called_back.discard(uuid)
            lost = "It was being sent, and is not any more."
            return LiveOutcome(state="cancelled" if aborted else "failed", reason=reason or lost)
        return LiveOutcome(state="gone", reason=reason or f"Here the guest is {presence}.")


def order(libvirt: Any, plan: LivePlan, options: LiveOptions, live: str, stored: str) -> Order:
    """``live`` and ``stored`` are the guest's definitions as libvirt has them here.

    Raises HostFault for a guest that cannot be sent like this.
    """
    parameters: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: moved(live, plan.domain),
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: moved(stored, plan.domain),
    }
    flags = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PEER2PEER
        | libvirt.VIR_MIGRATE_PERSIST_DEST
        | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    )
    if options.tunnelled:
        flags |= libvirt.VIR_MIGRATE_TUNNELLED
    else:
        parameters[libvirt.VIR_MIGRATE_PARAM_URI] = plan.migration_uri
    if options.native_tls:
        flags |= libvirt.VIR_MIGRATE_TLS
    disks = disks_to_send(live, plan) if plan.block else []
    if disks:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = disks
    if options.permit_post_copy:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    elif options.permit_auto_converge:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if options.unsafe:
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    if options.bandwidth:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = options.bandwidth
        if options.permit_post_copy:
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = options.bandwidth
    return Order(uri=options.libvirtd_of(address_of(plan.migration_uri)), parameters=parameters, flags=flags)


def mending(libvirt: Any, plan: LivePlan, options: LiveOptions) -> Order:
    """The order to go on with a post-copy migration."""
    flags = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PEER2PEER
        | libvirt.VIR_MIGRATE_POSTCOPY
        | libvirt.VIR_MIGRATE_POSTCOPY_RESUME
    )
    parameters = {libvirt.VIR_MIGRATE_PARAM_URI: plan.migration_uri}
    return Order(uri=options.libvirtd_of(address_of(plan.migration_uri)), parameters=parameters, flags=flags)


def address_of(migration_uri: str) -> str:
    """The host in ``tcp://HOST``, an IPv6 address without its brackets."""
    host = migration_uri.rpartition("://")[2]
    return host.strip("[]")


def disks_to_send(live: str, plan: LivePlan) -> list[str]:
    """The targets (vda ...) of the files that the plan names.  Raises HostFault if the guest has them not."""
    found = {}
    for disk in ET.fromstring(live).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        name = "" if source is None else source.get("file", "").rpartition("/")[2]
        if target is not None and name in plan.disks:
            found[name] = target.get("dev", "")
    missing = plan.disks.keys() - found.keys()
    if missing:
        raise HostFault(f"The guest does not use its disks {', '.join(sorted(missing))} as was planned.")
    return sorted(found.values())


def _is_abort(libvirt: Any, fault: Any) -> bool:
    return fault is not None and fault.get_error_code() == libvirt.VIR_ERR_OPERATION_ABORTED


def _with_figures(outcome: LiveOutcome, stats: dict[str, int]) -> LiveOutcome:
    return replace(
        outcome,
        downtime=stats.get("downtime"),
        elapsed=stats.get("time_elapsed"),
        memory_total=stats.get("memory_total"),
        memory_processed=stats.get("memory_processed"),
        disk_total=stats.get("disk_total"),
        disk_processed=stats.get("disk_processed"),
    )
