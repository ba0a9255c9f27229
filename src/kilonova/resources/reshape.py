"""Which allocations follow when a host's inventories have moved between its providers.

That is so when its agent starts with other options or another driver than before: a class is told by another
provider of the tree, or devices have become providers, or are none any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from kilonova.errors import Conflict
from kilonova.model.host import HostReport, Inventory

Amounts = dict[str, dict[str, int]]
"""Provider -> resource class -> amount."""

PROVIDER_TAG = "rp_uuid"
"""Of a PCI device that is in placement: its provider."""


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """What placement knows of a host: inventories, what of them is used, and PCI devices' providers."""

    inventories: dict[str, dict[str, Inventory]]
    used: Amounts = {}
    of_devices: frozenset[str] = frozenset()


class Reshape(msgspec.Struct, frozen=True, kw_only=True):
    """Provider -> all that it has meanwhile; consumer -> all that it holds."""

    inventories: dict[str, dict[str, Inventory]]
    allocations: dict[str, Amounts]


class Following:
    """What has to follow the report of a host.

    ``devices``: consumer -> addresses of the host's PCI devices that it has.
    """

    def __init__(self, report: HostReport, devices: Mapping[str, tuple[str, ...]]) -> None:
        self.report = report
        self.devices = devices
        self.wanted = {each.uuid: each.inventories for each in report.tree}
        self.provider_of = {
            device.address: device.tags[PROVIDER_TAG]
            for device in report.pci_devices
            if PROVIDER_TAG in device.tags
        }

    def gone(self, tree: Tree) -> list[tuple[str, str]]:
        """Providers and classes that are used and have moved: others of the tree have the class."""
        return [
            (provider, name)
            for provider, stock in sorted(tree.inventories.items())
            for name in sorted(stock)
            if tree.used.get(provider, {}).get(name)
            and name not in self.wanted.get(provider, {})
            and any(name in others for others in self.wanted.values())
        ]

    def owners(self, tree: Tree) -> set[str]:
        """Who has devices that have become providers, or are none any more."""
        if not self.provider_of and tree.of_devices <= self.wanted.keys():
            return set()
        return set(self.devices)

    def reshape(self, tree: Tree, held: Mapping[str, Amounts]) -> Reshape | None:
        """None when nothing moves.  ``held``: all that each consumer holds that is concerned, anywhere.

        Raises Conflict when there is no room for what would move.
        """
        work = _Work(self, tree, held)
        work.move_classes()
        work.leave_devices()
        work.enter_devices()
        return work.result()


class _Work:
    def __init__(self, what: Following, tree: Tree, before: Mapping[str, Amounts]) -> None:
        self._what = what
        self._tree = tree
        self._before = before
        self._held = {
            consumer: {provider: dict(amounts) for provider, amounts in held.items()}
            for consumer, held in before.items()
        }

    # ---- the three ways ----

    def move_classes(self) -> None:
        """What a provider has no more, and others of the tree have."""
        for provider, name in self._what.gone(self._tree):
            targets = [uuid for uuid, stock in self._what.wanted.items() if name in stock]
            for consumer in sorted(self._held):
                amount = self._held[consumer].get(provider, {}).get(name, 0)
                if amount:
                    self._set(consumer, provider, name, 0)
                    self._put(consumer, targets, name, amount)

    def leave_devices(self) -> None:
        """Providers of devices that are gone are nothing to those who have such devices."""
        for consumer in self._what.devices:
            for provider in self._tree.of_devices - self._what.wanted.keys():
                self._held.get(consumer, {}).pop(provider, None)

    def enter_devices(self) -> None:
        """Devices that servers have are booked where they are providers."""
        provider_of = self._what.provider_of
        for consumer, addresses in sorted(self._what.devices.items()):
            counts = Counter(provider_of[each] for each in addresses if each in provider_of)
            for provider, count in sorted(counts.items()):
                (name,) = self._what.wanted[provider]
                held = self._held.get(consumer, {})
                if held and held.get(provider, {}).get(name, 0) < count:
                    self._set(consumer, provider, name, count)

    def result(self) -> Reshape | None:
        changed = {who: held for who, held in self._held.items() if held != self._before[who]}
        if not changed:
            return None
        touched = {provider for who in changed for provider in (*changed[who], *self._before[who])}
        known = touched & (self._tree.inventories.keys() | self._what.wanted.keys())
        return Reshape(
            inventories={provider: self._meanwhile(provider) for provider in sorted(known)},
            allocations=changed,
        )

    # ---- inside ----

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
                f"{name} of the host '{self._what.report.host}' has moved to other resource providers, and "
                f"there is no room for {amount} that {consumer} holds: go back to the old configuration, or "
                "move servers away."
            )

    def _room(self, provider: str, name: str) -> int:
        known = self._tree.inventories.get(provider, {})
        inventory = known[name] if name in known else self._what.wanted[provider][name]
        return inventory.capacity - self._used(provider, name)

    def _used(self, provider: str, name: str) -> int:
        """What was used, and what has come and gone since."""
        now, before = (_booked(each, provider, name) for each in (self._held, self._before))
        return self._tree.used.get(provider, {}).get(name, 0) + now - before

    def _meanwhile(self, provider: str) -> dict[str, Inventory]:
        """What it has had, without what has moved away, and what is new."""
        old, new = self._tree.inventories.get(provider, {}), self._what.wanted.get(provider, {})
        kept = {name: each for name, each in old.items() if name in new or self._used(provider, name)}
        return {**{name: each for name, each in new.items() if name not in old}, **kept}


def _booked(held: Mapping[str, Amounts], provider: str, name: str) -> int:
    return sum(each.get(provider, {}).get(name, 0) for each in held.values())
