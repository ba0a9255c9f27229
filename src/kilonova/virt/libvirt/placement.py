"""Where on this host a guest runs: its cells, CPUs, pages and devices, as they were claimed."""

from __future__ import annotations

import msgspec

from kilonova.errors import HostFault
from kilonova.model.cpus import parse_cpus
from kilonova.model.numa import GuestCell, GuestTopology, HostCell, HostTopology
from kilonova.resources.numa_request import wanted_topology
from kilonova.resources.wishes import Wishes
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt.host_topology import CpuSets

PCI_ALIAS = "pci_passthrough:alias"


class PlacedCell(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's cell; ``pins``: guest CPU -> the host's CPUs that it may run on."""

    id: int
    host_cell: int
    memory_mib: int
    pins: dict[int, tuple[int, ...]]
    large_page_kib: int | None = None  # None: the host's ordinary pages


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """``floating``: the host's CPUs of a guest without cells, None for all.

    ``emulator``: those of QEMU's own threads; ``realtime``: guest CPUs that the host's scheduler puts first.
    """

    cells: tuple[PlacedCell, ...] = ()
    floating: frozenset[int] | None = None
    emulator: frozenset[int] = frozenset()
    realtime: frozenset[int] = frozenset()
    locked: bool = False


def placement(guest: GuestSpec, host: HostTopology | None, sets: CpuSets) -> Placement:
    """Raises HostFault for what was not claimed here, or cannot be on this host."""
    properties = guest.image.properties if guest.image else {}
    if guest.numa is None:
        _check_nothing_is_missing(guest)
        configured = sets.shared is not None or sets.dedicated is not None
        return Placement(floating=(sets.shared or frozenset()) if configured else None)
    if host is None:
        raise HostFault(f"Guest {guest.uuid} has NUMA cells, and libvirt knows of none on this host.")
    known = {cell.id: cell for cell in host.cells}
    cells = tuple(_placed(guest, cell, known) for cell in guest.numa.cells)
    realtime = parse_cpus(guest.numa.realtime_mask) if guest.numa.realtime_mask else frozenset()
    return Placement(
        cells=cells,
        emulator=_emulator(guest.numa, cells, sets),
        realtime=realtime,
        locked=bool(realtime) or Wishes(guest.flavor, properties).flag("locked_memory"),
    )


def _check_nothing_is_missing(guest: GuestSpec) -> None:
    """A guest without what its flavor promises is worse than none."""
    properties = guest.image.properties if guest.image else {}
    if wanted_topology(guest.flavor, properties) is not None:
        raise HostFault(
            f"Guest {guest.uuid} wants NUMA cells of its own, and none were claimed on this host."
        )


def check_devices(guest: GuestSpec) -> None:
    """Raises HostFault for a guest that wants devices and was given none."""
    if guest.flavor.extra_specs.get(PCI_ALIAS, "").strip() and not guest.pci:
        raise HostFault(f"Guest {guest.uuid} wants PCI devices, and none were claimed on this host.")


def _placed(guest: GuestSpec, cell: GuestCell, known: dict[int, HostCell]) -> PlacedCell:
    host = known.get(-1 if cell.host_cell is None else cell.host_cell)
    if host is None:
        raise HostFault(
            f"Guest {guest.uuid} was given the NUMA cell {cell.host_cell}, which this host does not have."
        )
    pins: dict[int, tuple[int, ...]] = {
        cpu: (cell.pinning[cpu],) for cpu in cell.dedicated if cpu in cell.pinning
    }
    pins |= {cpu: host.shared for cpu in cell.shared}
    loose = sorted(cpu for cpu in cell.cpus if not pins.get(cpu))
    if loose:
        raise HostFault(
            f"Guest {guest.uuid} has no CPUs of this host for its CPUs {', '.join(map(str, loose))}: the "
            f"NUMA cell {host.id} has none that are shared, or they were not claimed."
        )
    ordinary = min((page.size_kib for page in host.pages), default=4)
    size = cell.page_size_kib
    return PlacedCell(
        id=cell.id,
        host_cell=host.id,
        memory_mib=cell.memory_mib,
        pins=dict(sorted(pins.items())),
        large_page_kib=size if size is not None and size > ordinary else None,
    )


def _emulator(numa: GuestTopology, cells: tuple[PlacedCell, ...], sets: CpuSets) -> frozenset[int]:
    """Isolated on CPUs of their own, with everybody's floating ones, or else with the guest's own."""
    own = frozenset(cpu for cell in numa.cells for cpu in cell.emulator)
    if numa.emulator_threads == "isolate" and own:
        return own
    if numa.emulator_threads == "share" and sets.shared:
        return sets.shared
    return frozenset(cpu for cell in cells for pin in cell.pins.values() for cpu in pin)
