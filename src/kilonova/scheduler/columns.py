"""What is known of hosts, in columns: place ``row`` of every array is the same host.

Arrays are as long as there is ``room`` for hosts; ``present`` tells which rows are hosts.  ``version`` rises
with every change of what is called fixed here: all but what is used, counted, measured or heard of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from kilonova.db.aggregates import Aggregate
from kilonova.model.host import Host, Inventory

Mask = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.int64]
Real = npt.NDArray[np.float64]

FIRST_ROOM = 64
KEPT_AMOUNTS = 64  # of a resource class for which it is remembered where one server may have so much
NO_INVENTORY: dict[str, Inventory] = {}


class Provision(msgspec.Struct, frozen=True, kw_only=True):
    """What placement has of one host's own provider, and who uses how much of it."""

    inventories: dict[str, Inventory]
    used: dict[str, int]
    traits: frozenset[str] = frozenset()
    instances: int = 0  # consumers of it


class Stock:
    """One resource class: what each host has of it.  ``max_unit`` is 0 where there is none."""

    _NAMES = ("capacity", "physical", "used", "total", "min_unit", "max_unit", "step_size")
    __slots__ = ("_allowed", *_NAMES)

    def __init__(self, room: int) -> None:
        for name in self._NAMES:
            setattr(self, name, np.zeros(room, np.int64))
        self.step_size: Whole = np.ones(room, np.int64)
        self._allowed: dict[int, Mask] = {}

    capacity: Whole  # with the allocation ratio
    physical: Whole  # without it; both without what is reserved
    used: Whole
    total: Whole
    min_unit: Whole
    max_unit: Whole

    def grow(self, room: int) -> None:
        for name in self._NAMES:
            setattr(self, name, _longer(getattr(self, name), room, 1 if name == "step_size" else 0))
        self._allowed.clear()

    def set(self, row: int, inventory: Inventory | None) -> None:
        """None: there is none of it any more."""
        self._allowed.clear()
        if inventory is None:
            for name in self._NAMES:
                getattr(self, name)[row] = 1 if name == "step_size" else 0
            return
        self.capacity[row] = inventory.capacity
        self.physical[row] = inventory.total - inventory.reserved
        self.total[row] = inventory.total
        self.min_unit[row], self.max_unit[row] = inventory.min_unit, inventory.max_unit
        self.step_size[row] = max(inventory.step_size, 1)

    def allowed(self, amount: int) -> Mask:
        """Where one server may have so much of it, if there is room."""
        found = self._allowed.get(amount)
        if found is None:
            if len(self._allowed) >= KEPT_AMOUNTS:
                self._allowed.clear()
            found = (self.max_unit >= amount) & (self.min_unit <= amount) & (amount % self.step_size == 0)
            self._allowed[amount] = found
        return found

    def free(self) -> Whole:
        return self.capacity - self.used


def _longer(array: npt.NDArray[np.generic], room: int, fill: int | float) -> npt.NDArray[np.generic]:
    result = np.full(room, fill, array.dtype)
    result[: len(array)] = array
    return result


class Columns:
    """All hosts.  Only ``kilonova.scheduler.view`` writes."""

    _FLAGS = ("present", "disabled", "forced_down")
    _NUMBERS = (
        "last_seen",
        "zone",
        "hypervisor_version",
        "instances",
        "io_ops",
        "failed_builds",
        "pci_free",
    )

    present: Mask
    disabled: Mask
    forced_down: Mask
    last_seen: Whole
    zone: Whole  # place in ``zones``
    hypervisor_version: Whole
    instances: Whole
    io_ops: Whole
    failed_builds: Whole
    pci_free: Whole

    def __init__(self, default_zone: str) -> None:
        self.room = FIRST_ROOM
        self.version = 0
        self.default_zone = default_zone
        for name in self._FLAGS:
            setattr(self, name, np.zeros(self.room, np.bool_))
        for name in self._NUMBERS:
            setattr(self, name, np.zeros(self.room, np.int64))
        self.stock: dict[str, Stock] = {}
        self.traits: dict[str, Mask] = {}
        self.metrics: dict[str, Real] = {}
        self.records: list[Host | None] = [None] * self.room
        self.provisions: list[Provision | None] = [None] * self.room
        self.zones: dict[str, int] = {}
        self.row_of: dict[str, int] = {}  # by name
        self.row_of_provider: dict[str, int] = {}  # by compute id
        self.aggregates: tuple[Aggregate, ...] = ()
        # (property of images, value) -> servers of such images; empty unless a weigher needs it
        self.images: dict[tuple[str, str], Whole] = {}
        self._members: dict[int, Mask] = {}
        self._free = list(range(self.room - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.row_of)

    def record(self, row: int) -> Host:
        found = self.records[row]
        assert found is not None, f"there is no host in row {row}"
        return found

    def zone_of(self, row: int) -> str:
        return self.record(row).availability_zone or self.default_zone

    # ---- hosts ----

    def put_host(self, host: Host) -> int:
        """Take over what is known of a host; its row."""
        row = self.row_of_provider.get(host.compute_id)
        if row is None:
            row = self._new_row(host)
        old = self.records[row]
        if old is None or _fixed(old) != _fixed(host):
            self.version += 1
            if old is not None and old.host != host.host:
                del self.row_of[old.host]
                self.row_of[host.host] = row
            zone = host.availability_zone or self.default_zone
            self.zone[row] = self.zones.setdefault(zone, len(self.zones))
            self.disabled[row], self.forced_down[row] = host.disabled, host.forced_down
            self.hypervisor_version[row] = host.hypervisor_version
        self.records[row] = host
        self.last_seen[row] = host.last_seen_at
        self.failed_builds[row] = host.failed_builds
        self._put_metrics(row, host)
        return row

    def _new_row(self, host: Host) -> int:
        if not self._free:
            self._grow()
        row = self._free.pop()
        self.row_of_provider[host.compute_id] = self.row_of[host.host] = row
        self.present[row] = True
        self._members.clear()
        return row

    def _grow(self) -> None:
        room = self.room + max(FIRST_ROOM, self.room // 4)
        for name in (*self._FLAGS, *self._NUMBERS):
            setattr(self, name, _longer(getattr(self, name), room, 0))
        for stock in self.stock.values():
            stock.grow(room)
        self.traits = {name: _flags(_longer(mask, room, 0)) for name, mask in self.traits.items()}
        self.images = {}  # until they are counted again
        self.metrics = {name: _reals(_longer(one, room, np.nan)) for name, one in self.metrics.items()}
        self.records += [None] * (room - self.room)
        self.provisions += [None] * (room - self.room)
        self._free = list(range(room - 1, self.room - 1, -1))
        self._members.clear()
        self.room = room
        self.version += 1

    def drop(self, row: int) -> None:
        """A host that is not there any more."""
        host = self.record(row)
        self.put_provision(row, Provision(inventories=NO_INVENTORY, used={}))
        self.provisions[row] = self.records[row] = None
        for name in (*self._FLAGS, *self._NUMBERS):
            getattr(self, name)[row] = 0
        for metric in self.metrics.values():
            metric[row] = np.nan
        del self.row_of[host.host], self.row_of_provider[host.compute_id]
        self._free.append(row)
        self._members.clear()
        self.version += 1

    def _put_metrics(self, row: int, host: Host) -> None:
        for column in self.metrics.values():
            column[row] = np.nan
        for metric in host.metrics:
            found = self.metrics.get(metric.name)
            if found is None:
                found = self.metrics[metric.name] = np.full(self.room, np.nan)
            found[row] = metric.value

    # ---- what placement has of them ----

    def put_provision(self, row: int, provision: Provision) -> None:
        old = self.provisions[row]
        if old is None or old.inventories != provision.inventories or old.traits != provision.traits:
            self.version += 1
            before = old or Provision(inventories=NO_INVENTORY, used={})
            self._put_inventories(row, before.inventories, provision.inventories)
            for name in before.traits - provision.traits:
                self.traits[name][row] = False
            for name in provision.traits - before.traits:
                self._trait(name)[row] = True
        for name in provision.inventories:
            self.stock[name].used[row] = provision.used.get(name, 0)
        self.instances[row] = provision.instances
        self.provisions[row] = provision

    def _put_inventories(self, row: int, old: Mapping[str, Inventory], new: Mapping[str, Inventory]) -> None:
        for name in old.keys() - new.keys():
            self.stock[name].set(row, None)
        for name, inventory in new.items():
            stock = self.stock.get(name)
            if stock is None:
                stock = self.stock[name] = Stock(self.room)
            if old.get(name) != inventory:
                stock.set(row, inventory)

    def _trait(self, name: str) -> Mask:
        found = self.traits.get(name)
        if found is None:
            found = self.traits[name] = np.zeros(self.room, np.bool_)
        return found

    def count(self, row: int, resources: Mapping[str, int], sign: int = 1) -> None:
        """Add (or, with -1, take back) what one server uses, before the database tells of it."""
        for name, amount in resources.items():
            stock = self.stock.get(name)
            if stock is not None:
                stock.used[row] += sign * amount
        self.instances[row] += sign

    # ---- aggregates ----

    def put_aggregates(self, found: Iterable[Aggregate]) -> None:
        aggregates = tuple(found)
        if aggregates != self.aggregates:
            self.aggregates = aggregates
            self._members.clear()
            self.version += 1

    def members(self, aggregate: Aggregate) -> Mask:
        """Which hosts are in an aggregate."""
        found = self._members.get(aggregate.id)
        if found is None:
            found = np.zeros(self.room, np.bool_)
            found[[self.row_of[host] for host in aggregate.hosts if host in self.row_of]] = True
            self._members[aggregate.id] = found
        return found

    def alive(self, now: int, service_down_time: int) -> Mask:
        """Those that were heard of lately."""
        return np.abs(now - self.last_seen) <= service_down_time * 1_000_000


def _fixed(host: Host) -> Host:
    return msgspec.structs.replace(
        host, last_seen_at=0, report_count=0, updated_at=None, metrics=(), failed_builds=0
    )


def _flags(array: npt.NDArray[np.generic]) -> Mask:
    return array.astype(np.bool_, copy=False)


def _reals(array: npt.NDArray[np.generic]) -> Real:
    return array.astype(np.float64, copy=False)
