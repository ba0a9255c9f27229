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

Answer = tuple[int, Limits, str | None]
"""Of which generation, under which limits, the reason for a no."""


class Holdings:
    def __init__(self, db: Database, clock: Clock) -> None:
        """``db`` is the top one."""
        self._db = db
        self._clock = clock
        self._read_at = 0
        self.hosts: dict[str, HostResources] = {}  # by compute id; without those that have nothing
        self._answers: OrderedDict[bytes, dict[str, Answer]] = OrderedDict()

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
        self.hosts = await self._db.read(lambda tx: _changed(tx, self.hosts, known))
        columns.pci_free[:] = 0
        for compute_id, number in self.free_devices().items():
            row = columns.row_of_provider.get(compute_id)
            if row is not None:
                columns.pci_free[row] = number

    def free_devices(self) -> Mapping[str, int]:
        """Compute id -> devices that nobody has, of hosts that have any."""
        return {
            compute_id: len(free_devices(host.devices))
            for compute_id, host in self.hosts.items()
            if host.devices
        }

    def reason(self, compute_id: str, wanted: Wanted, limits: Limits) -> str | None:
        """Why a host cannot give what is wanted; None when it can."""
        host = self.hosts.get(compute_id) or HostResources(compute_id=compute_id)
        answers = self._answers_for(wanted)
        found = answers.get(compute_id)
        if found is None or found[:2] != (host.generation, limits):
            found = answers[compute_id] = (host.generation, limits, _reason(host, wanted, limits))
        return found[2]

    def _answers_for(self, wanted: Wanted) -> dict[str, Answer]:
        key = msgspec.msgpack.encode(wanted)
        found = self._answers.get(key)
        if found is None:
            found = self._answers[key] = {}
            if len(self._answers) > KEPT:
                self._answers.popitem(last=False)
        else:
            self._answers.move_to_end(key)
        return found


def _changed(tx: Tx, hosts: dict[str, HostResources], known: dict[str, int]) -> dict[str, HostResources]:
    """The hosts as they are now; those whose generation is as it was are not read."""
    now = host_resources.generations(tx)
    others = [compute_id for compute_id, generation in now.items() if known.get(compute_id) != generation]
    result = {compute_id: host for compute_id, host in hosts.items() if compute_id in now}
    for start in range(0, len(others), CHUNK):
        result.update(host_resources.read_many(tx, others[start : start + CHUNK]))
    return result


def _reason(host: HostResources, wanted: Wanted, limits: Limits) -> str | None:
    try:
        fit_host(host, msgspec.structs.replace(wanted, limits=limits))
    except DoesNotFit as error:
        return str(error)
    return None
