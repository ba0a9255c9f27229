"""Consumers exchange what they hold, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from sqlalchemy import BigInteger, bindparam, delete, update

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.placement import Held, rows_of
from kilonova.db.placement_providers import Provider, Stock, bump, stock
from kilonova.db.tables.placement import allocations, inventories
from kilonova.errors import Conflict

_i = inventories
_USE = Statement(
    update(_i)
    .where(_i.c.provider == bindparam("of_provider"), _i.c.resource_class == bindparam("of_resource_class"))
    .values(used=_i.c.used + bindparam("more", type_=BigInteger()))
)
_DROP = Statement(delete(allocations).where(allocations.c.consumer == bindparam("consumer")))
_ADD = insert_into(allocations)

Place = tuple[str, str]
"""Provider uuid and resource class."""


class DoesNotFit(Conflict):
    """There is no room for these allocations, or no such inventory."""


class Change(msgspec.Struct, frozen=True):
    """What a consumer holds now, and shall hold."""

    consumer: str
    old: Held
    new: Held


def exchange(tx: Tx, changes: Sequence[Change], providers: dict[str, Provider]) -> None:
    """Make all these changes.

    The caller has locked the consumers and ``providers``, which are all that are in the changes.  It counts
    what is held in the end: what one gives back another may have, and a provider that is too full by now may
    get emptier, but not fuller.  An amount that changes must be of an allowed size.  Raises DoesNotFit.
    """
    stocks = {uuid: stock(tx, uuid) for uuid in providers}
    net: dict[Place, int] = {}
    for place, before, after in _moves(changes):
        if after not in (0, before):
            _check_size(place, after, stocks[place[0]].get(place[1]))
        net[place] = net.get(place, 0) + after - before
    for place in sorted(net):
        _check_room(place, net[place], stocks[place[0]].get(place[1]))
    _write(tx, changes, net)
    for uuid in sorted(providers):
        bump(tx, providers[uuid])


def _moves(changes: Sequence[Change]) -> Iterator[tuple[Place, int, int]]:
    """Each amount before and after."""
    for change in changes:
        for provider in {*change.old, *change.new}:
            old, new = change.old.get(provider, {}), change.new.get(provider, {})
            for name in {*old, *new}:
                yield (provider, name), old.get(name, 0), new.get(name, 0)


def _refused(place: Place, why: str) -> DoesNotFit:
    return DoesNotFit(
        f"Unable to allocate inventory: Unable to create allocation for '{place[1]}' on resource provider "
        f"'{place[0]}': {why}."
    )


def _check_size(place: Place, amount: int, found: Stock | None) -> None:
    if found is None:
        raise _refused(place, "it has no inventory of that class")
    has = found.inventory
    if not has.min_unit <= amount <= has.max_unit or amount % has.step_size:
        raise _refused(
            place,
            f"the requested amount {amount} would violate inventory constraints (min_unit {has.min_unit}, "
            f"max_unit {has.max_unit}, step_size {has.step_size})",
        )


def _check_room(place: Place, more: int, found: Stock | None) -> None:
    if more <= 0:
        return
    if found is None:
        raise _refused(place, "it has no inventory of that class")
    if found.used + more > found.inventory.capacity:
        raise _refused(
            place,
            f"the requested amount would exceed the capacity ({found.inventory.capacity}, of which "
            f"{found.used} are used and {more} more are asked for)",
        )


def _write(tx: Tx, changes: Sequence[Change], net: dict[Place, int]) -> None:
    for (provider, name), more in sorted(net.items()):
        if more:
            tx.run(_USE, of_provider=provider, of_resource_class=name, more=more)
    changed = [change for change in changes if change.old != change.new]
    tx.run_many(_DROP, [{"consumer": change.consumer} for change in changed])
    tx.run_many(_ADD, [row for change in changed for row in rows_of(change.consumer, change.new)])
