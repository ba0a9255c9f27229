"""What moves must remember of their servers, until they are over."""

from __future__ import annotations

import msgspec
from sqlalchemy import bindparam, delete, select

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.tables.cells import migration_contexts
from kilonova.model.migration import MigrationContext

_t = migration_contexts

_INSERT = insert_into(_t)
_SHOW = Statement(select(_t.c.content).where(_t.c.migration_uuid == bindparam("of")))
_OF_INSTANCE = Statement(
    select(_t.c.migration_uuid).where(_t.c.instance_uuid == bindparam("of")).order_by(_t.c.migration_uuid)
)
_DELETE = Statement(delete(_t).where(_t.c.migration_uuid == bindparam("of")))

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(MigrationContext).decode


def put(tx: Tx, migration_uuid: str, instance_uuid: str, context: MigrationContext) -> None:
    """Remember this, instead of what was remembered before."""
    drop(tx, migration_uuid)
    content = _encode(context).decode()
    tx.run(_INSERT, migration_uuid=migration_uuid, instance_uuid=instance_uuid, content=content)


def show(tx: Tx, migration_uuid: str) -> MigrationContext | None:
    found = tx.scalar(_SHOW, of=migration_uuid)
    return None if found is None else _decode(found)


def of_instance(tx: Tx, instance_uuid: str) -> list[str]:
    """The migrations of a server that remember something of it."""
    return [row[0] for row in tx.all(_OF_INSTANCE, of=instance_uuid)]


def drop(tx: Tx, migration_uuid: str) -> None:
    """The move is over."""
    tx.run(_DELETE, of=migration_uuid)
