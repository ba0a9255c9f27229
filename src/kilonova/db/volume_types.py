"""Types of volumes."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.volume import volume_types, volumes

DEFAULT_NAME = "__DEFAULT__"  # Cinder's
DEFAULT_ID = "6f8d7d5c-4a39-5c5a-9f0b-1c1f1b6a2f11"


class VolumeType(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str | None = None
    is_public: bool = True
    extra_specs: dict[str, str] = {}
    created_at: int = 0
    updated_at: int = 0

    @property
    def multiattach(self) -> bool:
        """Whether its volumes may be on several servers at a time, in Cinder's spelling of a true value."""
        return self.extra_specs.get("multiattach", "").lower() in ("<is> true", "true")


_FIELDS = tuple(column.name for column in volume_types.columns)
_decode = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.Encoder().encode

c = volume_types.c
SHOW = Statement(select(volume_types).where(c.id == bindparam("id")))
NAMED = Statement(select(volume_types).where(c.name == bindparam("name")))
ALL = Statement(select(volume_types).order_by(c.created_at, c.id))
INSERT = insert_into(volume_types)
UPDATE = Statement(
    update(volume_types)
    .values({name: bindparam(name) for name in _FIELDS if name != "id"})
    .where(c.id == bindparam("the_id"))
)
DELETE = Statement(delete(volume_types).where(c.id == bindparam("the_id")))
USERS = Statement(
    select(func.count())
    .select_from(volumes)
    .where(volumes.c.type_id == bindparam("the_type"), volumes.c.status != "deleted")
)


def from_row(row: Row) -> VolumeType:
    values: dict[str, Any] = dict(zip(_FIELDS, row, strict=True))
    values["extra_specs"] = _decode(values["extra_specs"])
    values["is_public"] = bool(values["is_public"])
    return VolumeType(**values)


def _values(kind: VolumeType) -> dict[str, Any]:
    values = {name: getattr(kind, name) for name in _FIELDS}
    values["extra_specs"] = _encode(kind.extra_specs).decode()
    return values


def show(tx: Tx, type_id: str) -> VolumeType | None:
    row = tx.one(SHOW, id=type_id)
    return None if row is None else from_row(row)


def named(tx: Tx, name: str) -> VolumeType | None:
    row = tx.one(NAMED, name=name)
    return None if row is None else from_row(row)


def list_all(tx: Tx) -> list[VolumeType]:
    """The oldest first."""
    return [from_row(row) for row in tx.all(ALL)]


def default(tx: Tx, now: int) -> VolumeType:
    """The type of volumes for which none is asked for, made if need be.

    Raises UniqueViolation when another transaction makes it; a repeat succeeds.
    """
    found = show(tx, DEFAULT_ID)
    if found is None:
        found = VolumeType(
            id=DEFAULT_ID,
            name=DEFAULT_NAME,
            description="Default Volume Type",
            created_at=now,
            updated_at=now,
        )
        add(tx, found)
    return found


def add(tx: Tx, kind: VolumeType) -> None:
    """Raises UniqueViolation when the name is taken."""
    tx.run(INSERT, **_values(kind))


def save(tx: Tx, kind: VolumeType) -> None:
    """Raises UniqueViolation when the name is taken."""
    values = _values(kind)
    values["the_id"] = values.pop("id")
    tx.run(UPDATE, **values)


def remove(tx: Tx, type_id: str) -> None:
    tx.run(DELETE, the_id=type_id)


def users(tx: Tx, type_id: str) -> int:
    """How many volumes are of that type."""
    return int(tx.scalar(USERS, the_type=type_id))
