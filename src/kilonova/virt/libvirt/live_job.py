"""Where a guest is and how far its being sent has come, as libvirt says."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.errors import HostFault
from kilonova.rpc.moves import Presence, Progress
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.lookup import find

# virDomainState, and reasons of some
PAUSED, SHUTOFF, CRASHED = 3, 5, 6
RUNNING_POSTCOPY = (10, 11)  # ..._POSTCOPY, ..._POSTCOPY_FAILED
PAUSED_BY_MIGRATION, PAUSED_STARTING_UP = 2, 11
PAUSED_POSTCOPY, PAUSED_POSTCOPY_FAILED = (12, 13), 13
SHUTOFF_UNKNOWN, SHUTOFF_MIGRATED, SHUTOFF_DAEMON = 0, 4, 8


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A guest as libvirt has it: ``state`` and ``reason`` are its numbers, 0 for no such guest.

    ``sent``: it is being sent from here; ``comes``: it is being received.
    """

    state: int = 0
    reason: int = 0
    sent: Progress | None = None
    comes: bool = False

    @property
    def presence(self) -> str:
        """One of `Presence`."""
        state, reason = self.state, self.reason
        if state == 0:
            return Presence.ABSENT
        if state in (SHUTOFF, CRASHED):
            return Presence.LEFT if (state, reason) == (SHUTOFF, SHUTOFF_MIGRATED) else Presence.OFF
        if reason in (PAUSED_POSTCOPY if state == PAUSED else RUNNING_POSTCOPY):
            return Presence.POSTCOPY
        if self.sent is not None:
            return Presence.LEAVING
        if state != PAUSED:
            return Presence.RUNNING
        if self.comes or reason == PAUSED_STARTING_UP:
            return Presence.INCOMING
        return Presence.HELD if reason == PAUSED_BY_MIGRATION else Presence.PAUSED

    @property
    def is_broken(self) -> bool:
        """Post-copy stands still, since the network failed: it can be mended."""
        return (self.state, self.reason) == (PAUSED, PAUSED_POSTCOPY_FAILED)

    @property
    def may_have_passed(self) -> bool:
        """It is off, and libvirt does not say why: it may have restarted since."""
        return self.state == SHUTOFF and self.reason in (SHUTOFF_UNKNOWN, SHUTOFF_DAEMON)


class DomainJob:
    """Implements live_monitor.LiveJob for one guest."""

    def __init__(
        self, connection: Connection, uuid: str, *, postcopy: bool, called_back: set[str] | None = None
    ) -> None:
        """``postcopy``: it may be completed so.  In ``called_back`` are guests whose sending was aborted:
        libvirt has several words for that, and some of them are those of a failure."""
        self._connection = connection
        self._uuid = uuid
        self._postcopy = postcopy
        self._called_back = set() if called_back is None else called_back

    async def seen(self) -> Seen:
        return await self._connection.call(self._seen)

    async def look(self) -> Progress | None:
        return (await self.seen()).sent

    async def completed(self) -> dict[str, int]:
        """libvirt's figures of the last time that it was sent from here; none if there are none."""
        libvirt = self._connection.libvirt
        flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED

        def work(link: Any) -> dict[str, int]:
            domain = self._find(link)
            stats = dict(domain.jobStats(flags)) if domain is not None else {}
            sent = stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
            return stats if sent else {}

        return await self._connection.call(work)

    async def allow_downtime(self, milliseconds: int) -> None:
        await self._do(lambda domain: domain.migrateSetMaxDowntime(milliseconds))

    async def abort(self) -> None:
        await self._do(lambda domain: domain.abortJob())
        self._called_back.add(self._uuid)

    async def force_complete(self) -> None:
        """libvirt lets a guest that was paused for it go on when the migration fails after all."""

        def act(domain: Any) -> None:
            if domain.state()[0] == PAUSED:  # it changes nothing any more, and will be there soon
                return
            if self._postcopy:
                domain.migrateStartPostCopy()
            else:
                domain.suspend()

        await self._do(act)

    # ---- inside ----

    async def _do(self, act: Any) -> None:
        def work(link: Any) -> None:
            domain = self._find(link)
            if domain is None:
                raise HostFault(f"There is no guest {self._uuid} on this host.")
            act(domain)

        await self._connection.call(work)

    def _find(self, link: Any) -> Any:
        return find(self._connection.libvirt, link, self._uuid)

    def _seen(self, link: Any) -> Seen:
        """The state is looked at last: a guest whose job has ended has its last state by then."""
        libvirt = self._connection.libvirt
        domain = self._find(link)
        if domain is None:
            return Seen()
        try:
            stats, comes = self._stats(domain)
            state, reason = domain.state()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return Seen()
            raise
        sent = None
        if stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT:
            there = state == PAUSED and reason in PAUSED_POSTCOPY
            sent = progress(self._uuid, "postcopy" if there else "running", stats)
        return Seen(state=state, reason=reason, sent=sent, comes=comes)

    def _stats(self, domain: Any) -> tuple[dict[str, int], bool]:
        """Those of what is going on, and whether it is that the guest is received: that has none."""
        libvirt = self._connection.libvirt
        try:
            stats = dict(domain.jobStats())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
                return {}, True
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:  # it does not run
                return {}, False
            raise
        return (stats if stats.get("type") else {}), False


def progress(uuid: str, phase: str, stats: dict[str, int]) -> Progress:
    return Progress(
        uuid=uuid,
        phase=phase,
        memory_total=stats.get("memory_total"),
        memory_processed=stats.get("memory_processed"),
        memory_remaining=stats.get("memory_remaining"),
        disk_total=stats.get("disk_total"),
        disk_processed=stats.get("disk_processed"),
        disk_remaining=stats.get("disk_remaining"),
        rate=stats.get("memory_bps"),
        dirty_rate=stats.get("memory_dirty_rate"),
        elapsed=stats.get("time_elapsed"),
    )
