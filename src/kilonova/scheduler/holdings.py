"""What of hosts is given away one by one (cells, CPUs, pages, devices), as far as the last look told.

Requests that want such things ask here.  What was answered for a host is kept until its generation
rises, which every claim and every report there makes it do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from kilonova.clock import SECOND, Clock
from kilonova.db import host_resources
from kilonova.db.engine import Database, Tx
from kilonova.model.host_resources import HostResources, Limits, Wanted
from kilonova.resources.host_fit import fit_host
from kilonova.resources.numa_fit import DoesNotFit
from kilonova.resources.pci_fit import free_devices
from kilonova.scheduler.columns import Columns

FRESH = SECOND
IDLE = 10 * SECOND  # for requests that want nothing of it
CHUNK = 500  # hosts of one statement
KEPT = 64  # requests whose answers are kept


class Holdings:
    def __init__(self, db: Database, clock: Clock) -> None:
        """``db`` is the top one."""
        self._db = db
        self._clock = clock
        self._read_at = 0
        self.hosts: dict[str, HostResources] = {}  # by compute id; without those that have nothing
        self.free_devices: dict[str, int] = {}  # compute id -> devices that nobody has
        self._answers: OrderedDict[bytes, Answers] = OrderedDict()

    def forget(self) -> None:
        """Something of it was just taken or given back: look again before the next decision."""
        self._read_at = 0

    async def look(self, columns: Columns, *, anew: bool = False, age: int = FRESH) -> None:
        """Read what has changed, unless it is younger than ``age`` and not wanted ``anew``.

        Free devices are counted in the columns, for the PCIWeigher.
        """
        now = self._clock.now()
        if not anew and abs(now - self._read_at) < age:
            return
        self._read_at = now
        known = {compute_id: host.generation for compute_id, host in self.hosts.items()}
        changed, gone = await self._db.read(lambda tx: _changed(tx, known))
        for compute_id in gone:
            self.hosts.pop(compute_id, None)
            self.free_devices.pop(compute_id, None)
        for compute_id, host in changed.items():
            self.hosts[compute_id] = host
            self.free_devices[compute_id] = len(free_devices(host.devices))
        columns.pci_free[:] = 0
        for compute_id, number in self.free_devices.items():
            row = columns.row_of_provider.get(compute_id)
            if row is not None:
                columns.pci_free[row] = number

    def answers(self, wanted: Wanted) -> Answers:
        """What hosts say to a request; to be asked once for many hosts."""
        key = msgspec.msgpack.encode(wanted)
        found = self._answers.get(key)
        if found is None:
            found = self._answers[key] = Answers(wanted)
            if len(self._answers) > KEPT:
                self._answers.popitem(last=False)
        else:
            self._answers.move_to_end(key)
        found.hosts = self.hosts
        return found


class Answers:
    """What hosts have said to one request, each kept as long as it holds."""

    def __init__(self, wanted: Wanted) -> None:
        self.hosts: Mapping[str, HostResources] = {}
        self._wanted = wanted
        self._kept: dict[str, tuple[HostResources, float | None, float | None, str | None]] = {}

    def reason(self, compute_id: str, cpu_ratio: float | None, ram_ratio: float | None) -> str | None:
        """Why a host cannot give what is wanted, with these limits; None when it can."""
        host = self.hosts.get(compute_id) or HostResources(compute_id=compute_id)
        kept = self._kept.get(compute_id)
        if kept is None or kept[0].generation != host.generation or kept[1:3] != (cpu_ratio, ram_ratio):
            reason = _reason(host, self._wanted, Limits(cpu_ratio=cpu_ratio, ram_ratio=ram_ratio))
            kept = self._kept[compute_id] = (host, cpu_ratio, ram_ratio, reason)
        return kept[3]


def _changed(tx: Tx, known: dict[str, int]) -> tuple[dict[str, HostResources], list[str]]:
    """The hosts whose generation is another one, and those that are gone."""
    now = host_resources.generations(tx)
    others = [compute_id for compute_id, generation in now.items() if known.get(compute_id) != generation]
    changed: dict[str, HostResources] = {}
    for start in range(0, len(others), CHUNK):
        changed.update(host_resources.read_many(tx, others[start : start + CHUNK]))
    return changed, [compute_id for compute_id in known if compute_id not in now]


def _reason(host: HostResources, wanted: Wanted, limits: Limits) -> str | None:
    try:
        fit_host(host, msgspec.structs.replace(wanted, limits=limits))
    except DoesNotFit as error:
        return str(error)
    return None
