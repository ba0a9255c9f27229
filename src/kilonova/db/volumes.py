"""Volumes.  Lists of volumes are in ``volume_listing``, who has them in ``volume_attachments``."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, or_, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.volume import volumes

DELETED = "deleted"
MAKING = ("creating", "downloading")
UNFINISHED = (*MAKING, "extending", "deleting")


class StoredVolume(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``volumes``."""

    id: str
    project_id: str
    user_id: str = ""
    name: str | None = None
    description: str | None = None
    size_gb: int
    status: str = "creating"
    type_id: str
    zone: str
    bootable: bool = False
    multiattach: bool = False
    metadata: dict[str, str] = {}
    image_metadata: dict[str, str] | None = None
    source_image: str | None = None
    source_volume: str | None = None
    maker: str | None = None
    growing_to: int | None = None
    fault: str | None = None
    created_at: int = 0
    updated_at: int = 0


_FIELDS = tuple(column.name for column in volumes.columns)
_decode = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.Encoder().encode

c = volumes.c
SHOW = Statement(select(volumes).where(c.id == bindparam("id"), c.status != DELETED))
LOCK = Statement(select(volumes).where(c.id == bindparam("id"), c.status != DELETED).with_for_update())
INSERT = insert_into(volumes)
UPDATE = Statement(
    update(volumes)
    .values({name: bindparam(name) for name in _FIELDS if name != "id"})
    .where(c.id == bindparam("the_id"))
)
LEFT = Statement(select(volumes).where(c.status.in_(UNFINISHED)).order_by(c.created_at, c.id))
COPIES = Statement(
    select(func.count())
    .select_from(volumes)
    .where(c.source_volume == bindparam("the_source"), or_(*(c.status == each for each in MAKING)))
)
GONE = Statement(select(c.id, c.updated_at).where(c.status == DELETED))
FORGET = Statement(delete(volumes).where(c.id == bindparam("the_id"), c.status == DELETED))
IDS = Statement(select(c.id))


def from_row(row: Row) -> StoredVolume:
    values: dict[str, Any] = dict(zip(_FIELDS, row, strict=True))
    values["metadata"] = _decode(values["metadata"])
    if values["image_metadata"] is not None:
        values["image_metadata"] = _decode(values["image_metadata"])
    for name in ("bootable", "multiattach"):
        values[name] = bool(values[name])
    return StoredVolume(**values)


def _values(volume: StoredVolume) -> dict[str, Any]:
    values = {name: getattr(volume, name) for name in _FIELDS}
    values["metadata"] = _encode(volume.metadata).decode()
    if volume.image_metadata is not None:
        values["image_metadata"] = _encode(volume.image_metadata).decode()
    return values


def show(tx: Tx, volume_id: str) -> StoredVolume | None:
    row = tx.one(SHOW, id=volume_id)
    return None if row is None else from_row(row)


def lock(tx: Tx, volume_id: str) -> StoredVolume | None:
    """The volume, to be changed in this transaction."""
    row = tx.one(LOCK, id=volume_id)
    return None if row is None else from_row(row)


def add(tx: Tx, volume: StoredVolume) -> None:
    """Raises UniqueViolation when the id is taken."""
    tx.run(INSERT, **_values(volume))


def save(tx: Tx, volume: StoredVolume) -> None:
    values = _values(volume)
    values["the_id"] = values.pop("id")
    tx.run(UPDATE, **values)


def left_behind(tx: Tx) -> list[StoredVolume]:
    """Volumes that somebody is, or was, at."""
    return [from_row(row) for row in tx.all(LEFT)]


def copies_under_way(tx: Tx, volume_id: str) -> int:
    """How many volumes are being made from this one."""
    return int(tx.scalar(COPIES, the_source=volume_id))


def deleted(tx: Tx) -> dict[str, int]:
    """The deleted volumes that are still remembered, and when each was deleted."""
    return dict(tx.all(GONE))


def forget(tx: Tx, volume_ids: list[str]) -> None:
    """Remove what is remembered of deleted volumes."""
    tx.run_many(FORGET, [{"the_id": each} for each in volume_ids])


def known(tx: Tx) -> set[str]:
    """The ids of all volumes, deleted ones too."""
    return {row[0] for row in tx.all(IDS)}
