"""Resource providers, their inventories, traits and aggregates."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Table, bindparam, delete, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from kilonova.db import epochs
from kilonova.db.engine import Statement, Tx, db_now, insert_into
from kilonova.db.tables.placement import (
    allocations,
    inventories,
    provider_aggregates,
    provider_traits,
    resource_providers,
)
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.model.host import Inventory

_p, _i, _t, _g = resource_providers, inventories, provider_traits, provider_aggregates
_FIELDS = Inventory.__struct_fields__
_inventory_columns = [_i.c[name] for name in _FIELDS]

T = TypeVar("T")

REVISION_BITS = 40  # so that the sum over a million providers is a 64-bit number


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    uuid: str
    name: str
    generation: int
    parent: str | None
    root: str


class ConcurrentUpdate(Conflict):
    """The generation that the caller knows is not that of the row any more."""


class DuplicateName(Conflict):
    """Another one has this name or uuid."""


class InventoryInUse(Conflict):
    """There are allocations of it."""


class ProviderInUse(Conflict):
    """There are allocations on it."""


class HasChildren(Conflict):
    """Other providers are below it."""


_RISEN: dict[str, Any] = {"revision": _p.c.revision + 1, "changed_at": db_now()}
_columns = [_p.c[name] for name in Provider.__struct_fields__]
_SHOW = Statement(select(*_columns).where(_p.c.uuid == bindparam("uuid")))
_LOCK = Statement(select(*_columns).where(_p.c.uuid == bindparam("uuid")).with_for_update())
_ALL = Statement(select(*_columns).order_by(_p.c.name))
_ADD = Statement(
    insert(_p).values(
        {column.name: bindparam(column.name) for column in _p.columns} | {"changed_at": db_now()}
    )
)
_DROP = Statement(delete(_p).where(_p.c.uuid == bindparam("uuid")))
_TAKEN = Statement(
    select(_p.c.uuid).where((_p.c.name == bindparam("name")) & (_p.c.uuid != bindparam("uuid")))
)
_CHILD = Statement(select(_p.c.uuid).where(_p.c.parent == bindparam("uuid")).limit(1))
_CHANGE = Statement(
    update(_p)
    .where(_p.c.uuid == bindparam("of"))
    .values(
        name=bindparam("new_name"),
        parent=bindparam("new_parent"),
        root=bindparam("new_root"),
        **_RISEN,
    )
)
_BUMP = Statement(
    update(_p).where(_p.c.uuid == bindparam("of")).values(generation=_p.c.generation + 1, **_RISEN)
)
_TOUCH = Statement(update(_p).where(_p.c.uuid == bindparam("of")).values(_RISEN))
_TREE = Statement(select(_p.c.uuid, _p.c.parent).where(_p.c.root == bindparam("root")))
_ROOT = Statement(update(_p).where(_p.c.uuid == bindparam("of")).values(root=bindparam("new"), **_RISEN))

_STOCK = Statement(
    select(_i.c.resource_class, _i.c.used, *_inventory_columns).where(_i.c.provider == bindparam("provider"))
)
_ADD_STOCK = insert_into(_i)
_SET_STOCK = Statement(
    update(_i)
    .where(_i.c.provider == bindparam("of_provider"), _i.c.resource_class == bindparam("of_resource_class"))
    .values({name: bindparam("new_" + name) for name in _FIELDS})
)
_DROP_STOCK = Statement(
    delete(_i).where(
        _i.c.provider == bindparam("provider"), _i.c.resource_class == bindparam("resource_class")
    )
)
_ALLOCATED = Statement(
    select(allocations.c.consumer).where(allocations.c.provider == bindparam("provider")).limit(1)
)


class _Names:
    """The traits, or the aggregates, of providers: a set of names each."""

    def __init__(self, table: Table, column: str) -> None:
        name = table.c[column]
        of = table.c.provider == bindparam("of")
        self._column = column
        self._of = Statement(select(name).where(of))
        self._add = Statement(
            insert_unless_there(table)
            .values({"provider": bindparam("provider"), column: bindparam(column)})
            .on_conflict_do_nothing()
        )
        self._drop = Statement(delete(table).where(of, name == bindparam("dropped")))

    def of(self, tx: Tx, provider: str) -> set[str]:
        return {row[0] for row in tx.all(self._of, of=provider)}

    def replace(self, tx: Tx, provider: str, wanted: Iterable[str]) -> bool:
        """Whether anything had to be changed."""
        found, new = self.of(tx, provider), set(wanted)
        tx.run_many(self._drop, [{"of": provider, "dropped": name} for name in sorted(found - new)])
        tx.run_many(self._add, [{"provider": provider, self._column: name} for name in sorted(new - found)])
        return found != new


traits_of = _Names(provider_traits, "trait")
aggregates_of = _Names(provider_aggregates, "aggregate")


class Stock(msgspec.Struct, frozen=True):
    """An inventory and how much of it is taken."""

    inventory: Inventory
    used: int


def not_found(uuid: str) -> NotFound:
    return NotFound(f"No resource provider with uuid {uuid} found.")


def show(tx: Tx, uuid: str) -> Provider:
    """Raises NotFound."""
    row = tx.one(_SHOW, uuid=uuid)
    if row is None:
        raise not_found(uuid)
    return Provider(**dict(zip(Provider.__struct_fields__, row, strict=True)))


def lock(tx: Tx, uuid: str, generation: int | None = None) -> Provider:
    """The provider, which no other transaction books on or changes until this one ends.

    Raises NotFound, and ConcurrentUpdate if its generation is not the given one.
    """
    row = tx.one(_LOCK, uuid=uuid)
    if row is None:
        raise not_found(uuid)
    provider = Provider(**dict(zip(Provider.__struct_fields__, row, strict=True)))
    if generation is not None and generation != provider.generation:
        raise ConcurrentUpdate(
            f"resource provider generation conflict: provider {uuid} is at generation "
            f"{provider.generation}, not {generation}. Read it again and repeat."
        )
    return provider


def bump(tx: Tx, provider: Provider) -> Provider:
    """Count the generation up."""
    tx.run(_BUMP, of=provider.uuid)
    return msgspec.structs.replace(provider, generation=provider.generation + 1)


def touch(tx: Tx, uuid: str) -> None:
    """Tell views in memory of a change that does not count for the generation."""
    tx.run(_TOUCH, of=uuid)


def list_all(tx: Tx) -> list[Provider]:
    return [Provider(**dict(zip(Provider.__struct_fields__, row, strict=True))) for row in tx.all(_ALL)]


def select_where(tx: Tx, *conditions: ColumnElement[bool]) -> list[Provider]:
    """Providers by name, of which conditions on ``resource_providers`` hold."""
    rows = tx.all(select(*_columns).where(*conditions).order_by(_p.c.name))
    return [Provider(**dict(zip(Provider.__struct_fields__, row, strict=True))) for row in rows]


def create(tx: Tx, uuid: str, name: str, parent: str | None = None, *, reported: bool = False) -> Provider:
    """Add a provider.  Raises DuplicateName, and Invalid for a parent that does not exist."""
    above = None if parent is None else _parent(tx, parent)
    if tx.one(_SHOW, uuid=uuid) is not None:
        raise DuplicateName(f"Conflicting resource provider uuid: {uuid} already exists.")
    _check_name(tx, uuid, name)
    made = Provider(uuid=uuid, name=name, generation=0, parent=parent, root=above.root if above else uuid)
    revision = secrets.randbits(REVISION_BITS)
    tx.run(_ADD, revision=revision, reported=reported, **msgspec.structs.asdict(made))
    return made


def _check_name(tx: Tx, uuid: str, name: str) -> None:
    if tx.one(_TAKEN, uuid=uuid, name=name) is not None:
        raise DuplicateName(f"Conflicting resource provider name: {name} already exists.")


def _parent(tx: Tx, uuid: str) -> Provider:
    """What shall be a parent, with its tree locked.  Raises Invalid if there is no such provider."""
    _lock_trees(tx, uuid)
    try:
        return lock(tx, uuid)
    except NotFound as error:
        raise Invalid(f"parent provider UUID {uuid} does not exist.") from error


def _lock_trees(tx: Tx, *uuids: str) -> None:
    """Have nobody else change which providers are in the trees that these are in.

    The row of a tree's root is the lock of its shape.
    """
    roots: set[str] = set()
    while True:
        rows = [tx.one(_SHOW, uuid=uuid) for uuid in uuids]
        found = {row[-1] for row in rows if row is not None}
        if found <= roots:
            return
        for root in sorted(found - roots):
            tx.one(_LOCK, uuid=root)
        roots |= found


def change(tx: Tx, uuid: str, name: str, parent: str | None, *, reparent: bool) -> Provider:
    """Rename a provider and put it under ``parent``.

    Without ``reparent`` a parent can be given to a provider that has none, and that is all.  Raises NotFound,
    DuplicateName, Invalid.
    """
    _lock_trees(tx, *(each for each in (uuid, parent) if each is not None))
    provider = lock(tx, uuid)
    _check_name(tx, uuid, name)
    root = provider.root
    if parent != provider.parent:
        if provider.parent is not None and not reparent:
            raise Invalid(f"re-parenting provider {uuid} is not currently allowed.")
        under = below(tx, provider)
        if parent in under:
            raise Invalid(f"creating a loop in the provider tree is not allowed: {parent} is below {uuid}.")
        root = uuid if parent is None else _parent(tx, parent).root
        tx.run_many(_ROOT, [{"of": each, "new": root} for each in sorted(under - {uuid})])
    tx.run(_CHANGE, of=uuid, new_name=name, new_parent=parent, new_root=root)
    return show(tx, uuid)


def below(tx: Tx, provider: Provider) -> set[str]:
    """The provider itself and all that are under it."""
    children: dict[str | None, list[str]] = {}
    for uuid, parent in tx.all(_TREE, root=provider.root):
        children.setdefault(parent, []).append(uuid)
    found, waiting = {provider.uuid}, [provider.uuid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def remove(tx: Tx, uuid: str) -> None:
    """Delete a provider with its inventories, traits and aggregates.

    Raises NotFound, HasChildren, ProviderInUse.
    """
    lock(tx, uuid)
    if tx.one(_CHILD, uuid=uuid) is not None:
        raise HasChildren(f"Unable to delete parent resource provider {uuid}: delete its children first.")
    if tx.one(_ALLOCATED, provider=uuid) is not None:
        raise ProviderInUse(f"Unable to delete resource provider {uuid}: it has allocations.")
    for table in (inventories, provider_traits, provider_aggregates):
        tx.run(delete(table).where(table.c.provider == uuid))
    tx.run(_DROP, uuid=uuid)
    epochs.bump(tx, epochs.PROVIDERS)


def stock(tx: Tx, uuid: str) -> dict[str, Stock]:
    """What a provider has and what of it is taken, by resource class."""
    return {
        row[0]: Stock(Inventory(**dict(zip(_FIELDS, row[2:], strict=True))), row[1])
        for row in tx.all(_STOCK, provider=uuid)
    }


def set_stock(tx: Tx, uuid: str, wanted: Mapping[str, Inventory]) -> bool:
    """Make the inventories of a locked provider those; whether anything had to be changed.

    Raises InventoryInUse for a class that goes while somebody holds some of it.
    """
    found = stock(tx, uuid)
    gone = sorted(found.keys() - wanted.keys())
    busy = [name for name in gone if found[name].used]
    if busy:
        raise InventoryInUse(f"Inventory for '{', '.join(busy)}' on resource provider '{uuid}' in use.")
    tx.run_many(_DROP_STOCK, [{"provider": uuid, "resource_class": name} for name in gone])
    new = sorted(wanted.keys() - found.keys())
    tx.run_many(_ADD_STOCK, [_stock_row(uuid, name, wanted[name]) for name in new])
    changed = [name for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name].inventory]
    for name in changed:
        values = {"new_" + key: value for key, value in msgspec.structs.asdict(wanted[name]).items()}
        tx.run(_SET_STOCK, of_provider=uuid, of_resource_class=name, **values)
    return bool(gone or new or changed)


def _stock_row(uuid: str, name: str, inventory: Inventory) -> dict[str, Any]:
    return {"provider": uuid, "resource_class": name, "used": 0, **msgspec.structs.asdict(inventory)}


def changed(
    uuid: str, generation: int | None, change_it: Callable[[Tx], T]
) -> Callable[[Tx], tuple[Provider, T]]:
    """A transaction that locks a provider, checks its generation, runs ``change_it`` and counts up."""

    def transaction(tx: Tx) -> tuple[Provider, T]:
        provider = lock(tx, uuid, generation)
        result = change_it(tx)
        return bump(tx, provider), result

    return transaction
