"""Servers in the database: made, found, changed under compare-and-set, and marked as deleted.

Rows of deleted servers stay; ``deleted_at`` tells them from the living.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import bindparam, case, func, or_, select
from sqlalchemy import update as update_clause

from kilonova.db.engine import Row, Statement, Tx, db_now, insert_into
from kilonova.db.tables.compute import instances
from kilonova.errors import Conflict
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Fault, ImageMeta, Instance
from kilonova.model.port import Vif
from kilonova.model.states import Power, Vm
from kilonova.model.volume import Attachment


class _Any:
    """Any task_state will do."""

    def __repr__(self) -> str:
        return "ANY"


ANY: Final = _Any()
Expected = tuple[str | None, ...] | None | _Any

_t = instances
_living = _t.c.deleted_at.is_(None)
_staying = _t.c.leaving.is_(None)

INSERT = insert_into(instances, returning="id")
SHOW = Statement(select(*_t.columns).where(_t.c.uuid == bindparam("uuid"), _living))
LOCKED = Statement(select(*_t.columns).where(_t.c.uuid == bindparam("uuid"), _living).with_for_update())
SHOW_ANY = Statement(select(*_t.columns).where(_t.c.uuid == bindparam("uuid")))
BY_HOST = Statement(select(*_t.columns).where(_t.c.host == bindparam("host"), _living).order_by(_t.c.id))
SHELVED = Statement(select(*_t.columns).where(_t.c.vm_state == Vm.SHELVED, _living).order_by(_t.c.id))
UUIDS_BY_HOST = Statement(select(_t.c.uuid).where(_t.c.host == bindparam("host"), _living).order_by(_t.c.id))
LEAVING_FOR = Statement(select(_t.c.leaving).where(_t.c.uuid == bindparam("uuid"), _living))
HOST_OF = Statement(select(_t.c.host).where(_t.c.uuid == bindparam("uuid"), _living))
UUIDS = Statement(select(_t.c.uuid).where(_staying).order_by(_t.c.id))
LEAVING = Statement(select(*_t.columns).where(_t.c.leaving.is_not(None)).order_by(_t.c.id))
UUIDS_LEAVING = Statement(select(_t.c.uuid).where(_t.c.leaving.is_not(None)))
LEAVE = Statement(
    update_clause(_t).where(_t.c.uuid == bindparam("of"), _living).values(leaving=bindparam("cell"))
)
STAY = Statement(
    update_clause(_t)
    .where(_t.c.uuid == bindparam("of"), _t.c.leaving.is_not(None), _t.c.residence == bindparam("known"))
    .values(leaving=None, residence=bindparam("new_residence"))
)
COUNT = Statement(select(func.count()).select_from(_t).where(_living))
_differs = _t.c.power_state != bindparam("power_state")
_observe = (
    update_clause(_t)
    .where(_t.c.uuid == bindparam("of"), _living, _staying, _t.c.power_generation < bindparam("generation"))
    .values(
        power_state=bindparam("power_state"),
        power_generation=bindparam("generation"),
        # what is as it was is no change of the server: a restart of an agent touches none of its servers
        version=case((_differs, _t.c.version + 1), else_=_t.c.version),
        updated_at=case((_differs, db_now()), else_=_t.c.updated_at),
    )
    .returning(_t.c.vm_state, _t.c.task_state)
)
OBSERVE = Statement(_observe)
OBSERVE_AT = Statement(_observe.where(_t.c.host == bindparam("at")))
MARK_DELETED = Statement(
    update_clause(_t)
    .where(_t.c.uuid == bindparam("of"), _living, _staying)
    .values(
        vm_state=Vm.DELETED,
        task_state=None,
        power_state=Power.NOSTATE,
        deleted_at=bindparam("now"),
        terminated_at=bindparam("now"),
        updated_at=bindparam("now"),
        version=_t.c.version + 1,
    )
)

_encode = msgspec.json.Encoder().encode
_texts = msgspec.json.Decoder(dict[str, str])
_words = msgspec.json.Decoder(tuple[str, ...])
_hints = msgspec.json.Decoder(dict[str, object])
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    "flavor": msgspec.json.Decoder(Flavor),
    "image": msgspec.json.Decoder(ImageMeta),
    "metadata": _texts,
    "system_metadata": _texts,
    "tags": _words,
    "hints": _hints,
    "security_groups": _words,
    "vifs": msgspec.json.Decoder(tuple[Vif, ...]),
    "volumes": msgspec.json.Decoder(tuple[Attachment, ...]),
    "fault": msgspec.json.Decoder(Fault),
}
_names = [column.name for column in instances.columns]
assert tuple(_names) == Instance.__struct_fields__, (
    "the record and the table have the same fields in one order"
)
_positions = [(_names.index(name), decoder.decode) for name, decoder in _decoders.items()]
_config_drive = _names.index("config_drive")


def from_row(row: Row) -> Instance:
    """The record of a row that has all columns in the table's order."""
    values = list(row)
    for position, decode in _positions:
        if values[position] is not None:
            values[position] = decode(values[position])
    values[_config_drive] = bool(values[_config_drive])
    return Instance(**dict(zip(_names, values, strict=True)))


def _stored(name: str, value: Any) -> Any:
    if name in _decoders and value is not None:
        return _encode(value).decode()
    return value


def insert(tx: Tx, instance: Instance) -> int:
    """Add a server; its number, which the database counts.  Raises UniqueViolation for a known uuid."""
    values = {name: _stored(name, getattr(instance, name)) for name in _names if name != "id"}
    return int(tx.scalar(INSERT, **values))


def show(tx: Tx, uuid: str) -> Instance | None:
    """A living server."""
    row = tx.one(SHOW, uuid=uuid)
    return None if row is None else from_row(row)


def locked(tx: Tx, uuid: str) -> Instance | None:
    """A living server that nobody else changes until this commit: for what is made of what it has."""
    row = tx.one(LOCKED, uuid=uuid)
    return None if row is None else from_row(row)


def show_any(tx: Tx, uuid: str) -> Instance | None:
    """A server, deleted or not."""
    row = tx.one(SHOW_ANY, uuid=uuid)
    return None if row is None else from_row(row)


def by_host(tx: Tx, host: str) -> list[Instance]:
    """The living servers of a host, oldest first."""
    return [from_row(row) for row in tx.all(BY_HOST, host=host)]


def shelved(tx: Tx) -> list[Instance]:
    """The living servers that are shelved and still on their hosts, oldest first."""
    return [from_row(row) for row in tx.all(SHELVED)]


def uuids_by_host(tx: Tx, host: str) -> list[str]:
    """As ``by_host``, only their ids."""
    return [row[0] for row in tx.all(UUIDS_BY_HOST, host=host)]


def those_of_host(tx: Tx, host: str, uuids: Iterable[str]) -> set[str]:
    """Which of these living servers are on a host."""
    return {uuid for uuid in uuids if tx.scalar(HOST_OF, uuid=uuid) == host}


def count(tx: Tx) -> int:
    """How many living servers there are."""
    return int(tx.scalar(COUNT))


def uuids_but(tx: Tx, known: Collection[str]) -> list[str]:
    """The servers of this database, deleted ones too, that are not among the ``known``, oldest first."""
    return [row[0] for row in tx.all(UUIDS) if row[0] not in known]


@lru_cache(maxsize=1024)
def _update_statement(
    changed: frozenset[str], tasks: int, idle: bool, any_task: bool, vms: int, leaving: bool
) -> Statement:
    unknown = changed - set(_names)
    if unknown:
        raise TypeError(f"a server has no {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in changed}
    values["version"] = _t.c.version + 1
    values.setdefault("updated_at", db_now())
    clause = update_clause(_t).where(_t.c.uuid == bindparam("of"), _living).values(values)
    if not leaving:
        clause = clause.where(_staying)
    if not any_task:
        allowed = [_t.c.task_state == bindparam(f"task_{number}") for number in range(tasks)]
        if idle:
            allowed.append(_t.c.task_state.is_(None))
        clause = clause.where(or_(*allowed))
    if vms:
        clause = clause.where(_t.c.vm_state.in_([bindparam(f"vm_{number}") for number in range(vms)]))
    return Statement(clause)


def update(
    tx: Tx,
    uuid: str,
    *,
    expect_task: Expected,
    expect_vm: Sequence[str] = (),
    even_leaving: bool = False,
    **changes: Any,
) -> bool:
    """Change fields of a living server if its task_state is as expected; False if it is not (any more).

    ``expect_task``: a tuple of those that will do (None in it: idle), None for idle, ANY for any.
    ``expect_vm``: the vm_states that will do; none named: any.  Values are those of the record's fields.
    ``version`` rises and ``updated_at`` is set to the database's time, unless it is given.

    Raises Conflict while the server is leaving for another cell, unless ``even_leaving``.
    """
    tasks: tuple[str | None, ...] = ()
    if not isinstance(expect_task, _Any):
        tasks = (None,) if expect_task is None else expect_task
        if not tasks:
            raise ValueError("no task_state would do")
    named = [task for task in tasks if task is not None]
    statement = _update_statement(
        frozenset(changes), len(named), None in tasks, expect_task is ANY, len(expect_vm), even_leaving
    )
    values = {f"new_{name}": _stored(name, value) for name, value in changes.items()}
    values.update((f"task_{number}", task) for number, task in enumerate(named))
    values.update((f"vm_{number}", state) for number, state in enumerate(expect_vm))
    changed = tx.run(statement, of=uuid, **values) == 1
    if not changed and not even_leaving:
        _check_stays(tx, uuid)
    return changed


def _check_stays(tx: Tx, uuid: str) -> None:
    if tx.scalar(LEAVING_FOR, uuid=uuid) is not None:
        raise Conflict(f"Instance {uuid} is moving to another cell: repeat the request in a moment.")


# ---- from one cell to another ----


def leave(tx: Tx, uuid: str, cell: str) -> None:
    """From now on nobody changes the server here: it is leaving for that cell."""
    tx.run(LEAVE, of=uuid, cell=cell)


def stay(tx: Tx, uuid: str, known: int, residence: int) -> bool:
    """It does not leave after all, and has another number; False if it was not leaving as ``known``."""
    return tx.run(STAY, of=uuid, known=known, new_residence=residence) == 1


def leaving(tx: Tx) -> list[Instance]:
    """Those that are on their way to another cell, oldest first."""
    return [from_row(row) for row in tx.all(LEAVING)]


def uuids_leaving(tx: Tx) -> list[str]:
    return [row[0] for row in tx.all(UUIDS_LEAVING)]


# ---- what becomes of them ----


def observe(
    tx: Tx, uuid: str, power_state: int, generation: int, *, host: str | None = None
) -> tuple[str, str | None] | None:
    """Take over what an agent reports of a guest.

    The server's vm_state and task_state; None for a report that is older than what is known, or comes from a
    ``host`` that the server is not on any more.
    """
    values = {"of": uuid, "power_state": power_state, "generation": generation}
    row = tx.one(OBSERVE, **values) if host is None else tx.one(OBSERVE_AT, at=host, **values)
    return None if row is None else (row[0], row[1])


def mark_deleted(tx: Tx, uuid: str, now: int) -> bool:
    """The server is gone; its row stays as deleted.  False if it was so already.  Raises as ``update``."""
    marked = tx.run(MARK_DELETED, of=uuid, now=now) == 1
    if not marked:
        _check_stays(tx, uuid)
    return marked
