"""Compute hosts: what their agents said last, and what administrators said of them.

Inventories are placement's; here is what the service and hypervisor lists show and the scheduler asks.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import bindparam, case, delete, func, insert, or_, select, update

from kilonova.clock import SECOND
from kilonova.db import epochs
from kilonova.db.engine import Row, Statement, Tx, db_now
from kilonova.db.tables.compute import hosts, instances
from kilonova.errors import Conflict, NotFound
from kilonova.model.host import Host, HostReport, Metric

_t = hosts
_names = Host.__struct_fields__
_columns = [_t.c[name] for name in _names]

_REPORTED = (
    "hypervisor_hostname",
    "hypervisor_type",
    "hypervisor_version",
    "host_ip",
    "cpu_info",
    "details",
    "started_at",
    "version",
    "metrics",
)
CHANGED: dict[str, Any] = {"changed_at": db_now(), "revision": _t.c.revision + 1}
"""What every change sets that a view in memory must hear of."""

INSERT = Statement(
    insert(_t)
    .values({name: bindparam(name) for name in _names if name != "id"})
    .values(changed_at=db_now(), revision=bindparam("revision"))
    .returning(_t.c.id)
)
ALL = Statement(select(*_columns).order_by(_t.c.id))
SHOW = Statement(select(*_columns).where(_t.c.host == bindparam("host")))
BY_SERVICE = Statement(select(*_columns).where(_t.c.service_uuid == bindparam("service_uuid")))
BY_COMPUTE = Statement(select(*_columns).where(_t.c.compute_id == bindparam("compute_id")))
BY_ID = Statement(select(*_columns).where(_t.c.id == bindparam("id")))
KNOWN = Statement(
    select(*_columns).where(or_(_t.c.host == bindparam("host"), _t.c.compute_id == bindparam("compute_id")))
)
REPORT = Statement(
    update(_t)
    .where(_t.c.host == bindparam("of"))
    .values(
        **{name: bindparam(f"new_{name}") for name in _REPORTED},
        session=bindparam("new_session"),
        last_seen_at=bindparam("now"),
        report_count=_t.c.report_count + 1,
        updated_at=bindparam("now"),
        booted_at=case((_t.c.boot_id == bindparam("new_boot_id"), _t.c.booted_at), else_=bindparam("now")),
        **CHANGED,
    )
)
HEARTBEAT_CLAUSE = (
    update(_t)
    .where(_t.c.host == bindparam("of"))
    .values(last_seen_at=bindparam("now"), report_count=_t.c.report_count + 1, updated_at=bindparam("now"))
)
HEARTBEAT = Statement(HEARTBEAT_CLAUSE)
HEARTBEAT_OF_SESSION = Statement(HEARTBEAT_CLAUSE.where(_t.c.session == bindparam("heard")))
SESSION = Statement(select(_t.c.session, _t.c.version).where(_t.c.host == bindparam("host")))
DISABLE = Statement(
    update(_t)
    .where(_t.c.host == bindparam("of"))
    .values(
        disabled=bindparam("new"),
        disabled_reason=bindparam("reason"),
        updated_at=bindparam("now"),
        **CHANGED,
    )
)
FORCE_DOWN = Statement(
    update(_t)
    .where(_t.c.host == bindparam("of"))
    .values(forced_down=bindparam("new"), updated_at=bindparam("now"), **CHANGED)
)
COUNT_FAILED_BUILD = Statement(
    update(_t).where(_t.c.host == bindparam("of")).values(failed_builds=_t.c.failed_builds + 1, **CHANGED)
)
FORGET_FAILED_BUILDS = Statement(
    update(_t).where(_t.c.host == bindparam("of"), _t.c.failed_builds > 0).values(failed_builds=0, **CHANGED)
)
NOTE_BOOT = Statement(update(_t).where(_t.c.host == bindparam("of")).values(boot_id=bindparam("new")))
DELETE = Statement(delete(_t).where(_t.c.host == bindparam("host")))
COUNT = Statement(select(func.count()).select_from(_t))
_i = instances.c
GUESTS = Statement(
    select(_i.host, _i.id, _i.uuid, _i.task_state)
    .where(_i.deleted_at.is_(None), _i.host.is_not(None))
    .order_by(_i.id)
)

_encode = msgspec.json.Encoder().encode
_cpu_info = msgspec.json.Decoder(dict[str, object]).decode
_details = msgspec.json.Decoder(dict[str, str]).decode
_decoders: dict[str, Callable[[Any], Any]] = {
    "cpu_info": _cpu_info,
    "details": _details,
    "metrics": msgspec.json.Decoder(tuple[Metric, ...]).decode,
    "disabled": bool,
    "forced_down": bool,
}
_LARGEST_ID = 2**63 - 1
REVISION_BITS = 40


def from_row(row: Row) -> Host:
    values = dict(zip(_names, row, strict=True))
    for name, decode in _decoders.items():
        values[name] = decode(values[name])
    return Host(**values)


def _found(row: Row | None) -> Host | None:
    return None if row is None else from_row(row)


def upsert(
    tx: Tx,
    report: HostReport,
    now: int,
    new_uuid: Callable[[], str] = lambda: str(uuid.uuid4()),
    *,
    session: str = "",
    cell_uuid: str | None = None,
) -> Host:
    """Take over what an agent says of its host; a host that is new gets a service of its own.

    ``session`` names this life of the agent: from now on it is the only one that is spoken to.

    Raises Conflict when the name and the compute id are not those that belong together, which is what a
    renamed host or a lost state directory looks like, and for a host that was of another cell;
    UniqueViolation when two agents register at once.
    """
    known = _known(tx, report, cell_uuid)
    reported: dict[str, Any] = {name: getattr(report, name) for name in _REPORTED}
    for name in ("cpu_info", "details", "metrics"):
        reported[name] = _encode(reported[name]).decode()
    if known:
        new = {f"new_{name}": value for name, value in reported.items()}
        new["new_boot_id"] = report.boot_id
        tx.run(REPORT, of=report.host, now=now, new_session=session, **new)
    else:
        values = {
            "service_uuid": new_uuid(),
            "compute_id": report.compute_id,
            "host": report.host,
            "availability_zone": None,
            "disabled": False,
            "disabled_reason": None,
            "forced_down": False,
            "last_seen_at": now,
            "report_count": 1,
            "created_at": now,
            "updated_at": None,
            "session": session,
            "cell_uuid": cell_uuid,
            "failed_builds": 0,
            "boot_id": "",
            "booted_at": now,
            "revision": secrets.randbits(REVISION_BITS),  # not that of a host that was there before
            **reported,
        }
        tx.scalar(INSERT, **values)
    host_now = show(tx, report.host)
    assert host_now is not None
    return host_now


def _known(tx: Tx, report: HostReport, cell_uuid: str | None) -> bool:
    """Whether this very host has reported before.  Raises Conflict for one that is another by now."""
    known = [from_row(row) for row in tx.all(KNOWN, host=report.host, compute_id=report.compute_id)]
    for host in known:
        if host.host != report.host or host.compute_id != report.compute_id:
            raise Conflict(
                f"The host '{report.host}' reports as compute node {report.compute_id}, but the host "
                f"'{host.host}' is known as {host.compute_id}: give it back its name or its compute id, or "
                "delete the old service."
            )
        if host.cell_uuid != cell_uuid:
            raise Conflict(
                f"The host '{host.host}' belongs to {_cell(host.cell_uuid)}, where its servers are, and "
                f"reports to {_cell(cell_uuid)}."
            )
    return bool(known)


def _cell(uuid: str | None) -> str:
    return "the first cell" if uuid is None else f"the cell {uuid}"


def heartbeat(tx: Tx, host: str, now: int, session: str | None = None) -> bool:
    """The host is alive; False for one that has never reported or was deleted, and for a ``session`` that
    is not the last that has reported: it must report first."""
    if session is None:
        return tx.run(HEARTBEAT, of=host, now=now) == 1
    return tx.run(HEARTBEAT_OF_SESSION, of=host, now=now, heard=session) == 1


def session(tx: Tx, host: str) -> tuple[str, str] | None:
    """The session of the host's agent that is to be spoken to, and the version of messages that it knows."""
    row = tx.one(SESSION, host=host)
    return None if row is None else (row[0], row[1])


def is_up(host: Host, now: int, service_down_time: float) -> bool:
    """Whether the host was heard of within ``service_down_time`` seconds and nobody declared it down."""
    return not host.forced_down and abs(now - host.last_seen_at) <= service_down_time * SECOND


def list_all(tx: Tx) -> list[Host]:
    """Every host, oldest first."""
    return [from_row(row) for row in tx.all(ALL)]


def show(tx: Tx, host: str) -> Host | None:
    return _found(tx.one(SHOW, host=host))


def by_service(tx: Tx, service: str) -> Host | None:
    """By the service's uuid, or by its number."""
    if service.isdecimal():
        return by_number(tx, int(service))
    return _found(tx.one(BY_SERVICE, service_uuid=service.lower()))


def by_node(tx: Tx, node: str) -> Host | None:
    """By the compute node's uuid, or by its number."""
    if node.isdecimal():
        return by_number(tx, int(node))
    return _found(tx.one(BY_COMPUTE, compute_id=node.lower()))


def by_number(tx: Tx, number: int) -> Host | None:
    return _found(tx.one(BY_ID, id=number)) if 0 <= number <= _LARGEST_ID else None


def set_disabled(tx: Tx, host: str, disabled: bool, reason: str | None, now: int) -> None:
    """Whether new servers may go there.  Raises NotFound."""
    if not tx.run(DISABLE, of=host, new=disabled, reason=reason, now=now):
        raise NotFound(f"Compute host {host} could not be found.")


def set_forced_down(tx: Tx, host: str, forced_down: bool, now: int) -> None:
    """An administrator's word that the host is down (so that it may be evacuated).  Raises NotFound."""
    if not tx.run(FORCE_DOWN, of=host, new=forced_down, now=now):
        raise NotFound(f"Compute host {host} could not be found.")


def remove(tx: Tx, host: str) -> None:
    """Forget a host.  Raises NotFound."""
    if not tx.run(DELETE, host=host):
        raise NotFound(f"Compute host {host} could not be found.")
    epochs.bump(tx, epochs.HOSTS)


def count_failed_build(tx: Tx, host: str) -> None:
    """A server could not be made there."""
    tx.run(COUNT_FAILED_BUILD, of=host)


def forget_failed_builds(tx: Tx, host: str) -> None:
    """A server was made there, so that whatever failed before is over."""
    tx.run(FORGET_FAILED_BUILDS, of=host)


def note_boot(tx: Tx, host: str, boot_id: str) -> None:
    """What there was to do since the host was booted is written down."""
    tx.run(NOTE_BOOT, of=host, new=boot_id)


def count(tx: Tx) -> int:
    return int(tx.scalar(COUNT))


class Guest(msgspec.Struct, frozen=True):
    """A living server of a host, in the few words that lists of hypervisors need."""

    id: int
    uuid: str
    task_state: str | None


def guests(tx: Tx) -> dict[str, list[Guest]]:
    """Host -> its living servers, oldest first."""
    found: dict[str, list[Guest]] = {}
    for host, number, server, task_state in tx.all(GUESTS):
        found.setdefault(host, []).append(Guest(number, server, task_state))
    return found
