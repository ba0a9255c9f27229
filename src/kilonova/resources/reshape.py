"""Which allocations follow when a host's inventories have moved between its providers.

That is so when its agent starts with other options or another driver than before: a class is told by another
provider of the tree, or devices have become providers, or are none any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from kilonova.errors import Conflict
from kilonova.model.host import HostReport, Inventory

Amounts = dict[str, dict[str, int]]
"""Provider -> resource class -> amount."""

PROVIDER_TAG = "rp_uuid"
"""Of a PCI device that is in placement: its provider."""


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What placement knows of a host's tree.

    ``held``: consumer -> all that it holds, also of others' providers; ``of_devices``: the providers that
    stand for PCI devices.
    """

    inventories: dict[str, dict[str, Inventory]]
    held: dict[str, Amounts]
    of_devices: frozenset[str] = frozenset()


class Reshape(msgspec.Struct, frozen=True, kw_only=True):
    """Provider -> all that it has meanwhile; consumer -> all that it holds."""

    inventories: dict[str, dict[str, Inventory]]
    allocations: dict[str, Amounts]


Devices = Mapping[str, tuple[str, ...]]
"""Consumer -> addresses of the host's devices that it has."""


def reshape(before: Before, report: HostReport, devices: Devices) -> Reshape | None:
    """None when nothing has to follow anything.  Raises Conflict when there is no room for what would."""
    work = _Work(before, report, devices)
    work.move_classes()
    work.leave_devices()
    work.enter_devices()
    return work.result()


class _Work:
    def __init__(self, before: Before, report: HostReport, devices: Devices) -> None:
        self._before = before
        self._devices = devices
        self._report = report
        self._wanted = {each.uuid: each.inventories for each in report.tree}
        self._held = {
            consumer: {provider: dict(amounts) for provider, amounts in held.items()}
            for consumer, held in before.held.items()
        }

    # ---- the three ways ----

    def move_classes(self) -> None:
        """What a provider has no more, and others of the tree have."""
        for provider, name in self._gone():
            targets = [uuid for uuid, stock in self._wanted.items() if name in stock]
            if not targets:
                continue  # nobody has it: the report itself will be refused, or told of
            for consumer in sorted(self._held):
                amount = self._held[consumer].get(provider, {}).get(name, 0)
                if amount:
                    self._set(consumer, provider, name, 0)
                    self._put(consumer, targets, name, amount)

    def leave_devices(self) -> None:
        """Providers of devices that are gone are nothing to those who have such devices."""
        for consumer in self._devices:
            for provider in sorted(self._before.of_devices - self._wanted.keys()):
                self._held.get(consumer, {}).pop(provider, None)

    def enter_devices(self) -> None:
        """Devices that servers have are booked where they are providers."""
        provider_of = {
            device.address: device.tags[PROVIDER_TAG]
            for device in self._report.pci_devices
            if PROVIDER_TAG in device.tags
        }
        for consumer, addresses in sorted(self._devices.items()):
            counts = Counter(provider_of[each] for each in addresses if each in provider_of)
            for provider, count in sorted(counts.items()):
                (name,) = self._wanted[provider]
                held = self._held.get(consumer, {})
                if held and held.get(provider, {}).get(name, 0) < count:
                    self._set(consumer, provider, name, count)

    def result(self) -> Reshape | None:
        changed = {who: held for who, held in self._held.items() if held != self._before.held[who]}
        if not changed:
            return None
        touched = {provider for held in changed.values() for provider in held}
        touched |= {provider for who in changed for provider in self._before.held[who]}
        known = touched & (self._before.inventories.keys() | self._wanted.keys())
        return Reshape(
            inventories={provider: self._meanwhile(provider) for provider in sorted(known)},
            allocations=changed,
        )

    # ---- inside ----

    def _gone(self) -> Iterator[tuple[str, str]]:
        for provider in sorted(self._before.inventories):
            for name in sorted(self._before.inventories[provider]):
                if name not in self._wanted.get(provider, {}):
                    yield provider, name

    def _set(self, consumer: str, provider: str, name: str, amount: int) -> None:
        amounts = self._held[consumer].setdefault(provider, {})
        amounts[name] = amount
        if not amount:
            del amounts[name]
        if not amounts:
            del self._held[consumer][provider]

    def _put(self, consumer: str, targets: list[str], name: str, amount: int) -> None:
        """On one provider if one has room, or else on several."""
        rooms = {target: self._room(target, name) for target in targets}
        whole = [target for target in targets if rooms[target] >= amount]
        for target in whole[:1] or targets:
            part = min(amount, max(0, rooms[target]))
            if part:
                already = self._held[consumer].get(target, {}).get(name, 0)
                self._set(consumer, target, name, already + part)
                amount -= part
        if amount:
            raise Conflict(
                f"{name} of the host '{self._report.host}' has moved to other resource providers, and there "
                f"is no room for {amount} that {consumer} holds: go back to the old configuration, or move "
                "servers away."
            )

    def _room(self, provider: str, name: str) -> int:
        taken = sum(held.get(provider, {}).get(name, 0) for held in self._held.values())
        return self._stock(provider, name).capacity - taken

    def _stock(self, provider: str, name: str) -> Inventory:
        known = self._before.inventories.get(provider, {})
        return known[name] if name in known else self._wanted[provider][name]

    def _meanwhile(self, provider: str) -> dict[str, Inventory]:
        """What it has had, without what has moved away, and what is new."""
        old, new = self._before.inventories.get(provider, {}), self._wanted.get(provider, {})
        held = {name for each in self._held.values() for name in each.get(provider, {})}
        kept = {name: each for name, each in old.items() if name in new or name in held}
        return {**_without(new, old), **kept}


def _without(new: Mapping[str, Inventory], old: Mapping[str, Inventory]) -> dict[str, Inventory]:
    return {name: each for name, each in new.items() if name not in old}
