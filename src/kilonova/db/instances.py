"""Servers in the database: made, found, changed under compare-and-set, and marked as deleted.

Rows of deleted servers stay; ``deleted_at`` tells them from the living.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import bindparam, case, func, or_, select
from sqlalchemy import update as update_clause

from kilonova.db.engine import Row, Statement, Tx, db_now, insert_into
from kilonova.db.tables.compute import instances
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Fault, ImageMeta, Instance
from kilonova.model.port import Vif
from kilonova.model.states import Power, Vm


class _Any:
    """Any task_state will do."""

    def __repr__(self) -> str:
        return "ANY"


ANY: Final = _Any()
Expected = tuple[str | None, ...] | None | _Any

_t = instances
_living = _t.c.deleted_at.is_(None)

INSERT = insert_into(instances, returning="id")
SHOW = Statement(select(*_t.columns).where(_t.c.uuid == bindparam("uuid"), _living))
SHOW_ANY = Statement(select(*_t.columns).where(_t.c.uuid == bindparam("uuid")))
BY_HOST = Statement(select(*_t.columns).where(_t.c.host == bindparam("host"), _living).order_by(_t.c.id))
UUIDS_BY_HOST = Statement(select(_t.c.uuid).where(_t.c.host == bindparam("host"), _living).order_by(_t.c.id))
UUIDS = Statement(select(_t.c.uuid).order_by(_t.c.id))
COUNT = Statement(select(func.count()).select_from(_t).where(_living))
_differs = _t.c.power_state != bindparam("power_state")
OBSERVE = Statement(
    update_clause(_t)
    .where(_t.c.uuid == bindparam("of"), _living, _t.c.power_generation < bindparam("generation"))
    .values(
        power_state=bindparam("power_state"),
        power_generation=bindparam("generation"),
        # what is as it was is no change of the server: a restart of an agent touches none of its servers
        version=case((_differs, _t.c.version + 1), else_=_t.c.version),
        updated_at=case((_differs, db_now()), else_=_t.c.updated_at),
    )
    .returning(_t.c.vm_state, _t.c.task_state)
)
MARK_DELETED = Statement(
    update_clause(_t)
    .where(_t.c.uuid == bindparam("of"), _living)
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


def show_any(tx: Tx, uuid: str) -> Instance | None:
    """A server, deleted or not."""
    row = tx.one(SHOW_ANY, uuid=uuid)
    return None if row is None else from_row(row)


def by_host(tx: Tx, host: str) -> list[Instance]:
    """The living servers of a host, oldest first."""
    return [from_row(row) for row in tx.all(BY_HOST, host=host)]


def uuids_by_host(tx: Tx, host: str) -> list[str]:
    """As ``by_host``, only their ids."""
    return [row[0] for row in tx.all(UUIDS_BY_HOST, host=host)]


def count(tx: Tx) -> int:
    """How many living servers there are."""
    return int(tx.scalar(COUNT))


def uuids_but(tx: Tx, known: Collection[str]) -> list[str]:
    """The servers of this database, deleted ones too, that are not among the ``known``, oldest first."""
    return [row[0] for row in tx.all(UUIDS) if row[0] not in known]


@lru_cache(maxsize=1024)
def _update_statement(changed: frozenset[str], tasks: int, idle: bool, any_task: bool, vms: int) -> Statement:
    unknown = changed - set(_names)
    if unknown:
        raise TypeError(f"a server has no {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in changed}
    values["version"] = _t.c.version + 1
    values.setdefault("updated_at", db_now())
    clause = update_clause(_t).where(_t.c.uuid == bindparam("of"), _living).values(values)
    if not any_task:
        allowed = [_t.c.task_state == bindparam(f"task_{number}") for number in range(tasks)]
        if idle:
            allowed.append(_t.c.task_state.is_(None))
        clause = clause.where(or_(*allowed))
    if vms:
        clause = clause.where(_t.c.vm_state.in_([bindparam(f"vm_{number}") for number in range(vms)]))
    return Statement(clause)


def update(
    tx: Tx, uuid: str, *, expect_task: Expected, expect_vm: Sequence[str] = (), **changes: Any
) -> bool:
    """Change fields of a living server if its task_state is as expected; False if it is not (any more).

    ``expect_task``: a tuple of those that will do (None in it: idle), None for idle, ANY for any.
    ``expect_vm``: the vm_states that will do; none named: any.  Values are those of the record's fields.
    ``version`` rises and ``updated_at`` is set to the database's time, unless it is given.
    """
    tasks: tuple[str | None, ...] = ()
    if not isinstance(expect_task, _Any):
        tasks = (None,) if expect_task is None else expect_task
        if not tasks:
            raise ValueError("no task_state would do")
    named = [task for task in tasks if task is not None]
    statement = _update_statement(
        frozenset(changes), len(named), None in tasks, expect_task is ANY, len(expect_vm)
    )
    values = {f"new_{name}": _stored(name, value) for name, value in changes.items()}
    values.update((f"task_{number}", task) for number, task in enumerate(named))
    values.update((f"vm_{number}", state) for number, state in enumerate(expect_vm))
    return tx.run(statement, of=uuid, **values) == 1


def observe(tx: Tx, uuid: str, power_state: int, generation: int) -> tuple[str, str | None] | None:
    """Take over what an agent reports of a guest.

    The server's vm_state and task_state; None for a report that is older than what is known.
    """
    row = tx.one(OBSERVE, of=uuid, power_state=power_state, generation=generation)
    return None if row is None else (row[0], row[1])


def mark_deleted(tx: Tx, uuid: str, now: int) -> bool:
    """The server is gone; its row stays as deleted.  False if it was so already."""
    return tx.run(MARK_DELETED, of=uuid, now=now) == 1
