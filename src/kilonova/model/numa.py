"""NUMA: the cells of a host, and the cells that a guest is given on them.

Memory is in MiB, page sizes in KiB.  CPU numbers are the host's logical ones, or a guest's from 0.
"""

from __future__ import annotations

import msgspec


class Pages(msgspec.Struct, frozen=True, kw_only=True):
    """The memory pages of one size in one cell."""

    size_kib: int
    total: int
    reserved: int = 0  # [DEFAULT]reserved_huge_pages


class HostCell(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA cell of a host: what guests may have of it.

    ``shared`` and ``dedicated`` are the host's CPUs for floating and for pinned guest CPUs
    (``[compute]cpu_shared_set`` and ``cpu_dedicated_set``); with neither set, all are
    shared and none is dedicated.
    """

    id: int
    shared: tuple[int, ...]
    dedicated: tuple[int, ...]
    memory_mib: int
    siblings: tuple[tuple[int, ...], ...] = ()  # sets of threads of one core; empty: no hyper-threading
    pages: tuple[Pages, ...] = ()
    socket: int | None = None
    distances: tuple[int, ...] = ()  # ACPI SLIT, to each cell in order; empty: unknown
    physical_networks: tuple[str, ...] = ()  # [neutron_physnet_NAME]numa_nodes
    tunnels: bool = False  # [neutron_tunnel]numa_nodes


class HostTopology(msgspec.Struct, frozen=True, kw_only=True):
    cells: tuple[HostCell, ...]


class GuestCell(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA cell of a guest: as wanted, and, once it is fitted, where it is.

    ``shared`` and ``dedicated`` are the guest's CPUs in this cell.  ``page_size_kib`` as wanted may be one of
    the words ``small``, ``large``, ``any``; as fitted it is a size, or None for whatever the host uses.
    """

    id: int
    shared: tuple[int, ...] = ()
    dedicated: tuple[int, ...] = ()
    memory_mib: int
    page_size: str | None = None  # as wanted
    page_size_kib: int | None = None  # as fitted
    thread_policy: str | None = None  # prefer, isolate, require
    host_cell: int | None = None  # as fitted
    pinning: dict[int, int] = {}  # guest CPU -> host CPU, of the dedicated ones
    emulator: tuple[int, ...] = ()  # host CPUs of its emulator threads alone, when they are isolated
    reserved: tuple[int, ...] = ()  # host CPUs that nobody may have while it runs: idle siblings

    @property
    def cpus(self) -> tuple[int, ...]:
        """All of the guest's CPUs in this cell."""
        return tuple(sorted((*self.shared, *self.dedicated)))


class GuestTopology(msgspec.Struct, frozen=True, kw_only=True):
    """``emulator_threads`` is None (with the guest's CPUs), ``share`` or ``isolate``; ``realtime_mask`` has
    the guest's CPUs that are real-time, as ``1-3``.
    """

    cells: tuple[GuestCell, ...]
    emulator_threads: str | None = None
    realtime_mask: str | None = None
