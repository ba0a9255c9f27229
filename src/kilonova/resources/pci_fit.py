"""Choosing PCI devices of a host for what a server asks: pure.

A physical function in use takes its virtual ones with it, and the other way round.  NUMA policies are
Nova's: ``required`` and ``socket`` have devices near the guest's cells, ``legacy`` (or none) near them or of
unknown place, ``preferred`` anywhere, near ones first.  They matter to guests with cells only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import msgspec

from kilonova.model.numa import HostTopology
from kilonova.model.pci import VF, HeldDevice, PciDevice, PciHolding, PciRequest
from kilonova.resources.pci_request import resource_class, trait

MOST_TRIES = 64  # combinations of physical functions, for who asks for these and for virtual ones at once
_NO = frozenset({"", "false", "no", "0"})


def free_devices(devices: Sequence[HeldDevice]) -> list[PciDevice]:
    """Those that may be given away, in the order of their addresses."""
    taken = {each.device.address for each in devices if each.holder is not None}
    parents = {each.device.parent for each in devices if each.holder is not None}
    return sorted(
        (
            each.device
            for each in devices
            if each.reported
            and each.holder is None
            and each.device.parent not in taken
            and each.device.address not in parents
        ),
        key=lambda device: device.address,
    )


def matches(device: PciDevice, spec: Mapping[str, str]) -> bool:
    """Whether a device has all that one alternative of a request names."""
    return all(_has(device, key, value) for key, value in spec.items()) and (
        "remote_managed" in spec or _is_no(device.tags.get("remote_managed"))
    )


def _has(device: PciDevice, key: str, value: str) -> bool:
    if key == "dev_type":
        return device.kind == value
    if key in ("vendor_id", "product_id"):
        return str(getattr(device, key)).lower() == value
    if key == "parent":
        return device.parent == value
    if key == "resource_class":
        return class_of(device) == value
    if key == "traits":
        return set(value.split(",")) <= traits_of(device)
    have = device.tags.get(key)
    if key in ("live_migratable", "remote_managed", "trusted"):
        return _is_no(have) == _is_no(value)
    return have == value


def _is_no(value: str | None) -> bool:
    return value is None or value.strip().lower() in _NO


def class_of(device: PciDevice) -> str:
    """Its resource class in placement: the device spec's, or made of its ids."""
    given = device.tags.get("resource_class")
    return resource_class(given) if given else f"CUSTOM_PCI_{device.vendor_id}_{device.product_id}".upper()


def traits_of(device: PciDevice) -> frozenset[str]:
    return frozenset(trait(each) for each in device.tags.get("traits", "").split(",") if each.strip())


class Nearness:
    """How near devices are to a guest's cells on a host."""

    def __init__(self, host: HostTopology | None, cells: frozenset[int] | None) -> None:
        self.cells = cells
        sockets = {cell.id: cell.socket for cell in host.cells} if host is not None else {}
        self._sockets = sockets
        self._near = {sockets.get(cell) for cell in cells or ()} - {None}

    def rank(self, device: PciDevice, policy: str | None) -> int | None:
        """0 for near, more for farther, None for what the policy does not allow."""
        if self.cells is None:
            return 0
        near = device.numa_cell in self.cells
        if policy == "required":
            return 0 if near else None
        if policy == "socket":
            same = device.numa_cell is not None and self._sockets.get(device.numa_cell) in self._near
            return (0 if near else 1) if same else None
        if near:
            return 0
        if device.numa_cell is None:
            return 1
        return 2 if policy == "preferred" else None


ANYWHERE = Nearness(None, None)


def choose(
    free: Sequence[PciDevice], requests: Sequence[PciRequest], near: Nearness = ANYWHERE
) -> tuple[PciHolding, ...] | None:
    """Devices for all of the requests, none twice; None when there are not enough that suit."""
    suitable = [_suitable(free, request, near) for request in requests]
    if any(len(some) < request.count for some, request in zip(suitable, requests, strict=True)):
        return None
    for left_out in _families(suitable):
        found = _assign(suitable, requests, left_out)
        if found is not None:
            return found
    return None


def _suitable(free: Sequence[PciDevice], request: PciRequest, near: Nearness) -> list[PciDevice]:
    """The devices that one request may have, best first: near ones, then those whose kin are in use."""
    kin = Counter(str(device.parent) for device in free if device.parent)
    ranked: list[tuple[int, int, str, PciDevice]] = []
    for device in free:
        if any(matches(device, spec) for spec in request.specs):
            rank = near.rank(device, request.numa_policy)
            if rank is not None:
                family = device.parent if device.kind == VF else device.address
                ranked.append((rank, kin[str(family)], device.address, device))
    return [device for *_, device in sorted(ranked, key=lambda each: each[:3])]


def _families(suitable: Sequence[Sequence[PciDevice]]) -> Iterator[frozenset[str]]:
    """What to leave out, so that no function is given away both as a whole and in parts.

    For a server that may have physical functions and virtual ones of the same: which functions stay whole is
    tried out.
    """
    among = {device.address: device for some in suitable for device in some}
    parents = {device.parent for device in among.values() if device.parent in among}
    if not parents:
        yield frozenset()
        return
    functions = sorted(str(parent) for parent in parents)
    parts = {
        function: frozenset(each.address for each in among.values() if each.parent == function)
        for function in functions
    }
    tries = 0
    for number in range(len(functions) + 1):
        for whole in combinations(functions, number):
            yield frozenset().union(
                *(parts[function] if function in whole else (function,) for function in functions)
            )
            tries += 1
            if tries >= MOST_TRIES:
                return


def _assign(
    suitable: Sequence[Sequence[PciDevice]], requests: Sequence[PciRequest], left_out: frozenset[str]
) -> tuple[PciHolding, ...] | None:
    """A matching of units with devices: each unit takes its best, and moves others to their next best."""
    choices = [[device for device in some if device.address not in left_out] for some in suitable]
    owner: dict[str, tuple[int, int]] = {}
    for number, request in enumerate(requests):
        for unit in range(request.count):
            if not _augment(choices, owner, (number, unit), set()):
                return None
    held: dict[int, list[str]] = {}
    for address, (number, _) in owner.items():
        held.setdefault(number, []).append(address)
    return tuple(
        PciHolding(request_id=request.id, addresses=tuple(sorted(held.get(number, ()))))
        for number, request in enumerate(requests)
    )


def _augment(
    choices: Sequence[Sequence[PciDevice]],
    owner: dict[str, tuple[int, int]],
    unit: tuple[int, int],
    seen: set[str],
) -> bool:
    candidates = choices[unit[0]]
    for device in candidates:
        if device.address not in owner:
            owner[device.address] = unit
            return True
    for device in candidates:
        address = device.address
        if address in seen or owner[address][0] == unit[0]:
            continue
        seen.add(address)
        if _augment(choices, owner, owner[address], seen):
            owner[address] = unit
            return True
    return False


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Free devices that are alike, as Nova shows them (``pci_device_pools``)."""

    vendor_id: str
    product_id: str
    kind: str
    numa_cell: int | None
    tags: tuple[tuple[str, str], ...]
    count: int


def pools(devices: Sequence[HeldDevice]) -> tuple[Pool, ...]:
    """How many of each sort are free; sorts without any are not there."""
    counted = Counter(
        (each.vendor_id, each.product_id, each.kind, each.numa_cell, tuple(sorted(each.tags.items())))
        for each in free_devices(devices)
    )
    ordered = sorted(
        counted.items(), key=lambda item: (item[0][:3], item[0][3] is None, item[0][3] or 0, item[0][4])
    )
    return tuple(
        Pool(vendor_id=key[0], product_id=key[1], kind=key[2], numa_cell=key[3], tags=key[4], count=count)
        for key, count in ordered
    )


def wanted_cells(free: Sequence[PciDevice], requests: Sequence[PciRequest]) -> frozenset[int]:
    """The host cells that have a device that suits some request."""
    return frozenset(
        device.numa_cell
        for device in free
        if device.numa_cell is not None
        and any(matches(device, spec) for request in requests for spec in request.specs)
    )
