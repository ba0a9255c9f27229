"""What servers hold of a host that the host does not have (any more), or that two of them hold: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kilonova.model.cpus import format_cpus
from kilonova.model.host_resources import HostResources
from kilonova.model.numa import HostCell
from kilonova.resources.numa_fit import CellUse, held_cpus, use_of


def shortfalls(host: HostResources) -> list[str]:
    """One line each; empty for a host that has all that was given away, once."""
    use = use_of(host.guests)
    cells = {cell.id: cell for cell in host.topology.cells} if host.topology is not None else {}
    found = list(_doubled(host))
    for number, held in sorted(use.items()):
        cell = cells.get(number)
        if cell is None:
            found.append(f"servers are in the NUMA cell {number}, which the host does not report")
        else:
            found += _beyond(cell, held)
    found += [
        f"{each.holder} holds the PCI device {each.device.address}, which the host does not report any more"
        for each in host.devices
        if not each.reported
    ]
    return found


def _doubled(host: HostResources) -> Iterator[str]:
    pinned = Counter(cpu for guest in host.guests for cell in guest.cells for cpu in held_cpus(cell))
    doubled = [cpu for cpu, number in pinned.items() if number > 1]
    if doubled:
        yield f"the CPUs {format_cpus(doubled)} are pinned by several servers"


def _beyond(cell: HostCell, held: CellUse) -> Iterator[str]:
    lost = held.pinned - frozenset(cell.dedicated)
    if lost:
        yield f"servers are pinned to the CPUs {format_cpus(lost)}, which cell {cell.id} has not for pinning"
    if held.shared and not cell.shared:
        yield f"servers share CPUs of cell {cell.id}, which has none for that"
    there = {pages.size_kib: pages.total - pages.reserved for pages in cell.pages}
    for size, number in sorted(held.pages.items()):
        most = there.get(size, 0)
        if number > most:
            yield f"servers hold {number} pages of {size} KiB in cell {cell.id}, which has {most}"
