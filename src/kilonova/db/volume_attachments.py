"""Which server has which volume, or is about to."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.volume import volume_attachments, volumes
from kilonova.model.volume import Connection


class StoredAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``volume_attachments``; ``status`` is "reserved", "attaching" or "attached"."""

    id: str
    volume_id: str
    instance_uuid: str
    status: str = "reserved"
    mode: str = "rw"
    host: str | None = None
    device: str | None = None
    connection: Connection | None = None
    created_at: int
    attached_at: int | None = None


_FIELDS = tuple(column.name for column in volume_attachments.columns)
_CONNECTION = _FIELDS.index("connection")
_decode = msgspec.json.Decoder(Connection).decode
_encode = msgspec.json.Encoder().encode
_CHUNK = 500

c = volume_attachments.c
SHOW = Statement(select(volume_attachments).where(c.id == bindparam("id")))
OF_VOLUME = Statement(
    select(volume_attachments).where(c.volume_id == bindparam("volume_id")).order_by(c.created_at, c.id)
)
INSERT = insert_into(volume_attachments)
UPDATE = Statement(
    update(volume_attachments)
    .values({name: bindparam(name) for name in _FIELDS if name != "id"})
    .where(c.id == bindparam("the_id"))
)
DELETE = Statement(delete(volume_attachments).where(c.id == bindparam("the_id")))


def from_row(row: Row) -> StoredAttachment:
    values: dict[str, Any] = dict(zip(_FIELDS, row, strict=True))
    if row[_CONNECTION] is not None:
        values["connection"] = _decode(row[_CONNECTION])
    return StoredAttachment(**values)


def _values(attachment: StoredAttachment) -> dict[str, Any]:
    values = {name: getattr(attachment, name) for name in _FIELDS}
    if attachment.connection is not None:
        values["connection"] = _encode(attachment.connection).decode()
    return values


def show(tx: Tx, attachment_id: str) -> StoredAttachment | None:
    row = tx.one(SHOW, id=attachment_id)
    return None if row is None else from_row(row)


def of_volume(tx: Tx, volume_id: str) -> list[StoredAttachment]:
    """The oldest first."""
    return [from_row(row) for row in tx.all(OF_VOLUME, volume_id=volume_id)]


def of_volumes(tx: Tx, volume_ids: list[str]) -> dict[str, list[StoredAttachment]]:
    """Those of each of these volumes, the oldest first."""
    found: dict[str, list[StoredAttachment]] = {each: [] for each in volume_ids}
    for start in range(0, len(volume_ids), _CHUNK):
        part = volume_ids[start : start + _CHUNK]
        statement = select(volume_attachments).where(c.volume_id.in_(part)).order_by(c.created_at, c.id)
        for row in tx.all(statement):
            attachment = from_row(row)
            found[attachment.volume_id].append(attachment)
    return found


def page(
    tx: Tx,
    project_id: str | None,
    *,
    volume_id: str | None = None,
    instance_uuid: str | None = None,
    status: str | None = None,
) -> list[StoredAttachment]:
    """Those of a project's volumes (None: of all) that the filters let through, the oldest first."""
    statement = select(volume_attachments).join(volumes, volumes.c.id == c.volume_id)
    for column, value in (
        (volumes.c.project_id, project_id),
        (c.volume_id, volume_id),
        (c.instance_uuid, instance_uuid),
        (c.status, status),
    ):
        if value is not None:
            statement = statement.where(column == value)
    return [from_row(row) for row in tx.all(statement.order_by(c.created_at, c.id))]


def add(tx: Tx, attachment: StoredAttachment) -> None:
    """Raises UniqueViolation when the id is taken."""
    tx.run(INSERT, **_values(attachment))


def save(tx: Tx, attachment: StoredAttachment) -> None:
    values = _values(attachment)
    values["the_id"] = values.pop("id")
    tx.run(UPDATE, **values)


def remove(tx: Tx, attachment_id: str) -> None:
    tx.run(DELETE, the_id=attachment_id)
