"""Servers that ran in a period, for os-simple-tenant-usage."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Select, and_, or_, select

from kilonova.db.engine import Tx
from kilonova.db.tables.compute import instances
from kilonova.errors import Invalid


class UsedFlavor(msgspec.Struct, frozen=True):
    """What of a server's flavor is charged."""

    name: str
    vcpus: int
    memory_mb: int
    root_gb: int
    ephemeral_gb: int = 0


class ServerUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One server that was there at some moment of the period, deleted since or not."""

    uuid: str
    project_id: str
    name: str
    vm_state: str
    launched_at: int
    terminated_at: int | None
    flavor: UsedFlavor


_c = instances.c
_columns = (
    _c.uuid,
    _c.project_id,
    _c.display_name,
    _c.vm_state,
    _c.launched_at,
    _c.terminated_at,
    _c.flavor,
)
_flavor = msgspec.json.Decoder(UsedFlavor).decode


def owner_of(tx: Tx, uuid: str) -> str | None:
    """The project of a server, deleted or not."""
    found: str | None = tx.scalar(select(_c.project_id).where(_c.uuid == uuid))
    return found


def in_period(
    tx: Tx,
    start: int,
    stop: int,
    *,
    project_id: str | None = None,
    marker: str | None = None,
    after: tuple[str, str] | None = None,
    limit: int | None = None,
) -> list[ServerUsage]:
    """The servers that ran between two moments, by project and uuid; those after ``marker``, a uuid, or
    ``after`` a project and uuid.

    Raises Invalid for a marker that is no server.
    """
    clause: Select[Any] = select(*_columns).where(
        _c.launched_at.is_not(None),
        _c.launched_at < stop,
        or_(_c.terminated_at.is_(None), _c.terminated_at > start),
    )
    if project_id is not None:
        clause = clause.where(_c.project_id == project_id)
    if marker is not None:
        owner = owner_of(tx, marker)
        if owner is None:
            raise Invalid(f"marker [{marker}] not found")
        after = owner, marker
    if after is not None:
        first, uuid = after
        clause = clause.where(or_(_c.project_id > first, and_(_c.project_id == first, _c.uuid > uuid)))
    clause = clause.order_by(_c.project_id, _c.uuid)
    if limit is not None:
        clause = clause.limit(limit)
    return [
        ServerUsage(
            uuid=row[0],
            project_id=row[1],
            name=row[2],
            vm_state=row[3],
            launched_at=row[4],
            terminated_at=row[5],
            flavor=_flavor(row[6]),
        )
        for row in tx.all(clause)
    ]
