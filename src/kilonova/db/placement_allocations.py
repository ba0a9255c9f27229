"""Allocations as the API sees them: by consumer, by provider, by project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from kilonova.db import placement
from kilonova.db.engine import Statement, Tx
from kilonova.db.placement_exchange import Change, exchange
from kilonova.db.placement_providers import ConcurrentUpdate, Provider, bump
from kilonova.db.placement_providers import lock as lock_provider
from kilonova.db.tables.placement import allocations, consumers
from kilonova.errors import Conflict, NotFound

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
_HAND_OVER = Statement(update(_a).where(_a.c.consumer == bindparam("of")).values(consumer=bindparam("to")))
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


class NoSuchProvider(NotFound):
    """Something is asked of a provider that is not there."""


ANY = object()
"""Stands for a generation that the caller does not care about."""


class Put(msgspec.Struct, frozen=True):
    """What a consumer shall hold; nothing removes the consumer.

    ``generation`` is what the caller knows: a number, None for a consumer that is new, ANY for no check.
    """

    consumer: Consumer
    resources: placement.Held
    generation: object = ANY


class Locked(msgspec.Struct, frozen=True):
    """Consumers as they are, what they hold, and all providers that this or the change concerns."""

    consumers: dict[str, Consumer]
    held: dict[str, placement.Held]
    providers: dict[str, Provider]


def lock(tx: Tx, wanted: Sequence[Put], generations: Mapping[str, int | None] | None = None) -> Locked:
    """Have nobody else change these (different) consumers, and the providers that they hold something of or
    shall, and those of ``generations`` (uuid -> generation that the caller knows, None for any).

    Locks are taken as everywhere in placement: consumers, then providers, each in the order of their uuids.
    Raises ConcurrentUpdate, and NoSuchProvider.
    """
    known = generations or {}
    found = {
        each.consumer.uuid: _lock(tx, each) for each in sorted(wanted, key=lambda each: each.consumer.uuid)
    }
    held = {uuid: placement.held(tx, uuid) for uuid in found}
    places = {*known, *(provider for each in wanted for provider in each.resources)}
    locked: dict[str, Provider] = {}
    for uuid in sorted(places.union(*held.values())):
        try:
            locked[uuid] = lock_provider(tx, uuid, known.get(uuid))
        except NotFound as error:
            raise NoSuchProvider(f"No resource provider with uuid {uuid} found.") from error
    return Locked(found, held, locked)


def put(tx: Tx, wanted: Sequence[Put], locked: Locked | None = None) -> None:
    """Make that all that these (different) consumers hold, all or nothing.

    Raises ConcurrentUpdate, NoSuchProvider, kilonova.db.placement_exchange.DoesNotFit.
    """
    locked = locked or lock(tx, wanted)
    changes = [Change(each.consumer.uuid, locked.held[each.consumer.uuid], each.resources) for each in wanted]
    concerned = {uuid for each in changes for uuid in (*each.old, *each.new)}
    exchange(tx, changes, {uuid: locked.providers[uuid] for uuid in concerned})
    for each in wanted:
        _note(tx, each, locked.consumers[each.consumer.uuid])


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
        raise _other_generation(known, wanted.generation)
    return found


def _other_generation(known: int | None, given: object) -> ConcurrentUpdate:
    expected, got = ("null" if each is None else each for each in (known, given))
    return ConcurrentUpdate(f"consumer generation conflict - expected {expected} but got {got}")


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


def move(tx: Tx, consumer: str, to: str, generation: object = ANY, consumer_type: str | None = None) -> bool:
    """Hand all that a consumer holds to another, which holds nothing; the first is no consumer any more.

    False when it holds nothing (any more).  Nothing is given back in between, so that it goes on a full
    provider as well.  Raises ConcurrentUpdate (``generation`` of the first), Conflict (the other holds
    something).
    """
    first = None
    for uuid in sorted((consumer, to)):
        row = tx.one(_LOCK, uuid=uuid)
        if uuid == consumer:
            first = row
    if first is None:
        return False
    owner = Consumer(**dict(zip(Consumer.__struct_fields__, first, strict=True)))
    if generation is not ANY and generation != owner.generation:
        raise _other_generation(owner.generation, generation)
    heir = msgspec.structs.replace(
        owner, uuid=to, generation=1, consumer_type=consumer_type or owner.consumer_type
    )
    if not tx.run(_ADD, **msgspec.structs.asdict(heir)):
        raise Conflict(f"Consumer {to} holds allocations of its own: release them first.")
    for provider in sorted(placement.held(tx, consumer)):
        bump(tx, lock_provider(tx, provider))
    tx.run(_HAND_OVER, of=consumer, to=to)
    tx.run(_DROP, uuid=consumer)
    return True


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
