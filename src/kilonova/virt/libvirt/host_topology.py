"""The NUMA cells of this host, as libvirt describes them and as guests may have them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping

import msgspec

from kilonova.errors import Failed
from kilonova.model.cpus import format_cpus, parse_cpus
from kilonova.model.numa import HostCell, HostTopology, Pages

KIB = {"B": 1 / 1024, "bytes": 1 / 1024, "KB": 1000 / 1024, "KiB": 1, "MiB": 1024, "GiB": 1 << 20}


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A cell as it is, before anything is set aside; ``pages`` by size in KiB."""

    id: int
    memory_kib: int
    cpus: tuple[int, ...]
    cores: tuple[frozenset[int], ...] = ()  # sets of sibling threads
    socket: int | None = None
    pages: dict[int, int] = {}
    distances: dict[int, int] = {}  # to which cell, how far


class CpuSets(msgspec.Struct, frozen=True, kw_only=True):
    """``[compute]cpu_shared_set`` and ``cpu_dedicated_set``; None where an operator has said nothing."""

    shared: frozenset[int] | None = None
    dedicated: frozenset[int] | None = None

    def split(self, online: frozenset[int]) -> tuple[frozenset[int], frozenset[int]]:
        """CPUs for floating guest CPUs, and for pinned ones.

        Nova's rule: with neither set all are shared; who sets only the dedicated ones has no shared ones.
        Raises Failed for sets that overlap or name CPUs that are not there.
        """
        for name, cpus in (("cpu_shared_set", self.shared), ("cpu_dedicated_set", self.dedicated)):
            gone = (cpus or frozenset()) - online
            if gone:
                raise Failed(
                    f"[compute]{name} names CPUs that are not online on this host: {format_cpus(gone)}; "
                    f"it has {format_cpus(online)}."
                )
        both = (self.shared or frozenset()) & (self.dedicated or frozenset())
        if both:
            raise Failed(
                f"[compute]cpu_shared_set and cpu_dedicated_set both have the CPUs {format_cpus(both)}: "
                "a CPU is for one of them."
            )
        if self.shared is None and self.dedicated is None:
            return online, frozenset()
        return self.shared or frozenset(), self.dedicated or frozenset()


class NetworkCells(msgspec.Struct, frozen=True, kw_only=True):
    """Where the cards of networks are: ``[neutron_physnet_NAME]`` and ``[neutron_tunnel]numa_nodes``."""

    physical: dict[str, frozenset[int]] = {}
    tunnels: frozenset[int] = frozenset()


def read_cells(root: ET.Element) -> list[Cell]:
    """Of libvirt's capabilities; empty when libvirt does not know of cells."""
    return [_cell(each) for each in root.iterfind("host/topology/cells/cell")]


def _cell(cell: ET.Element) -> Cell:
    cpus = cell.findall("cpus/cpu")
    sockets = [int(cpu.get("socket_id", "")) for cpu in cpus if cpu.get("socket_id")]
    return Cell(
        id=int(cell.get("id", "0")),
        memory_kib=_kib(cell.find("memory")),
        cpus=tuple(sorted(int(cpu.get("id", "0")) for cpu in cpus)),
        cores=tuple(
            sorted(
                {parse_cpus(text) for cpu in cpus if (text := cpu.get("siblings"))}, key=lambda one: min(one)
            )
        ),
        socket=sockets[0] if sockets else None,
        pages={
            round(int(page.get("size", "0")) * KIB[page.get("unit", "KiB")]): int(page.text or 0)
            for page in cell.iterfind("pages")
        },
        distances={
            int(other.get("id", "0")): int(other.get("value", "0"))
            for other in cell.iterfind("distances/sibling")
        },
    )


def _kib(memory: ET.Element | None) -> int:
    return 0 if memory is None else int(int(memory.text or 0) * KIB[memory.get("unit", "KiB")])


def online_cpus(cells: Iterable[Cell], online: frozenset[int]) -> frozenset[int]:
    """Those of some cell that are on; libvirt lists others, too."""
    return online & {cpu for cell in cells for cpu in cell.cpus}


def host_topology(
    cells: list[Cell],
    online: frozenset[int],
    sets: CpuSets,
    reserved: Mapping[tuple[int, int], int],
    networks: NetworkCells,
) -> HostTopology | None:
    """What guests may have.  ``reserved``: (cell, page size in KiB) -> pages that are not for guests.

    None on a host without cells.  Raises Failed for options that name what is not there.
    """
    if not cells:
        return None
    _check_reserved(cells, reserved)
    _check_networks(cells, networks)
    shared, dedicated = sets.split(online_cpus(cells, online))
    order = [cell.id for cell in cells]
    return HostTopology(
        cells=tuple(
            HostCell(
                id=cell.id,
                shared=tuple(cpu for cpu in cell.cpus if cpu in shared),
                dedicated=tuple(cpu for cpu in cell.cpus if cpu in dedicated),
                memory_mib=cell.memory_kib // 1024,
                siblings=_siblings(cell, shared | dedicated),
                pages=tuple(
                    Pages(size_kib=size, total=total, reserved=reserved.get((cell.id, size), 0))
                    for size, total in sorted(cell.pages.items())
                ),
                socket=cell.socket,
                distances=tuple(cell.distances[other] for other in order)
                if len(cell.distances) == len(order)
                else (),
                physical_networks=tuple(
                    sorted(name for name, where in networks.physical.items() if cell.id in where)
                ),
                tunnels=cell.id in networks.tunnels,
            )
            for cell in cells
        )
    )


def _siblings(cell: Cell, usable: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    """Threads of one core, as far as guests may have them; a core of one thread has no siblings."""
    cores = (tuple(sorted(core & usable)) for core in cell.cores)
    return tuple(core for core in cores if len(core) > 1)


def _check_reserved(cells: list[Cell], reserved: Mapping[tuple[int, int], int]) -> None:
    known = {cell.id: cell.pages for cell in cells}
    for (cell, size), count in reserved.items():
        if size not in known.get(cell, {}):
            raise Failed(
                f"[DEFAULT]reserved_huge_pages reserves pages of {size} KiB in the cell {cell}, which this "
                f"host does not have: it has {_shown(known)}."
            )
        if count > known[cell][size]:
            raise Failed(
                f"[DEFAULT]reserved_huge_pages reserves {count} pages of {size} KiB in the NUMA cell {cell}, "
                f"which has {known[cell][size]}."
            )


def _shown(known: Mapping[int, Mapping[int, int]]) -> str:
    return "; ".join(
        f"in cell {cell} {', '.join(map(str, sorted(pages))) or 'none'}"
        for cell, pages in sorted(known.items())
    )


def _check_networks(cells: list[Cell], networks: NetworkCells) -> None:
    known = {cell.id for cell in cells}
    named = {f"neutron_physnet_{name}": where for name, where in networks.physical.items()}
    for group, where in {**named, "neutron_tunnel": networks.tunnels}.items():
        if where - known:
            raise Failed(
                f"[{group}]numa_nodes names the NUMA cells {format_cpus(where - known)}, and this host has "
                f"{format_cpus(known)}."
            )
