"""Key pairs: public keys by user and name.  Private keys are never stored."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Select, bindparam, delete, func, select

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.tables.compute import keypairs
from kilonova.errors import Conflict, Invalid, NotFound, OverQuota


class Keypair(msgspec.Struct, frozen=True, kw_only=True):
    """One user's key.  ``type`` is ``ssh`` or ``x509``."""

    id: int = 0
    user_id: str
    name: str
    type: str
    fingerprint: str
    public_key: str
    created_at: int = 0
    updated_at: int | None = None


_t = keypairs
_names = Keypair.__struct_fields__
assert tuple(column.name for column in _t.columns) == _names

INSERT = insert_into(keypairs, returning="id")
SHOW = Statement(
    select(*_t.columns).where(_t.c.user_id == bindparam("user_id"), _t.c.name == bindparam("name"))
)
COUNT = Statement(select(func.count()).select_from(_t).where(_t.c.user_id == bindparam("user_id")))
DELETE = Statement(delete(_t).where(_t.c.user_id == bindparam("user_id"), _t.c.name == bindparam("name")))


def not_found(user_id: str, name: str) -> NotFound:
    return NotFound(f"Keypair {name} not found for user {user_id}")


def create(tx: Tx, keypair: Keypair, limit: int) -> Keypair:
    """Keep a key; ``id`` is counted by the database.  ``limit`` of the user's keys, -1 for none.

    Raises OverQuota, or Conflict for a name that the user has already.
    """
    if limit >= 0 and count(tx, keypair.user_id) >= limit:
        raise OverQuota("Quota exceeded, too many key pairs.")
    if show(tx, keypair.user_id, keypair.name) is not None:
        raise Conflict(f"Key pair '{keypair.name}' already exists.")
    values = {name: getattr(keypair, name) for name in _names if name != "id"}
    return msgspec.structs.replace(keypair, id=int(tx.scalar(INSERT, **values)))


def show(tx: Tx, user_id: str, name: str) -> Keypair | None:
    row = tx.one(SHOW, user_id=user_id, name=name)
    return None if row is None else Keypair(**dict(zip(_names, row, strict=True)))


def count(tx: Tx, user_id: str) -> int:
    return int(tx.scalar(COUNT, user_id=user_id))


def list_page(tx: Tx, user_id: str, *, marker: str | None = None, limit: int | None = None) -> list[Keypair]:
    """A user's keys by name, those after ``marker``.  Raises Invalid for a marker he does not have."""
    clause: Select[Any] = select(*_t.columns).where(_t.c.user_id == user_id)
    if marker is not None:
        if show(tx, user_id, marker) is None:
            raise Invalid(f"marker [{marker}] not found")
        clause = clause.where(_t.c.name > marker)
    clause = clause.order_by(_t.c.name)
    if limit is not None:
        clause = clause.limit(limit)
    return [Keypair(**dict(zip(_names, row, strict=True))) for row in tx.all(clause)]


def remove(tx: Tx, user_id: str, name: str) -> None:
    """Raises NotFound."""
    if not tx.run(DELETE, user_id=user_id, name=name):
        raise not_found(user_id, name)
