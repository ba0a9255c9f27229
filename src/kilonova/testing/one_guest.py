"""Whether one guest is left of a server, where the server is, and nothing of it is elsewhere.

What holds after every move, however it has ended and whoever died meanwhile, on simulated and real hosts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from sqlalchemy import select

from kilonova.db import instances, migrations, placement
from kilonova.db.engine import Tx
from kilonova.db.tables.cells import migration_contexts
from kilonova.db.tables.compute import hosts
from kilonova.db.tables.network import port_bindings, ports
from kilonova.model.instance import Instance
from kilonova.model.migration import Migration, Status
from kilonova.model.states import Power, Vm
from kilonova.testing import audit
from kilonova.virt.fake.guests import PARKED

GOES_ON = frozenset({Status.COMPLETED, Status.FINISHED, Status.CONFIRMED, Status.DONE})
STAYS = frozenset({Status.FAILED, Status.ERROR, Status.CANCELLED, Status.REVERTED})


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has of a server: its guest's power state, ports that are plugged and those of them that are
    not wired, files, and files put aside."""

    power: int | None = None
    plugged: int = 0
    unwired: int = 0
    files: bool = False
    aside: bool = False


def complaints(tx: Tx, uuid: str, sights: Mapping[str, Sight], *, also_off: bool = False) -> list[str]:
    """Everything about a server in rest that is not as it should be; empty in a sound cloud.

    ``sights``: of all hosts.  ``also_off``: a host has lost its power, and the guest may have with it.  The
    guest of a server in error, which says why, need not run.
    """
    server = instances.show(tx, uuid)
    if server is None:
        return [f"server {uuid} is gone"]
    moves = migrations.page(tx, {"instance_uuid": uuid}, newest_first=True)
    newest = moves[0] if moves else None
    result = list(_guest(server, sights, also_off=also_off))
    result += _files(server, newest, sights)
    result += _told(server, newest)
    result += _claimed(tx, server, moves)
    result += _bound(tx, server)
    off = also_off and all(sight.power != Power.RUNNING for sight in sights.values())
    down = f"DOWN on '{server.host}'"  # its tap has gone with its power
    return result + [each for each in _audited(tx, uuid, sights) if not (off and down in each)]


def _guest(server: Instance, sights: Mapping[str, Sight], *, also_off: bool) -> Iterator[str]:
    guests = {host: sight.power for host, sight in sights.items() if sight.power is not None}
    plugged = {host: sight.plugged for host, sight in sights.items() if sight.plugged}
    if set(guests) != {server.host}:
        yield f"the server is on {server.host}, its guest {guests}"
    elif guests[str(server.host)] != Power.RUNNING and not (also_off or server.vm_state == Vm.ERROR):
        yield f"the guest does not run: {guests}"
    if plugged != {server.host: len(server.vifs)} and not also_off:
        yield f"the server on {server.host} has {len(server.vifs)} ports, plugged are {plugged}"
    for host, sight in sights.items():
        if sight.unwired and not also_off:
            yield f"{sight.unwired} ports are not wired on {host}"


def _files(server: Instance, newest: Migration | None, sights: Mapping[str, Sight]) -> Iterator[str]:
    there = sorted(host for host, sight in sights.items() if sight.files)
    if there and there != [server.host]:
        yield f"files are on {there}, the server is on {server.host}"
    aside = sorted(host for host, sight in sights.items() if sight.aside)
    resized = server.vm_state == Vm.RESIZED and newest is not None
    if aside and aside != ([newest.source_compute] if resized and newest else []):
        yield f"files are put aside on {aside}, the server is {server.vm_state}"


def _told(server: Instance, newest: Migration | None) -> Iterator[str]:
    if server.task_state is not None:
        yield f"the server is still {server.task_state}"
    if server.vm_state == Vm.ERROR and server.fault is None:
        yield "the server is in error and does not tell why"
    if newest is None:
        return
    ends = {True: newest.dest_compute, False: newest.source_compute}
    if newest.status not in GOES_ON | STAYS:
        yield f"the migration is still {newest.status}"
    elif server.host != ends[newest.status in GOES_ON]:
        said = f"{newest.source_compute} to {newest.dest_compute} is {newest.status}"
        yield f"the migration from {said}, the server is on {server.host}"
    if (newest.status == Status.FINISHED) != (server.vm_state == Vm.RESIZED):
        yield f"the migration is {newest.status}, the server {server.vm_state}"


def _claimed(tx: Tx, server: Instance, moves: list[Migration]) -> Iterator[str]:
    names: dict[Any, Any] = dict(tx.all(select(hosts.c.compute_id, hosts.c.host)))
    held = sorted(str(names.get(each)) for each in placement.held(tx, server.uuid))
    if held != [server.host]:
        yield f"the server is on {server.host} and holds {held}"
    for move in moves:
        kept = sorted(str(names.get(each)) for each in placement.held(tx, move.uuid))
        if kept != ([move.source_compute] if move.status == Status.FINISHED else []):
            yield f"the migration that is {move.status} holds {kept}"


def _bound(tx: Tx, server: Instance) -> Iterator[str]:
    found = {str(row[0]) for row in tx.all(select(ports.c.host).where(ports.c.device_id == server.uuid))}
    if found != {server.host}:
        yield f"the server is on {server.host}, its ports are bound to {sorted(found)}"
    if server.vm_state == Vm.RESIZED:
        return  # it may be reverted
    besides = tx.all(
        select(port_bindings.c.host)
        .select_from(port_bindings.join(ports, ports.c.id == port_bindings.c.port_id))
        .where(ports.c.device_id == server.uuid, port_bindings.c.host != ports.c.host)
    )
    yield from (f"a port is bound to {row[0]} besides" for row in besides)
    for (left,) in tx.all(select(migration_contexts.c.migration_uuid)):
        yield f"what the migration {left} remembers is left"


def _audited(tx: Tx, uuid: str, sights: Mapping[str, Sight]) -> list[str]:
    """The rest of the cloud, which has this server only: quota, signals, logs, events."""
    states: dict[str, int] = {}
    for sight in sights.values():
        if sight.power is not None:
            states[uuid] = sight.power
    if any(sight.aside for sight in sights.values()):
        states[uuid + PARKED] = Power.SHUTDOWN
    return audit.leaks(tx, states)
