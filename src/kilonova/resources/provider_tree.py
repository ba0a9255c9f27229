"""The resource providers of a host as a tree in memory, with change detection: only differences are told.

A tree belongs to one event loop and none of its methods waits, so calls cannot interleave and there is no
lock; what readers get are copies.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from kilonova.errors import Conflict, NotFound
from kilonova.model.host import Inventory, ProviderReport

SHARES = "MISC_SHARES_VIA_AGGREGATE"
"""The trait of providers that others in their aggregates may use."""

Record = Mapping[str, int | float]
"""An inventory in placement's words; keys that are not given are placement's to choose."""

_NESTED = uuids.UUID("7c3c1f0a-5d0e-4c55-9d7b-6f2f1a4f9a11")


def nested_uuid(root: str, name: str) -> str:
    """The uuid of a provider within the tree of ``root``: the same after each restart."""
    return str(uuids.uuid5(_NESTED, f"{root}/{name}"))


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one provider; ``resources`` are those that are told apart, by class."""

    uuid: str
    name: str
    generation: int | None = None
    parent: str | None = None  # uuid
    inventory: dict[str, dict[str, int | float]] = {}
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()
    resources: dict[str, frozenset[str]] = {}


class ProviderTree:
    """Several roots may be in it: the nodes of this host, and providers that share with them."""

    def __init__(self) -> None:
        self._known: dict[str, Provider] = {}
        self._names: dict[str, str] = {}
        self._children: dict[str | None, dict[str, None]] = {None: {}}  # in the order in which they came

    # ---- looking ----

    def exists(self, provider: str) -> bool:
        """By uuid or name, as everywhere."""
        return provider in self._known or provider in self._names

    def snapshot(self, provider: str) -> Provider:
        """Raises NotFound."""
        found = self._find(provider)
        inventory = {name: dict(record) for name, record in found.inventory.items()}
        return msgspec.structs.replace(found, inventory=inventory, resources=dict(found.resources))

    def uuids(self, of: str | None = None, *, whole: bool = False) -> list[str]:
        """Parents before their children: of all trees, of the part below and with ``of``, or of the ``whole``
        tree that ``of`` is somewhere in.  Raises NotFound."""
        if of is None:
            return [uuid for root in self._children[None] for uuid in self._below(root)]
        top = self._find(of)
        while whole and top.parent is not None:
            top = self._known[top.parent]
        return list(self._below(top.uuid))

    def has_inventory(self, provider: str) -> bool:
        return bool(self._find(provider).inventory)

    def has_traits(self, provider: str, traits: Iterable[str]) -> bool:
        """All of them."""
        return self._find(provider).traits >= set(traits)

    def in_aggregates(self, provider: str, aggregates: Iterable[str]) -> bool:
        """All of them."""
        return self._find(provider).aggregates >= set(aggregates)

    def has_sharing_provider(self, resource_class: str) -> bool:
        """Whether somebody in here shares such resources."""
        return any(
            resource_class in each.inventory and SHARES in each.traits for each in self._known.values()
        )

    def has_inventory_changed(self, provider: str, inventory: Mapping[str, Record]) -> bool:
        """A key that is missing in the new record is no change: it is placement's to choose."""
        old = self._find(provider).inventory
        return old.keys() != inventory.keys() or any(
            key not in old[name] or old[name][key] != value
            for name, record in inventory.items()
            for key, value in record.items()
        )

    def have_traits_changed(self, provider: str, traits: Iterable[str]) -> bool:
        return self._find(provider).traits != set(traits)

    def have_aggregates_changed(self, provider: str, aggregates: Iterable[str]) -> bool:
        return self._find(provider).aggregates != set(aggregates)

    # ---- changing the tree ----

    def new_root(self, name: str, uuid: str, generation: int | None = None) -> str:
        """Raises Conflict for a uuid or a name that is taken."""
        return self._add(Provider(uuid=uuid, name=name, generation=generation))

    def new_child(
        self, name: str, parent: str, uuid: str | None = None, generation: int | None = None
    ) -> str:
        """The uuid of the new provider; without one it gets that which such a provider has after each start.

        Raises NotFound without the parent, Conflict for a uuid or a name that is taken.
        """
        above = self._find(parent)
        made = uuid or nested_uuid(self.uuids(above.uuid, whole=True)[0], name)
        return self._add(Provider(uuid=made, name=name, parent=above.uuid, generation=generation))

    def remove(self, provider: str) -> None:
        """With all that is below.  Raises NotFound."""
        top = self._find(provider)
        for uuid in [*self._below(top.uuid)]:
            del self._names[self._known.pop(uuid).name]
            del self._children[uuid]
        del self._children[top.parent][top.uuid]

    def populate(self, providers: Iterable[Provider]) -> None:
        """Take over providers in any order; one that is here already is replaced with all that is below it.

        Raises NotFound naming the parents that are neither given nor here, and Conflict; then nothing has
        changed.
        """
        waiting = {each.uuid: each for each in providers}
        missing = sorted(
            {each.parent for each in waiting.values() if each.parent} - waiting.keys() - self._known.keys()
        )
        if missing:
            raise NotFound(f"These parents of resource providers are not known: {', '.join(missing)}.")
        trial = self._copy()
        for each in _parents_first(waiting):
            if each.uuid in trial._known:
                trial.remove(each.uuid)
            if each.parent is not None and each.parent not in trial._known:
                raise NotFound(f"The parent of provider {each.uuid} was replaced: {each.parent}.")
            trial._add(each)
        self._known, self._names, self._children = trial._known, trial._names, trial._children

    # ---- changing providers ----

    def update_inventory(
        self, provider: str, inventory: Mapping[str, Record], generation: int | None = None
    ) -> bool:
        """Whether that was a change.  A generation is kept in any case.  Raises NotFound."""
        changed = self.has_inventory_changed(provider, inventory)
        new = {name: dict(record) for name, record in inventory.items()}
        return self._put(provider, changed, generation, inventory=new)

    def update_traits(self, provider: str, traits: Iterable[str], generation: int | None = None) -> bool:
        new = frozenset(traits)
        return self._put(provider, self.have_traits_changed(provider, new), generation, traits=new)

    def add_traits(self, provider: str, *traits: str) -> bool:
        return self.update_traits(provider, self._find(provider).traits | set(traits))

    def remove_traits(self, provider: str, *traits: str) -> bool:
        return self.update_traits(provider, self._find(provider).traits - set(traits))

    def update_aggregates(
        self, provider: str, aggregates: Iterable[str], generation: int | None = None
    ) -> bool:
        new = frozenset(aggregates)
        return self._put(provider, self.have_aggregates_changed(provider, new), generation, aggregates=new)

    def add_aggregates(self, provider: str, *aggregates: str) -> bool:
        return self.update_aggregates(provider, self._find(provider).aggregates | set(aggregates))

    def remove_aggregates(self, provider: str, *aggregates: str) -> bool:
        return self.update_aggregates(provider, self._find(provider).aggregates - set(aggregates))

    def update_resources(
        self, provider: str, resources: Mapping[str, Iterable[str]], generation: int | None = None
    ) -> bool:
        """Resources that are told apart, e.g. the addresses of devices."""
        new = {name: frozenset(each) for name, each in resources.items()}
        return self._put(provider, self._find(provider).resources != new, generation, resources=new)

    # ---- inside ----

    def _find(self, provider: str) -> Provider:
        found = self._known.get(self._names.get(provider, provider))
        if found is None:
            raise NotFound(f"There is no resource provider '{provider}' in the tree.")
        return found

    def _below(self, uuid: str) -> Iterator[str]:
        yield uuid
        for child in self._children[uuid]:
            yield from self._below(child)

    def _add(self, provider: Provider) -> str:
        if provider.uuid in self._known:
            raise Conflict(f"There is a resource provider {provider.uuid} already.")
        if provider.name in self._names:
            raise Conflict(f"There is a resource provider '{provider.name}' already.")
        self._known[provider.uuid] = provider
        self._names[provider.name] = provider.uuid
        self._children[provider.parent][provider.uuid] = None
        self._children[provider.uuid] = {}
        return provider.uuid

    def _copy(self) -> ProviderTree:
        made = ProviderTree()
        made._known, made._names = dict(self._known), dict(self._names)
        made._children = {parent: dict(children) for parent, children in self._children.items()}
        return made

    def _put(self, provider: str, changed: bool, generation: int | None, **new: object) -> bool:
        known = self._find(provider)
        fields = {**(new if changed else {}), **({} if generation is None else {"generation": generation})}
        if fields:
            self._known[known.uuid] = msgspec.structs.replace(known, **fields)
        return changed


def _parents_first(providers: Mapping[str, Provider]) -> list[Provider]:
    """Raises Conflict for providers that are above themselves."""
    ordered: dict[str, Provider] = {}
    for each in providers.values():
        line: dict[str, Provider] = {}
        above: Provider | None = each
        while above is not None and above.uuid not in ordered:
            if above.uuid in line:
                raise Conflict(f"The resource provider {above.uuid} is above itself.")
            line[above.uuid] = above
            above = providers.get(above.parent or "")
        ordered.update(reversed(line.items()))
    return list(ordered.values())


def from_reports(reports: Iterable[ProviderReport]) -> ProviderTree:
    """The tree of what a driver has told.  Raises NotFound and Conflict for what is none."""
    tree = ProviderTree()
    tree.populate(
        Provider(
            uuid=each.uuid,
            name=each.name,
            parent=each.parent,
            inventory={name: msgspec.structs.asdict(one) for name, one in each.inventories.items()},
            traits=frozenset(each.traits),
            aggregates=frozenset(each.aggregates or ()),
        )
        for each in reports
    )
    return tree


def inventories(provider: Provider) -> dict[str, Inventory]:
    """With placement's defaults for what is not given."""
    return {name: msgspec.convert(record, Inventory) for name, record in provider.inventory.items()}
