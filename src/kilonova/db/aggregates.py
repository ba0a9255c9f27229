"""Host aggregates: hosts under a name, perhaps as an availability zone.

A host is in one zone at most: that of the one aggregate with a zone that it is in.  It is kept with the
host, in the transaction that changes the aggregate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, literal, select, update

from kilonova.db import epochs, hosts
from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.compute import aggregate_hosts, aggregates, instances
from kilonova.db.tables.compute import hosts as hosts_table
from kilonova.errors import Conflict, Invalid, NotFound, Refused

LARGEST_ID = 2**63 - 1


class Aggregate(msgspec.Struct, frozen=True, kw_only=True):
    """``metadata`` is without the zone, which Nova shows there too."""

    id: int
    uuid: str
    name: str
    availability_zone: str | None
    metadata: dict[str, str]
    created_at: int
    updated_at: int | None
    hosts: tuple[str, ...] = ()


_a, _m = aggregates.c, aggregate_hosts.c
_names = tuple(column.name for column in aggregates.columns)

ALL = Statement(select(*aggregates.columns).order_by(_a.id))
SHOW = Statement(select(*aggregates.columns).where(_a.id == bindparam("id")))
NAMED = Statement(select(_a.id).where(_a.name == bindparam("name")))
INSERT = insert_into(aggregates, returning="id")
CHANGE = Statement(
    update(aggregates)
    .where(_a.id == bindparam("of"))
    .values(
        name=bindparam("new_name"),
        availability_zone=bindparam("new_zone"),
        metadata=bindparam("new_metadata"),
        updated_at=bindparam("now"),
    )
)
DROP = Statement(delete(aggregates).where(_a.id == bindparam("of")))
MEMBERS = Statement(select(_m.aggregate_id, _m.host).order_by(_m.host))
MEMBERS_OF = Statement(select(_m.host).where(_m.aggregate_id == bindparam("of")).order_by(_m.host))
ADD_MEMBER = insert_into(aggregate_hosts)
DROP_MEMBER = Statement(
    delete(aggregate_hosts).where(_m.aggregate_id == bindparam("of"), _m.host == bindparam("host"))
)
DROP_HOST = Statement(delete(aggregate_hosts).where(_m.host == bindparam("host")))
OTHER_ZONES = Statement(
    select(_a.availability_zone)
    .join_from(aggregates, aggregate_hosts, _a.id == _m.aggregate_id)
    .where(_m.host == bindparam("host"), _a.id != bindparam("but"), _a.availability_zone.is_not(None))
)
HAS_SERVERS = Statement(
    select(literal(1)).where(instances.c.host == bindparam("host"), instances.c.deleted_at.is_(None)).limit(1)
)
SET_ZONE = Statement(
    update(hosts_table)
    .where(hosts_table.c.host == bindparam("of"))
    .values(availability_zone=bindparam("new_zone"), **hosts.CHANGED)
)
COUNT_MEMBERS = Statement(
    select(func.count()).select_from(aggregate_hosts).where(_m.aggregate_id == bindparam("of"))
)

_encode = msgspec.json.Encoder().encode
_metadata = msgspec.json.Decoder(dict[str, str]).decode


def _from_row(row: Row, members: tuple[str, ...]) -> Aggregate:
    values = dict(zip(_names, row, strict=True))
    values["metadata"] = _metadata(values["metadata"])
    return Aggregate(**values, hosts=members)


def not_found(number: int | str) -> NotFound:
    return NotFound(f"Aggregate {number} could not be found.")


def list_all(tx: Tx) -> list[Aggregate]:
    """Every aggregate, oldest first."""
    members: dict[int, list[str]] = {}
    for number, host in tx.all(MEMBERS):
        members.setdefault(number, []).append(host)
    return [_from_row(row, tuple(members.get(row[0], ()))) for row in tx.all(ALL)]


def show(tx: Tx, number: int) -> Aggregate:
    """Raises NotFound."""
    row = tx.one(SHOW, id=number) if 0 <= number <= LARGEST_ID else None
    if row is None:
        raise not_found(number)
    return _from_row(row, tuple(one[0] for one in tx.all(MEMBERS_OF, of=number)))


def create(tx: Tx, uuid: str, name: str, zone: str | None, now: int) -> Aggregate:
    """Raises Conflict for a name that is taken."""
    _check_name(tx, name)
    values: dict[str, Any] = {"uuid": uuid, "name": name, "created_at": now, "updated_at": None}
    values["availability_zone"] = zone
    number = int(tx.scalar(INSERT, metadata="{}", **values))
    return Aggregate(id=number, metadata={}, **values)


def _check_name(tx: Tx, name: str) -> None:
    if tx.one(NAMED, name=name) is not None:
        raise Conflict(f"Aggregate {name} already exists.")


def change(
    tx: Tx,
    number: int,
    now: int,
    *,
    name: str | None = None,
    zone: Any = msgspec.UNSET,
    metadata: Mapping[str, str | None] | None = None,
    busy: Collection[str] = (),
) -> Aggregate:
    """Change what is given.  ``zone`` None: it is no zone any more; ``metadata``: None removes a key;
    ``busy``: hosts that have servers in other databases.

    Raises NotFound, Conflict for a name that is taken, Invalid for a zone that its hosts cannot be in.
    """
    found = show(tx, number)
    if name is not None and name != found.name:
        _check_name(tx, name)
    new_zone = found.availability_zone if zone is msgspec.UNSET else zone
    if new_zone != found.availability_zone:
        for host in found.hosts:
            _move(tx, found, host, new_zone, Invalid, busy)
    kept = {**found.metadata, **(metadata or {})}
    changed = msgspec.structs.replace(
        found,
        name=name or found.name,
        availability_zone=new_zone,
        metadata={key: value for key, value in kept.items() if value is not None},
        updated_at=now,
    )
    _write(tx, changed, now)
    return changed


def _write(tx: Tx, aggregate: Aggregate, now: int) -> None:
    tx.run(
        CHANGE,
        of=aggregate.id,
        new_name=aggregate.name,
        new_zone=aggregate.availability_zone,
        new_metadata=_encode(aggregate.metadata).decode(),
        now=now,
    )
    epochs.bump(tx, epochs.AGGREGATES)


def remove(tx: Tx, number: int) -> Aggregate:
    """Raises NotFound, and Invalid while hosts are in it."""
    found = show(tx, number)
    if found.hosts:
        raise Invalid(f"Unable to delete aggregate {number}: hosts are in it ({', '.join(found.hosts)}).")
    tx.run(DROP, of=number)
    epochs.bump(tx, epochs.AGGREGATES)
    return found


def add_host(tx: Tx, number: int, host: str, now: int, busy: Collection[str] = ()) -> Aggregate:
    """Raises NotFound (either), Conflict for a host that is in it already or cannot come into its zone."""
    found = show(tx, number)
    if hosts.show(tx, host) is None:
        raise NotFound(f"Compute host {host} could not be found.")
    if host in found.hosts:
        raise Conflict(f"Aggregate {number} already has host {host}.")
    if found.availability_zone is not None:
        _move(tx, found, host, found.availability_zone, Conflict, busy)
    tx.run(ADD_MEMBER, aggregate_id=number, host=host)
    _write(tx, found, now)
    return msgspec.structs.replace(found, hosts=tuple(sorted((*found.hosts, host))), updated_at=now)


def remove_host(tx: Tx, number: int, host: str, now: int, busy: Collection[str] = ()) -> Aggregate:
    """Raises NotFound, and Conflict when the servers on it would find themselves in another zone."""
    found = show(tx, number)
    if host not in found.hosts:
        raise NotFound(f"Aggregate {number} has no host {host}.")
    if found.availability_zone is not None:
        _move(tx, found, host, None, Conflict, busy)
    tx.run(DROP_MEMBER, of=number, host=host)
    _write(tx, found, now)
    return msgspec.structs.replace(
        found, hosts=tuple(one for one in found.hosts if one != host), updated_at=now
    )


def forget_host(tx: Tx, host: str) -> None:
    """A host that is deleted is in no aggregate."""
    if tx.run(DROP_HOST, host=host):
        epochs.bump(tx, epochs.AGGREGATES)


def _move(
    tx: Tx,
    aggregate: Aggregate,
    host: str,
    zone: str | None,
    refusal: type[Refused],
    busy: Collection[str],
) -> None:
    """The host comes into another zone through this aggregate, or None: out of its zone.

    Raises ``refusal`` when it is in a third zone by another aggregate, or has servers.
    """
    others = [row[0] for row in tx.all(OTHER_ZONES, host=host, but=aggregate.id)]
    if zone is not None and any(other != zone for other in others):
        raise refusal(
            f"Host {host} is in the availability zone '{others[0]}' already: it can be in one only."
        )
    new_zone = zone or (others[0] if others else None)
    now_in = hosts.show(tx, host)
    if now_in is None or now_in.availability_zone == new_zone:
        return
    if host in busy or tx.one(HAS_SERVERS, host=host) is not None:
        raise refusal(
            f"Host {host} has servers, which would find themselves in another availability zone: "
            "migrate or delete them first."
        )
    tx.run(SET_ZONE, of=host, new_zone=new_zone)
