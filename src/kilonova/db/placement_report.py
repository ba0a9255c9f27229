"""What a host says of itself, and what the scheduler reads of all hosts."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import bindparam, update

from kilonova.db import placement_providers as providers
from kilonova.db.engine import Statement, Tx
from kilonova.db.tables.placement import resource_providers
from kilonova.errors import Conflict, NotFound
from kilonova.model.host import Inventory

_RENAME = Statement(
    update(resource_providers)
    .where(resource_providers.c.uuid == bindparam("of"))
    .values(name=bindparam("new_name"))
)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one provider."""

    provider: providers.Provider
    stock: dict[str, providers.Stock]
    traits: frozenset[str]
    aggregates: frozenset[str]


def report(
    tx: Tx, uuid: str, name: str, inventories: dict[str, Inventory], traits: Iterable[str]
) -> providers.Provider:
    """Make a provider have these inventories and traits; custom traits that an operator gave it stay.

    The generation moves only if something changed.  Raises Conflict when less than is in use would be left,
    or another provider has that name.
    """
    try:
        provider = providers.lock(tx, uuid)
    except NotFound:
        provider = _created(tx, uuid, name)
    if provider.name != name:
        if providers.select_where(tx, resource_providers.c.name == name):
            raise providers.DuplicateName(f"Conflicting resource provider name: {name} already exists.")
        tx.run(_RENAME, of=uuid, new_name=name)
        provider = msgspec.structs.replace(provider, name=name)
    _check(uuid, providers.stock(tx, uuid), inventories)
    custom = {each for each in providers.traits_of.of(tx, uuid) if each.startswith("CUSTOM_")}
    moved = providers.set_stock(tx, uuid, inventories)
    moved = providers.traits_of.replace(tx, uuid, {*traits, *custom}) or moved
    return providers.bump(tx, provider) if moved else provider


_NAMES = {"trait": providers.traits_of, "aggregate": providers.aggregates_of}


def put(tx: Tx, uuid: str, kind: str, name: str, present: bool) -> None:
    """Whether a provider has one trait, or is in one aggregate.  Raises NotFound."""
    provider, names = providers.lock(tx, uuid), _NAMES[kind]
    found = names.of(tx, uuid)
    if names.replace(tx, uuid, found | {name} if present else found - {name}):
        providers.bump(tx, provider)


def _created(tx: Tx, uuid: str, name: str) -> providers.Provider:
    """A new provider, or the one that somebody else has just made.  Raises DuplicateName."""
    try:
        return providers.create(tx, uuid, name)
    except providers.DuplicateName:
        if not providers.select_where(tx, resource_providers.c.uuid == uuid):
            raise
        return providers.lock(tx, uuid)


def _check(uuid: str, found: dict[str, providers.Stock], wanted: dict[str, Inventory]) -> None:
    for name, stock in found.items():
        capacity = wanted[name].capacity if name in wanted else 0
        if stock.used > capacity and (name not in wanted or wanted[name] != stock.inventory):
            raise Conflict(
                f"Provider {uuid} cannot go down to {capacity} of {name}: {stock.used} are in use. "
                "Move or delete servers first."
            )


def summaries(tx: Tx) -> list[Summary]:
    """All providers by name, in four statements."""
    stock = providers.all_stock(tx)
    traits = providers.traits_of.by_provider(tx)
    aggregates = providers.aggregates_of.by_provider(tx)
    return [
        Summary(
            provider=each,
            stock=stock.get(each.uuid, {}),
            traits=frozenset(traits.get(each.uuid, ())),
            aggregates=frozenset(aggregates.get(each.uuid, ())),
        )
        for each in providers.list_all(tx)
    ]
