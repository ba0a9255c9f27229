"""Allocations as the API sees them: by consumer, by provider, by project."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from kilonova.db import placement
from kilonova.db.engine import Statement, Tx
from kilonova.db.placement_providers import ConcurrentUpdate
from kilonova.db.placement_providers import lock as lock_provider
from kilonova.db.tables.placement import allocations, consumers

_a, _c = allocations, consumers


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    uuid: str
    generation: int
    project_id: str
    user_id: str
    consumer_type: str | None = None


_columns = [_c.c[name] for name in Consumer.__struct_fields__]
_SHOW = Statement(select(*_columns).where(_c.c.uuid == bindparam("uuid")))
_LOCK = Statement(select(*_columns).where(_c.c.uuid == bindparam("uuid")).with_for_update())
_ADD = Statement(
    insert_unless_there(_c)
    .values({column.name: bindparam(column.name) for column in _c.columns})
    .on_conflict_do_nothing()
)
_SET = Statement(
    update(_c)
    .where(_c.c.uuid == bindparam("of"))
    .values({f: bindparam("new_" + f) for f in ("generation", "project_id", "user_id", "consumer_type")})
)
_DROP = Statement(delete(_c).where(_c.c.uuid == bindparam("uuid")))
_ON_PROVIDER = Statement(
    select(_a.c.consumer, _a.c.resource_class, _a.c.amount, _c.c.generation)
    .join_from(_a, _c, _a.c.consumer == _c.c.uuid)
    .where(_a.c.provider == bindparam("provider"))
    .order_by(_a.c.consumer)
)


def consumer(tx: Tx, uuid: str) -> Consumer | None:
    row = tx.one(_SHOW, uuid=uuid)
    return None if row is None else Consumer(**dict(zip(Consumer.__struct_fields__, row, strict=True)))


def on_provider(tx: Tx, provider: str) -> dict[str, tuple[int, dict[str, int]]]:
    """Consumer uuid -> its generation and what it holds of this provider."""
    result: dict[str, tuple[int, dict[str, int]]] = {}
    for uuid, name, amount, generation in tx.all(_ON_PROVIDER, provider=provider):
        result.setdefault(uuid, (generation, {}))[1][name] = int(amount)
    return result


ANY = object()
"""Stands for a generation that the caller does not care about."""


class Put(msgspec.Struct, frozen=True):
    """What a consumer shall hold; nothing removes the consumer.

    ``generation`` is what the caller knows: a number, None for a consumer that is new, ANY for no check.
    """

    consumer: Consumer
    resources: placement.Held
    generation: object = ANY


def put(tx: Tx, wanted: list[Put]) -> None:
    """Make that all that these (different) consumers hold, all or nothing.

    Locks are taken as everywhere in placement: consumers, then providers, each in the order of their uuids.
    Raises ConcurrentUpdate, NotFound (a provider), kilonova.db.placement.DoesNotFit.
    """
    found = {
        each.consumer.uuid: _lock(tx, each) for each in sorted(wanted, key=lambda each: each.consumer.uuid)
    }
    held = {uuid: placement.held(tx, uuid) for uuid in found}
    places = {provider for each in wanted for provider in each.resources}
    for provider in sorted(places.union(*held.values())):
        lock_provider(tx, provider)
    # who gives something back goes first, so that another may have it
    for each in sorted(wanted, key=lambda each: bool(each.resources)):
        placement.replace(tx, each.consumer.uuid, held[each.consumer.uuid], each.resources)
        _note(tx, each, found[each.consumer.uuid])


def _lock(tx: Tx, wanted: Put) -> Consumer:
    """The consumer as it is, or a new one of generation 0.  Raises ConcurrentUpdate."""
    values = msgspec.structs.asdict(msgspec.structs.replace(wanted.consumer, generation=0))
    while True:
        made = tx.run(_ADD, **values) == 1
        row = tx.one(_LOCK, uuid=wanted.consumer.uuid)
        if row is not None:  # else it was removed just now
            break
    found = Consumer(**dict(zip(Consumer.__struct_fields__, row, strict=True)))
    known = None if made else found.generation
    if wanted.generation is not ANY and wanted.generation != known:
        expected, got = ("null" if each is None else each for each in (known, wanted.generation))
        raise ConcurrentUpdate(f"consumer generation conflict - expected {expected} but got {got}")
    return found


def _note(tx: Tx, wanted: Put, found: Consumer) -> None:
    """The consumer's own row after the exchange."""
    consumer = wanted.consumer
    if not wanted.resources:
        tx.run(_DROP, uuid=consumer.uuid)
        return
    tx.run(
        _SET,
        of=consumer.uuid,
        new_generation=found.generation + 1,
        new_project_id=consumer.project_id,
        new_user_id=consumer.user_id,
        new_consumer_type=found.consumer_type if consumer.consumer_type is None else consumer.consumer_type,
    )


class Usage(msgspec.Struct, frozen=True):
    """What consumers of one type hold of a resource class; ``consumers`` is how many there are of them."""

    consumer_type: str | None
    resource_class: str
    used: int


def usages(tx: Tx, project_id: str, user_id: str | None = None) -> tuple[list[Usage], dict[str | None, int]]:
    """What a project, or a user in it, holds, and how many consumers of each type there are."""
    conditions: list[Any] = [_c.c.project_id == project_id]
    if user_id is not None:
        conditions.append(_c.c.user_id == user_id)
    rows = tx.all(
        select(_c.c.consumer_type, _a.c.resource_class, func.sum(_a.c.amount))
        .join_from(_a, _c, _a.c.consumer == _c.c.uuid)
        .where(*conditions)
        .group_by(_c.c.consumer_type, _a.c.resource_class)
        .order_by(_a.c.resource_class)
    )
    counts = tx.all(select(_c.c.consumer_type, func.count()).where(*conditions).group_by(_c.c.consumer_type))
    return [Usage(row[0], row[1], int(row[2])) for row in rows], {row[0]: int(row[1]) for row in counts}
