"""Booking resources: what a boot does once and a delete undoes.

The row of the provider is the lock of all that is booked on it: every transaction changes it first (its
generation), in the order of the uuids.  So nobody waits in a circle, and nobody books too much.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from kilonova.db.engine import Statement, Tx, db_now, insert_into
from kilonova.db.tables.placement import allocations, consumers, inventories, resource_providers
from kilonova.errors import Conflict, Invalid, NotFound

_p, _i, _a, _c = resource_providers, inventories, allocations, consumers


def _amount(name: str) -> Any:
    return bindparam(name, type_=BigInteger())


def _key(column: Column[str]) -> Any:
    return column == bindparam("of_" + column.name)


# The clause of PostgreSQL is SQLite's as well; either dialect renders it.
_ADD_CONSUMER = Statement(
    insert_unless_there(_c)
    .values({column.name: bindparam(column.name) for column in _c.columns})
    .on_conflict_do_nothing()
)
_LOCK_CONSUMER = Statement(select(_c.c.uuid).where(_c.c.uuid == bindparam("uuid")).with_for_update())
_DROP_CONSUMER = Statement(delete(_c).where(_c.c.uuid == bindparam("uuid")))
_BUMP = Statement(
    update(_p)
    .where(_p.c.uuid == bindparam("of"))
    .values(
        generation=_p.c.generation + _amount("by"),
        revision=_p.c.revision + _amount("by"),
        changed_at=db_now(),
    )
)
_ALLOWED = (
    _key(_i.c.provider),
    _key(_i.c.resource_class),
    _i.c.min_unit <= _amount("amount"),
    _i.c.max_unit >= _amount("amount"),
    _amount("amount") % _i.c.step_size == 0,
)
_TAKE = Statement(
    update(_i)
    .where(*_ALLOWED, _i.c.used + _amount("more") <= (_i.c.total - _i.c.reserved) * _i.c.allocation_ratio)
    .values(used=_i.c.used + _amount("more"))
)
_GIVE = Statement(
    update(_i)
    .where(_key(_i.c.provider), _key(_i.c.resource_class))
    .values(used=_i.c.used - _amount("amount"))
)
_ADD = insert_into(_a)
_HELD = Statement(
    select(_a.c.provider, _a.c.resource_class, _a.c.amount).where(_a.c.consumer == bindparam("consumer"))
)
_DROP = Statement(delete(_a).where(_a.c.consumer == bindparam("consumer")))
_SUMS = Statement(
    select(_a.c.provider, _a.c.resource_class, func.sum(_a.c.amount)).group_by(
        _a.c.provider, _a.c.resource_class
    )
)
_USED = Statement(select(_i.c.provider, _i.c.resource_class, _i.c.used))

Held = dict[str, dict[str, int]]
"""Provider uuid -> resource class -> amount."""


def claim(
    tx: Tx,
    consumer: str,
    wanted: Held,
    project_id: str,
    user_id: str,
    *,
    consumer_type: str | None = None,
) -> bool:
    """Book all of ``wanted`` for ``consumer``, on one provider or on several, or nothing; whether it fitted.

    Made for being part of another transaction: False leaves nothing behind.  Converges: True for a consumer
    that holds exactly this already.  Raises NotFound (no such provider), Conflict (the consumer holds
    something else), Invalid (an amount below zero).
    """
    wanted = _without_nothing(consumer, wanted)
    owner = {"project_id": project_id, "user_id": user_id, "consumer_type": consumer_type}
    while not tx.run(_ADD_CONSUMER, uuid=consumer, generation=1, **owner):
        if tx.one(_LOCK_CONSUMER, uuid=consumer) is not None:  # else it was just released: once more
            return _holds(tx, consumer, wanted)
    for provider in sorted(wanted):
        if not tx.run(_BUMP, of=provider, by=1):
            raise NotFound(f"No resource provider with uuid {provider} found.")
    rows = rows_of(consumer, wanted)
    if not _take(tx, rows):
        for provider in wanted:
            tx.run(_BUMP, of=provider, by=-1)
        tx.run(_DROP_CONSUMER, uuid=consumer)
        return False
    if not rows:
        tx.run(_DROP_CONSUMER, uuid=consumer)
    tx.run_many(_ADD, rows)
    return True


def _without_nothing(consumer: str, wanted: Held) -> Held:
    """Without what is zero, but with every provider that is named.  Raises Invalid."""
    if any(amount < 0 for resources in wanted.values() for amount in resources.values()):
        raise Invalid(f"Consumer {consumer} cannot hold less than nothing: {wanted}.")
    return {
        provider: {name: amount for name, amount in resources.items() if amount}
        for provider, resources in wanted.items()
    }


def _take(tx: Tx, rows: list[dict[str, Any]]) -> bool:
    """Count up what is used, row by row; nothing if one of them does not fit."""
    taken: list[dict[str, Any]] = []
    for row in rows:
        place = {
            "of_provider": row["provider"],
            "of_resource_class": row["resource_class"],
            "amount": row["amount"],
        }
        if not tx.run(_TAKE, more=row["amount"], **place):
            tx.run_many(_GIVE, taken)
            return False
        taken.append(place)
    return True


def rows_of(consumer: str, held: Held) -> list[dict[str, Any]]:
    """The rows of the table of allocations, in the order in which all book."""
    return [
        {"consumer": consumer, "provider": provider, "resource_class": name, "amount": held[provider][name]}
        for provider in sorted(held)
        for name in sorted(held[provider])
    ]


def _holds(tx: Tx, consumer: str, wanted: Held) -> bool:
    found = held(tx, consumer)
    if found != {provider: resources for provider, resources in wanted.items() if resources}:
        raise Conflict(
            f"Consumer {consumer} already holds allocations on {', '.join(sorted(found))}: "
            "release them first."
        )
    return True


def held(tx: Tx, consumer: str) -> Held:
    """What a consumer holds; empty if it is unknown."""
    result: Held = {}
    for provider, name, amount in tx.all(_HELD, consumer=consumer):
        result.setdefault(provider, {})[name] = int(amount)
    return result


def release(tx: Tx, consumer: str) -> bool:
    """Give back all that the consumer holds; False if it held nothing."""
    if not tx.run(_DROP_CONSUMER, uuid=consumer):  # and whoever else releases it now waits here
        return False
    found = held(tx, consumer)
    for provider in sorted(found):
        tx.run(_BUMP, of=provider, by=1)
        for name in sorted(found[provider]):
            tx.run(_GIVE, of_provider=provider, of_resource_class=name, amount=found[provider][name])
    tx.run(_DROP, consumer=consumer)
    return True


class Difference(msgspec.Struct, frozen=True):
    """An inventory whose count of what is used is not the sum of its allocations."""

    provider: str
    resource_class: str
    used: int
    allocated: int


def audit(tx: Tx) -> list[Difference]:
    """Every difference between counts and allocations; empty in a sound database."""
    used = {(row[0], row[1]): int(row[2]) for row in tx.all(_USED)}
    sums = {(row[0], row[1]): int(row[2]) for row in tx.all(_SUMS)}
    return [
        Difference(*key, used.get(key, 0), sums.get(key, 0))
        for key in sorted({*used, *sums})
        if used.get(key, 0) != sums.get(key, 0)
    ]
