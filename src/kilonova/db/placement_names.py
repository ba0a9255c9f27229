"""Names of traits and resource classes beside the standard ones."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Column, Table, bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from kilonova.db.engine import Statement, Tx, db_now
from kilonova.db.tables.placement import (
    allocations,
    custom_resource_classes,
    custom_traits,
    inventories,
    provider_traits,
    resource_providers,
)


class Names:
    """One table of names and where they are used."""

    def __init__(self, table: Table, used_in: Column[str]) -> None:
        name = table.c.name
        self._all = Statement(select(name).order_by(name))
        self._show = Statement(select(name).where(name == bindparam("name")))
        self._hold = Statement(select(name).where(name == bindparam("name")).with_for_update(read=True))
        self._add = Statement(
            insert_unless_there(table).values(name=bindparam("name")).on_conflict_do_nothing()
        )
        self._drop = Statement(delete(table).where(name == bindparam("name")))
        self._used = Statement(select(used_in).where(used_in == bindparam("name")).limit(1))
        self._all_used = Statement(select(used_in).distinct())

    def all(self, tx: Tx) -> list[str]:
        return [row[0] for row in tx.all(self._all)]

    def known(self, tx: Tx, name: str) -> bool:
        return tx.one(self._show, name=name) is not None

    def hold(self, tx: Tx, name: str) -> bool:
        """Whether it is known, and until the end of this transaction nobody takes it away."""
        return tx.one(self._hold, name=name) is not None

    def add(self, tx: Tx, name: str) -> bool:
        """False if it was there."""
        return tx.run(self._add, name=name) == 1

    def add_all(self, tx: Tx, names: Iterable[str]) -> None:
        tx.run_many(self._add, [{"name": name} for name in sorted(names)])

    def drop(self, tx: Tx, name: str) -> bool:
        return tx.run(self._drop, name=name) == 1

    def in_use(self, tx: Tx, name: str) -> bool:
        return tx.one(self._used, name=name) is not None

    def used(self, tx: Tx) -> set[str]:
        """All names that some provider has."""
        return {row[0] for row in tx.all(self._all_used)}


traits = Names(custom_traits, provider_traits.c.trait)
resource_classes = Names(custom_resource_classes, inventories.c.resource_class)


def rename_class(tx: Tx, name: str, new: str) -> None:
    """Give a resource class of one's own another name, wherever it is used."""
    holders = select(inventories.c.provider).where(inventories.c.resource_class == name)
    changed = update(resource_providers).where(resource_providers.c.uuid.in_(holders))
    tx.run(changed.values(revision=resource_providers.c.revision + 1, changed_at=db_now()))
    for table in (inventories, allocations):
        tx.run(update(table).where(table.c.resource_class == name).values(resource_class=new))
    resource_classes.drop(tx, name)
    resource_classes.add(tx, new)
