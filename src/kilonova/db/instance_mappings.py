"""Which server is in which cell, for those that are not in the first; rows are in the top database.

A mapping is made before the server, in the transaction that books its quota, and is ``pending`` until
somebody has seen the server in its cell.  It is ``gone`` once the quota is given back, which is how that
happens once.  What a list can tell of a server whose cell is down stands here, too.

A server that has moved into the first cell keeps its mapping, which names that cell: ``residence`` counts how
often it has moved, so that a mover who comes too late changes nothing.  Its quota is the first cell's again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import and_, bindparam, delete, literal, select, update

from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.db.engine import Row, Statement, Tx, db_now, insert_into
from kilonova.db.tables.cells import instance_mappings
from kilonova.model.flavor import Flavor
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.states import Task

PENDING, MADE, GONE = "pending", "made", "gone"
_t = instance_mappings


class InstanceMapping(msgspec.Struct, frozen=True, kw_only=True):
    """Moments in microseconds; ``updated_at`` is by the top database's clock."""

    instance_uuid: str
    cell_uuid: str
    project_id: str
    user_id: str
    state: str
    queued_for_delete: bool
    flavor: Flavor
    image: ImageMeta | None
    availability_zone: str | None
    created_at: int
    updated_at: int | None = None
    residence: int = 0


_names = InstanceMapping.__struct_fields__
_columns = [_t.c[name] for name in _names]
_flavor = msgspec.json.Decoder(Flavor).decode
_image = msgspec.json.Decoder(ImageMeta).decode
_encode = msgspec.json.Encoder().encode

INSERT = insert_into(_t)
SHOW = Statement(select(*_columns).where(_t.c.instance_uuid == bindparam("of")))
CELL_OF = Statement(select(_t.c.cell_uuid).where(_t.c.instance_uuid == bindparam("of")))
CELLS_OF = Statement(select(_t.c.cell_uuid).where(_t.c.project_id == bindparam("project_id")).distinct())
MARK_MADE = Statement(
    update(_t)
    .where(_t.c.instance_uuid == bindparam("of"), _t.c.state == PENDING)
    .values(state=MADE, updated_at=db_now())
)
MARK_GONE = Statement(
    update(_t)
    .where(_t.c.instance_uuid == bindparam("of"), _t.c.state != GONE)
    .values(state=GONE, queued_for_delete=True, updated_at=db_now())
)
CHANGE_FLAVOR = Statement(
    update(_t)
    .where(_t.c.instance_uuid == bindparam("of"))
    .values(flavor=bindparam("new_flavor"), updated_at=db_now())
)
QUEUE = Statement(
    update(_t)
    .where(_t.c.instance_uuid == bindparam("of"))
    .values(queued_for_delete=bindparam("queued"), updated_at=db_now())
)
DROP_PENDING = Statement(delete(_t).where(_t.c.instance_uuid == bindparam("of"), _t.c.state == PENDING))
OVERDUE = Statement(
    select(*_columns)
    .where(_t.c.state == PENDING, _t.c.updated_at < db_now() - bindparam("age"))
    .order_by(_t.c.updated_at)
    .limit(bindparam("page_size"))
)
_living = select(*_columns).where(_t.c.cell_uuid == bindparam("cell_uuid"), _t.c.queued_for_delete.is_(False))
_oldest_last = (_t.c.created_at.desc(), _t.c.instance_uuid)
LIVING_IN = Statement(_living.order_by(*_oldest_last).limit(bindparam("page_size")))
LIVING_OF_IN = Statement(
    _living.where(_t.c.project_id == bindparam("project_id"))
    .order_by(*_oldest_last)
    .limit(bindparam("page_size"))
)
ELSEWHERE = select(_t.c.instance_uuid).where(_t.c.cell_uuid != literal(FIRST_CELL))
HELD = Statement(
    select(_t.c.project_id, _t.c.user_id, _t.c.flavor).where(
        _t.c.state != GONE, _t.c.cell_uuid != literal(FIRST_CELL)
    )
)
_MOVING = ("cell_uuid", "residence", "queued_for_delete", "flavor", "image", "availability_zone")
_unmoved = and_(
    _t.c.instance_uuid == bindparam("of"),
    _t.c.cell_uuid == bindparam("here"),
    _t.c.residence == bindparam("known"),
    _t.c.state != GONE,
)
MOVE = Statement(
    update(_t)
    .where(_unmoved)
    .values(
        {
            **{name: bindparam(f"new_{name}") for name in _MOVING},
            "state": MADE,
            "updated_at": db_now(),
        }
    )
)
FOUND = Statement(
    update(_t)
    .where(_t.c.instance_uuid == bindparam("of"))
    .values(cell_uuid=bindparam("here"), residence=bindparam("known"), updated_at=db_now())
)
CALL_OFF = Statement(update(_t).where(_unmoved).values(residence=_t.c.residence + 1, updated_at=db_now()))
UUIDS_IN = Statement(select(_t.c.instance_uuid).where(_t.c.cell_uuid == bindparam("cell_uuid")))
NOW = Statement(select(db_now()))
DROP_CELL = Statement(delete(_t).where(_t.c.cell_uuid == bindparam("cell_uuid")))


def _from_row(row: Row) -> InstanceMapping:
    values = dict(zip(_names, row, strict=True))
    values["queued_for_delete"] = bool(values["queued_for_delete"])
    values["flavor"] = _flavor(values["flavor"])
    values["image"] = None if values["image"] is None else _image(values["image"])
    return InstanceMapping(**values)


def of_instance(instance: Instance, cell_uuid: str, state: str, now: int | None) -> InstanceMapping:
    return InstanceMapping(
        instance_uuid=instance.uuid,
        cell_uuid=cell_uuid,
        project_id=instance.project_id,
        user_id=instance.user_id,
        state=state,
        queued_for_delete=instance.deleted_at is not None,
        flavor=instance.flavor,
        image=instance.image,
        availability_zone=instance.pinned_availability_zone,
        created_at=instance.created_at,
        updated_at=now,
        residence=instance.residence,
    )


def insert(tx: Tx, mapping: InstanceMapping) -> None:
    """Raises UniqueViolation for a server that is mapped already."""
    tx.run(INSERT, **_stored(mapping))


def _stored(mapping: InstanceMapping) -> dict[str, Any]:
    values = {name: getattr(mapping, name) for name in _names}
    values["flavor"] = _encode(mapping.flavor).decode()
    values["image"] = None if mapping.image is None else _encode(mapping.image).decode()
    return values


def show(tx: Tx, uuid: str) -> InstanceMapping | None:
    row = tx.one(SHOW, of=uuid)
    return None if row is None else _from_row(row)


def cell_of(tx: Tx, uuid: str) -> str | None:
    """The cell of a server; None for one that is in the first cell, or nowhere."""
    found: str | None = tx.scalar(CELL_OF, of=uuid)
    return found


def cells_of(tx: Tx, project_id: str) -> frozenset[str]:
    """The cells in which a project has (or had) servers, without the first."""
    return frozenset(row[0] for row in tx.all(CELLS_OF, project_id=project_id))


def mark_made(tx: Tx, uuids: Sequence[str]) -> None:
    """The servers have been seen in their cell."""
    tx.run_many(MARK_MADE, [{"of": uuid} for uuid in uuids])


def mark_gone(tx: Tx, uuid: str) -> bool:
    """The server's quota is given back in this transaction; False if it was so before, or is not ours."""
    return tx.run(MARK_GONE, of=uuid) == 1


def change_flavor(tx: Tx, uuid: str, before: Flavor, after: Flavor) -> bool:
    """The server has another flavor; False if it has not ``before``, or its quota was given back.

    Whoever calls this holds a lock that keeps others from it (`quotas.lock_project`).
    """
    mapping = show(tx, uuid)
    if mapping is None or mapping.state == GONE or mapping.flavor != before:
        return False
    return tx.run(CHANGE_FLAVOR, of=uuid, new_flavor=_encode(after).decode()) == 1


def move(tx: Tx, instance: Instance, here: str, there: str) -> bool:
    """From now on the server is in the cell ``there``; False if it has moved, or was called off, meanwhile.

    Raises UniqueViolation for one that has none, when another moves it at the same time.
    """
    queued = instance.task_state in (Task.DELETING, Task.SOFT_DELETING)
    moved = msgspec.structs.replace(
        of_instance(instance, there, MADE, now(tx)),
        residence=instance.residence + 1,
        queued_for_delete=queued,
    )
    stored = _stored(moved)
    values = {f"new_{name}": stored[name] for name in _MOVING}
    if show(tx, instance.uuid) is None and here == FIRST_CELL and not instance.residence:
        insert(tx, moved)
    elif not tx.run(MOVE, of=instance.uuid, here=here, known=instance.residence, **values):
        return False
    return True


def found_in(tx: Tx, instance: Instance, cell: str) -> bool:
    """A server that is mapped, and was found in that cell: its mapping says so from now on, if it was there
    later than where the mapping says, as after the top database was restored.  False for one without."""
    known = show(tx, instance.uuid)
    if known is not None and known.residence < instance.residence:
        tx.run(FOUND, of=instance.uuid, here=cell, known=instance.residence)
    return known is not None


def call_off(tx: Tx, instance: Instance, here: str) -> bool:
    """Whoever is about to move the server may not any more; False if it has moved, or that was done before.

    Raises as ``move``.
    """
    if show(tx, instance.uuid) is None and here == FIRST_CELL and not instance.residence:
        kept = of_instance(instance, here, MADE, now(tx))
        insert(tx, msgspec.structs.replace(kept, residence=1))
        return True
    return tx.run(CALL_OFF, of=instance.uuid, here=here, known=instance.residence) == 1


def queue_for_delete(tx: Tx, uuid: str, queued: bool) -> None:
    """A server that is being deleted is shown no more when its cell is down (API-98)."""
    tx.run(QUEUE, of=uuid, queued=queued)


def drop_pending(tx: Tx, uuid: str) -> bool:
    """Forget a server that was never made; False if it was (or somebody else forgot it)."""
    return tx.run(DROP_PENDING, of=uuid) == 1


def overdue(tx: Tx, age: int, limit: int) -> list[InstanceMapping]:
    """Those that have been pending for longer than ``age`` microseconds, oldest first."""
    return [_from_row(row) for row in tx.all(OVERDUE, age=age, page_size=limit)]


def living_in(tx: Tx, cell_uuid: str, project_id: str | None, limit: int) -> list[InstanceMapping]:
    """The servers of a cell (and of a project) that nobody has deleted, the newest first."""
    if project_id is None:
        rows = tx.all(LIVING_IN, cell_uuid=cell_uuid, page_size=limit)
    else:
        rows = tx.all(LIVING_OF_IN, cell_uuid=cell_uuid, project_id=project_id, page_size=limit)
    return [_from_row(row) for row in rows]


def uuids_in(tx: Tx, cell_uuid: str) -> frozenset[str]:
    """All that are mapped there, deleted or not."""
    return frozenset(row[0] for row in tx.all(UUIDS_IN, cell_uuid=cell_uuid))


def drop_cell(tx: Tx, cell_uuid: str) -> None:
    """Forget what is mapped there: for a cell that goes."""
    tx.run(DROP_CELL, cell_uuid=cell_uuid)


def now(tx: Tx) -> int:
    """This database's clock."""
    return int(tx.scalar(NOW))
