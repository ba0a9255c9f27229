"""Fitting a guest's NUMA cells onto a host's: pure, and quick enough to ask for every host.

Each cell of the guest goes onto a cell of the host of its own.  What one takes there does not depend on
where the others go, so each pair is looked at once, and the assignment is searched by sets of host cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from kilonova.model.cpus import format_cpus
from kilonova.model.host_resources import Limits
from kilonova.model.numa import GuestCell, GuestTopology, HostCell, HostTopology, Pages
from kilonova.resources.cpu_pinning import pin

KIB_IN_MIB = 1024


NO_LIMITS = Limits()


def read_limits(given: Limits | Mapping[str, float | None] | None) -> Limits:
    """Limits as a record, a mapping with the same names, or nothing.  Raises msgspec.ValidationError."""
    if given is None:
        return NO_LIMITS
    return given if isinstance(given, Limits) else msgspec.convert(dict(given), Limits)


class CellUse(msgspec.Struct, frozen=True, kw_only=True):
    """What guests hold of one host cell."""

    shared: int = 0  # floating CPUs
    pinned: frozenset[int] = frozenset()  # host CPUs, with emulators' and idle siblings
    memory_mib: int = 0  # of guests that did not ask for a page size
    pages: dict[int, int] = {}  # size in KiB -> number


UNUSED = CellUse()
Use = dict[int, CellUse]
"""Host cell -> what is held there; cells that nobody uses may be missing."""


def use_of(guests: Iterable[GuestTopology]) -> Use:
    """What these (fitted) guests hold together."""
    result: Use = {}
    for guest in guests:
        result = added(result, guest)
    return result


def added(use: Use, guest: GuestTopology) -> Use:
    """With one guest more."""
    result = dict(use)
    for cell in guest.cells:
        if cell.host_cell is not None:
            before = result.get(cell.host_cell, UNUSED)
            result[cell.host_cell] = _changed(before, cell, 1, before.pinned | held_cpus(cell))
    return result


def removed(use: Use, guest: GuestTopology) -> Use:
    """With one guest less; the reverse of ``added``."""
    result = dict(use)
    for cell in guest.cells:
        if cell.host_cell is not None:
            before = result.get(cell.host_cell, UNUSED)
            after = _changed(before, cell, -1, before.pinned - held_cpus(cell))
            result[cell.host_cell] = after
            if after == UNUSED:
                del result[cell.host_cell]
    return result


def _changed(before: CellUse, cell: GuestCell, sign: int, pinned: frozenset[int]) -> CellUse:
    pages, memory = before.pages, before.memory_mib
    if cell.page_size_kib is None:
        memory += sign * cell.memory_mib
    else:
        size = cell.page_size_kib
        number = pages.get(size, 0) + sign * pages_needed(cell, size)
        pages = {**{other: count for other, count in pages.items() if other != size}}
        if number:
            pages[size] = number
    return CellUse(
        shared=before.shared + sign * len(cell.shared), pinned=pinned, memory_mib=memory, pages=pages
    )


def held_cpus(cell: GuestCell) -> frozenset[int]:
    """The host CPUs that nobody else may have."""
    return frozenset((*cell.pinning.values(), *cell.emulator, *cell.reserved))


def pages_needed(cell: GuestCell, size_kib: int) -> int:
    return -(-cell.memory_mib * KIB_IN_MIB // size_kib)


class DoesNotFit(Exception):
    """Why a cell of the guest cannot be on a cell of the host, or the guest not on the host."""


Acceptable = Callable[[frozenset[int]], bool]
"""Whether a set of host cells would do for what else the guest needs: its devices, its networks."""


def fit(
    host: HostTopology,
    use: Use,
    wanted: GuestTopology,
    limits: Limits = NO_LIMITS,
    *,
    order: tuple[int, ...] | None = None,
    acceptable: Acceptable = lambda cells: True,
) -> GuestTopology:
    """The guest's cells with their places.

    ``order`` has the ids of host cells, the ones to be tried first before the others; see `preferred`.
    Raises DoesNotFit with the reason.
    """
    cells = {cell.id: cell for cell in host.cells}
    ids = tuple(cells) if order is None else order
    if len(wanted.cells) > len(cells):
        raise DoesNotFit(f"the guest has {len(wanted.cells)} NUMA cells, the host {len(cells)}")
    places: list[dict[int, GuestCell]] = []
    for number, cell in enumerate(wanted.cells):
        extra = 1 if number == 0 and wanted.emulator_threads == "isolate" else 0
        places.append(_places(cells, ids, use, cell, limits, extra))
    search = _Search(places, acceptable)
    chosen = search.run(0, frozenset())
    if chosen is None:
        raise DoesNotFit(
            "no cells of the host that have room suit the devices and networks too"
            if search.refused
            else "the guest's NUMA cells need more of the host's cells than have room"
        )
    return msgspec.structs.replace(wanted, cells=tuple(chosen))


def _places(
    cells: Mapping[int, HostCell],
    ids: tuple[int, ...],
    use: Use,
    cell: GuestCell,
    limits: Limits,
    emulator: int,
) -> dict[int, GuestCell]:
    """Host cell -> the guest's cell as it would be there, in order.  Raises DoesNotFit when there is none."""
    found: dict[int, GuestCell] = {}
    reasons: list[str] = []
    for each in ids:
        try:
            found[each] = fit_cell(cells[each], use.get(each, UNUSED), cell, limits, emulator)
        except DoesNotFit as error:
            reasons.append(f"cell {each}: {error}")
    if not found:
        raise DoesNotFit(f"no room for the guest's NUMA cell {cell.id}: {', '.join(reasons)}")
    return found


class _Search:
    """The first assignment in order, looking at no set of host cells twice."""

    def __init__(self, places: list[dict[int, GuestCell]], acceptable: Acceptable) -> None:
        self._places = places
        self._acceptable = acceptable
        self._hopeless: set[frozenset[int]] = set()  # how many guest cells are placed follows from its size
        self.refused = False  # whether only devices or networks stood against an assignment

    def run(self, number: int, taken: frozenset[int]) -> list[GuestCell] | None:
        if taken in self._hopeless:
            return None
        if number == len(self._places):
            if self._acceptable(taken):
                return []
            self.refused = True
        else:
            for each, cell in self._places[number].items():
                if each not in taken:
                    rest = self.run(number + 1, taken | {each})
                    if rest is not None:
                        return [cell, *rest]
        self._hopeless.add(taken)
        return None


def fit_cell(host: HostCell, use: CellUse, wanted: GuestCell, limits: Limits, emulator: int) -> GuestCell:
    """The guest's cell on this host cell, with ``emulator`` CPUs of its own for the emulator.

    A cell never has more of anything than the whole host cell, whatever the ratios say.  Raises DoesNotFit.
    """
    size = _fit_memory(host, use, wanted, limits)
    _fit_shared(host, use, wanted, limits)
    needed = len(wanted.dedicated)
    if not needed and not emulator:
        return msgspec.structs.replace(wanted, host_cell=host.id, page_size_kib=size)
    free = frozenset(host.dedicated) - use.pinned
    ours = frozenset((*host.shared, *host.dedicated))  # threads that no guest may have disturb nobody
    cores = tuple(tuple(cpu for cpu in core if cpu in ours) for core in host.siblings)
    pins = pin(free, cores, needed + emulator, wanted.thread_policy)
    if pins is None:
        suit = f" in cores that suit the policy '{wanted.thread_policy}'" if wanted.thread_policy else ""
        raise DoesNotFit(
            f"{needed + emulator} dedicated CPUs wanted{suit}, free: {format_cpus(free) or 'none'}"
        )
    return msgspec.structs.replace(
        wanted,
        host_cell=host.id,
        page_size_kib=size,
        pinning=dict(zip(wanted.dedicated, pins.cpus, strict=False)),
        emulator=pins.cpus[needed:],
        reserved=pins.idle,
    )


def _fit_shared(host: HostCell, use: CellUse, wanted: GuestCell, limits: Limits) -> None:
    number = len(wanted.shared)
    if not number:
        return
    there = len(frozenset(host.shared) - use.pinned)
    if number > there:
        raise DoesNotFit(f"{number} shared CPUs wanted, {there} there")
    if limits.cpu_ratio is not None and use.shared + number > there * limits.cpu_ratio:
        raise DoesNotFit(f"{number} shared CPUs wanted, {use.shared} of {there} x {limits.cpu_ratio} in use")


def _fit_memory(host: HostCell, use: CellUse, wanted: GuestCell, limits: Limits) -> int | None:
    """The page size that it gets, None for any.  Raises DoesNotFit."""
    if wanted.page_size is not None:
        return _fit_pages(host, use, wanted)
    there, used = _ordinary(host), use.memory_mib + _small_mib(host, use)
    if wanted.memory_mib > there:
        raise DoesNotFit(f"{wanted.memory_mib} MiB wanted, {there} there")
    if limits.ram_ratio is not None and used + wanted.memory_mib > there * limits.ram_ratio:
        raise DoesNotFit(f"{wanted.memory_mib} MiB wanted, {used} of {there} x {limits.ram_ratio} in use")
    return None


def _smallest(host: HostCell) -> int | None:
    return min((pages.size_kib for pages in host.pages), default=None)


def _ordinary(host: HostCell) -> int:
    """The memory in MiB that is not set aside as large pages."""
    small = _smallest(host)
    large = sum(pages.total * pages.size_kib for pages in host.pages if pages.size_kib != small)
    return host.memory_mib - large // KIB_IN_MIB


def _small_mib(host: HostCell, use: CellUse) -> int:
    small = _smallest(host)
    return 0 if small is None else use.pages.get(small, 0) * small // KIB_IN_MIB


def _fit_pages(host: HostCell, use: CellUse, wanted: GuestCell) -> int:
    """The size of pages, of those asked for, of which there are enough: the largest.  Raises DoesNotFit.

    Pages are never over-committed, and hold whole guests: a guest's memory must be a multiple.
    """
    small = _smallest(host)
    sizes = [each for each in host.pages if _is_asked(each, wanted.page_size, small)]
    if not sizes:
        raise DoesNotFit(f"no pages of the size '{wanted.page_size}'")
    for each in sorted(sizes, key=lambda pages: -pages.size_kib):
        if wanted.memory_mib * KIB_IN_MIB % each.size_kib:
            continue
        free = each.total - each.reserved - use.pages.get(each.size_kib, 0)
        if each.size_kib == small:
            rest = (_ordinary(host) - use.memory_mib) * KIB_IN_MIB // each.size_kib
            free = min(free, rest - use.pages.get(each.size_kib, 0))
        if pages_needed(wanted, each.size_kib) <= free:
            return each.size_kib
    raise DoesNotFit(
        f"{wanted.memory_mib} MiB in pages of the size '{wanted.page_size}' wanted, too few are free"
    )


def _is_asked(pages: Pages, word: str | None, small: int | None) -> bool:
    if word == "small":
        return pages.size_kib == small
    if word == "large":
        return pages.size_kib != small
    return word == "any" or str(pages.size_kib) == word


def preferred(
    host: HostTopology,
    use: Use,
    wanted: GuestTopology,
    *,
    packing: bool,
    first: frozenset[int] = frozenset(),
    last: frozenset[int] = frozenset(),
) -> tuple[int, ...]:
    """The ids of the host's cells in the order in which to try them.

    ``packing``: those that are used most come first, else those used least; it is
    [compute]packing_host_numa_cells_allocation_strategy.  Before all come ``first`` (they have devices that
    the guest wants), after all ``last`` (they have devices that others may want).
    """
    dedicated = any(cell.dedicated for cell in wanted.cells)

    def key(cell: HostCell) -> tuple[int, bool, float, float, int]:
        held = use.get(cell.id, UNUSED)
        cpus = len(frozenset(cell.dedicated) - held.pinned) if dedicated else len(cell.shared) - held.shared
        paged = sum(size * number for size, number in held.pages.items()) // KIB_IN_MIB
        memory = cell.memory_mib - held.memory_mib - paged
        sign = 1 if packing else -1
        return (cell.id not in first, cell.id in last, sign * cpus, sign * memory, cell.id)

    return tuple(cell.id for cell in sorted(host.cells, key=key))
