"""Guests of a fake hypervisor that move while they run.

What is true of them is on disk, as QEMU's memory is no agent's: an agent that ends changes nothing, and the
next one finds the guest still being sent, or gone.  Time does the sending: how much was sent is what the rate
and the clock say whenever somebody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

import msgspec

from kilonova.clock import SECOND, Clock, set_within
from kilonova.errors import HostFault
from kilonova.model.migration import Wish
from kilonova.model.states import Power
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import ArrivalFacts, LiveOutcome, LivePlan, LiveWish, Located, Presence, Progress
from kilonova.virt.fake.guests import PREPARED, GuestFile
from kilonova.virt.fake.parked import FakeStorage

MIB = 1 << 20
GIB = 1 << 30
LOOK = 1.0  # seconds between two looks of a call that waits for its guest to have gone
HELD = 0.02  # the same while a test holds it

INCOMING, LEAVING, POSTCOPY, LEFT = "incoming", "leaving", "postcopy", "left"


class Gates(Protocol):
    """What tests hold: ``arrive`` keeps guests from going over."""

    def held(self, verb: str) -> bool: ...


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """One host's side of a guest's way: at which ``role``, to or from where, and since when how fast.

    Bytes, bytes a second, microseconds.  ``rate`` 0: at once.
    """

    role: str
    other: str = ""  # the destination, of a guest that is sent
    shared: bool = False  # both hosts have one directory of files
    total: int = 0
    rate: float = 0.0
    dirty: float = 0.0
    began: int = 0

    def sent(self, now: int) -> int:
        if not self.rate:
            return self.total
        speed = max(self.rate - (0.0 if self.role == POSTCOPY else self.dirty), 0.0)
        return min(self.total, int(speed * (now - self.began) / SECOND))


class Fabric:
    """The hypervisors of one process, by host: between them guests go over at once, and never half.

    One of another process is not here: its guest stays ``incoming`` until `settle_live`.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, FakeLive] = {}

    def join(self, host: str, live: FakeLive) -> None:
        self._hosts[host] = live

    def leave(self, host: str, live: FakeLive) -> None:
        if self._hosts.get(host) is live:
            del self._hosts[host]

    def at(self, host: str) -> FakeLive | None:
        return self._hosts.get(host)

    def move_on(self, uuid: str) -> None:
        """Have time's work done on this guest, wherever it is."""
        for live in tuple(self._hosts.values()):
            live.move_on(uuid)


class FakeLive:
    """The live part of one fake hypervisor.

    What tests may set: ``rate`` and ``dirty_rate`` of guests that are sent from now on, ``permit_post_copy``,
    and ``cpu``, what is wrong with guests' processors here.
    """

    def __init__(
        self,
        host: str,
        guests: GuestFile,
        storage: Callable[[], FakeStorage],
        clock: Clock,
        gates: Gates,
        fabric: Fabric,
    ) -> None:
        self.rate = 0.0
        self.dirty_rate = 0.0
        self.permit_post_copy = False
        self.cpu = ""
        self.waits_for_plug = True
        self.disk_available = 1000 * GIB
        self._host = host
        self._guests = guests
        self._storage = storage
        self._clock = clock
        self._gates = gates
        self._fabric = fabric
        self._changed: dict[str, asyncio.Event] = {}
        self._ends: dict[str, LiveOutcome] = {}  # of calls that wait: how it went
        self._rows = guests.transfers(Transfer)
        for uuid, row in self._rows.items():
            if row.role == LEFT:  # the process ended between two writes
                guests.put(uuid, PREPARED, volumes=())
        fabric.join(host, self)

    def close(self) -> None:
        self._fabric.leave(self._host, self)

    # ---- looking ----

    def locate(self, uuid: str) -> Located:
        self._fabric.move_on(uuid)
        state, row = self._guests.state(uuid), self._rows.get(uuid)
        return Located(uuid=uuid, presence=_presence(state, row), files=state is not None)

    def progress(self, uuid: str) -> Progress:
        self._fabric.move_on(uuid)
        row, now = self._rows.get(uuid), self._clock.now()
        if row is None or row.role not in (LEAVING, POSTCOPY):
            return Progress(uuid=uuid)
        sent = row.sent(now)
        return Progress(
            uuid=uuid,
            phase="running" if row.role == LEAVING else "postcopy",
            memory_total=row.total,
            memory_processed=sent,
            memory_remaining=row.total - sent,
            rate=int(row.rate),
            dirty_rate=int(row.dirty),
            elapsed=(now - row.began) // 1000,
        )

    def check_arrival(self, guest: GuestSpec) -> ArrivalFacts:
        storage = self._storage()
        probe = f"live-{guest.uuid}"  # the same at a repeat, so that none is forgotten
        storage.probes.add(probe)
        return ArrivalFacts(
            host=self._host,
            probe=probe,
            disk_available=self.disk_available,
            migration_uri=f"fake://{self._host}",
            cpu=self.cpu,
            delegates=tuple(vif.port_id for vif in guest.vifs),
            waits_for_plug=self.waits_for_plug,
        )

    def check_departure(self, guest: GuestSpec, wish: LiveWish, facts: ArrivalFacts) -> LivePlan:
        if self._guests.state(guest.uuid) not in (Power.RUNNING, Power.PAUSED):
            raise HostFault(f"Guest {guest.uuid} does not run here.")
        shared = facts.probe in self._storage().probes
        block = not shared if wish.block is None else wish.block
        if block and shared:
            raise HostFault(
                f"The hosts {self._host} and {facts.host} share storage: there is no block to move."
            )
        if not block and not shared:
            raise HostFault(
                f"The hosts {self._host} and {facts.host} share no storage: blocks must move, too."
            )
        disk = (guest.flavor.root_gb + guest.flavor.ephemeral_gb) * GIB if block else 0
        if disk > facts.disk_available and not wish.disk_over_commit:
            raise HostFault(f"The host {facts.host} has no room for {disk} bytes of disk.")
        return LivePlan(
            destination=facts.host,
            shared_path=shared,
            block=block,
            disk_bytes=disk,
            memory_mb=guest.flavor.memory_mb,
            migration_uri=facts.migration_uri,
            delegates=facts.delegates,
        )

    # ---- the destination ----

    def receive(self, guest: GuestSpec, plan: LivePlan) -> LivePlan:
        if guest.uuid not in self._rows:
            if self._guests.state(guest.uuid) is not None:
                raise HostFault(f"There are files of the guest {guest.uuid} on this host already.")
            self._put(guest.uuid, Transfer(role=INCOMING, shared=plan.shared_path))
            macs = tuple(vif.mac for vif in guest.vifs)
            self._guests.put(guest.uuid, PREPARED, macs=macs, volumes=guest.volumes)
        return msgspec.structs.replace(plan, migration_uri=f"fake://{self._host}")

    def settle(self, guest: GuestSpec) -> None:
        self._fabric.move_on(guest.uuid)
        state, row = self._guests.state(guest.uuid), self._rows.get(guest.uuid)
        if row is not None and row.role == INCOMING:
            self._arrive(guest.uuid, Power.RUNNING)  # it has come from another process
        elif state is None or state == PREPARED:
            raise HostFault(f"Guest {guest.uuid} has not come to this host.")

    def awaits(self, uuid: str) -> bool:
        row = self._rows.get(uuid)
        return row is not None and row.role == INCOMING

    def _arrive(self, uuid: str, state: int) -> None:
        self._guests.put(uuid, state)
        self._forget(uuid)

    # ---- the source ----

    async def send(self, guest: GuestSpec, plan: LivePlan) -> LiveOutcome:
        """As `rpc.mover.Mover.send_live`; what a former call has begun goes on in this one."""
        uuid = guest.uuid
        row, state = self._rows.get(uuid), self._guests.state(uuid)
        if row is not None and row.role == LEFT:
            return LiveOutcome(state="completed")
        if state is None or state == PREPARED:
            return LiveOutcome(state="gone", reason=f"Guest {uuid} is not on this host.")
        if state not in (Power.RUNNING, Power.PAUSED):
            return LiveOutcome(state="failed", reason=f"Guest {uuid} is off.")
        if row is None:
            total = plan.memory_mb * MIB + plan.disk_bytes
            leaving = Transfer(
                role=LEAVING,
                other=plan.destination,
                shared=plan.shared_path,
                total=total,
                rate=self.rate,
                dirty=self.dirty_rate,
                began=self._clock.now(),
            )
            self._put(uuid, leaving)
        return await self._ended(uuid)

    async def _ended(self, uuid: str) -> LiveOutcome:
        self._ends.pop(uuid, None)
        while True:
            self.move_on(uuid)
            if uuid in self._ends:
                return self._ends.pop(uuid)
            row = self._rows.get(uuid)
            if row is None:
                return LiveOutcome(state="gone", reason=f"Guest {uuid} is not sent any more.")
            if row.role == LEFT:
                return LiveOutcome(state="completed", memory_total=row.total, memory_processed=row.total)
            await self._pause(uuid, row)

    async def _pause(self, uuid: str, row: Transfer) -> None:
        left = row.total - row.sent(self._clock.now())
        seconds = HELD if left == 0 else min(LOOK, left / row.rate if row.rate else LOOK)
        event = self._changed.setdefault(uuid, asyncio.Event())
        try:
            await set_within(seconds, self._clock, event)
        finally:
            self._changed.pop(uuid, None)

    def steer(self, uuid: str, wish: str) -> bool:
        self.move_on(uuid)
        row = self._rows.get(uuid)
        if row is None or row.role != LEAVING:
            return False
        if wish == Wish.ABORT:
            self._end(uuid, LiveOutcome(state="cancelled", reason="It was aborted."))
            return True
        now = self._clock.now()
        rest = msgspec.structs.replace(row, total=row.total - row.sent(now), began=now, dirty=0.0)
        if self.permit_post_copy:
            self._put(uuid, msgspec.structs.replace(rest, role=POSTCOPY))
        else:
            self._put(
                uuid, msgspec.structs.replace(rest, rate=0.0)
            )  # it is paused, and the rest is soon sent
        self._wake(uuid)
        return True

    def leave(self, uuid: str) -> None:
        self._fabric.move_on(uuid)
        row, state = self._rows.get(uuid), self._guests.state(uuid)
        if (row is None or row.role != LEFT) and state in (Power.RUNNING, Power.PAUSED):
            raise HostFault(f"Guest {uuid} has not left: it runs on this host.")
        self._forget(uuid)
        self._guests.drop(uuid)

    # ---- time, and what ends ----

    def move_on(self, uuid: str) -> None:
        """Do what the clock says that has happened to a guest that is sent from here."""
        row = self._rows.get(uuid)
        if row is None or row.role not in (LEAVING, POSTCOPY):
            return
        state = self._guests.state(uuid)
        there = self._fabric.at(row.other)
        if state not in (Power.RUNNING, Power.PAUSED):
            self._end(uuid, LiveOutcome(state="failed", reason=f"Guest {uuid} went off."))
        elif there is not None and not there.awaits(uuid):
            self._end(uuid, LiveOutcome(state="failed", reason=f"The host {row.other} does not await it."))
        elif row.sent(self._clock.now()) >= row.total and not self._gates.held("arrive"):
            self._put(uuid, msgspec.structs.replace(row, role=LEFT))  # first: it never runs twice
            self._guests.put(uuid, PREPARED, volumes=())
            if there is not None:
                there._arrive(uuid, state)
            self._wake(uuid)

    def forget(self, uuid: str) -> None:
        """The guest was ended, or given up: nothing of it moves any more."""
        row = self._rows.get(uuid)
        if row is None:
            return
        if row.role in (LEAVING, POSTCOPY):
            self._end(uuid, LiveOutcome(state="failed", reason=f"Guest {uuid} was ended."))
        else:
            self._forget(uuid)
            if row.role == INCOMING and row.shared:
                self._guests.drop(uuid)  # its files are the source's

    def power_cut(self) -> None:
        """The host loses its power: what ran is off, and nothing is known of what was under way."""
        for uuid, row in tuple(self._rows.items()):
            self._forget(uuid)
            if row.role == LEFT:
                self._guests.put(uuid, Power.SHUTDOWN)
        self._guests.lose_power()

    def _end(self, uuid: str, outcome: LiveOutcome) -> None:
        """It stays here."""
        self._ends[uuid] = outcome
        self._forget(uuid)
        self._wake(uuid)

    def _wake(self, uuid: str) -> None:
        with contextlib.suppress(KeyError):
            self._changed[uuid].set()

    def _put(self, uuid: str, row: Transfer) -> None:
        self._rows[uuid] = row
        self._guests.put_transfer(uuid, row)

    def _forget(self, uuid: str) -> None:
        if self._rows.pop(uuid, None) is not None:
            self._guests.drop_transfer(uuid)


def _presence(state: int | None, row: Transfer | None) -> str:
    """Where a guest is, of its power state here and its way."""
    if row is not None:
        known = {INCOMING: Presence.INCOMING, LEFT: Presence.LEFT, POSTCOPY: Presence.POSTCOPY}
        found = known.get(row.role)
        if found is not None:
            return found
        if state in (Power.RUNNING, Power.PAUSED):
            return Presence.LEAVING
    if state is None or state == PREPARED:
        return Presence.ABSENT
    return {Power.RUNNING: Presence.RUNNING, Power.PAUSED: Presence.PAUSED}.get(state, Presence.OFF)
