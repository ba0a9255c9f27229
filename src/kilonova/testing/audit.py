"""Whether anything in a cloud belongs to nobody: claims, ports, guests, quota, signals, operations.

Works on the database of a cloud that is idle or stopped, and on what its fake hypervisor has.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from sqlalchemy import func, select

from kilonova.clock import SystemClock
from kilonova.db import audit_facts, instances, quotas
from kilonova.db.engine import Tx
from kilonova.db.sqlite import SqliteDatabase
from kilonova.db.tables import cells, compute, network, volume
from kilonova.db.tables.journal import action_events, actions, signals
from kilonova.model.instance import Instance
from kilonova.model.states import Power, Vm
from kilonova.resources import audit
from kilonova.virt.fake.guests import PARKED, GuestFile

_POWER = {Vm.ACTIVE: Power.RUNNING, Vm.STOPPED: Power.SHUTDOWN, Vm.SHELVED: Power.SHUTDOWN}


class State(msgspec.Struct, frozen=True):
    """What a stopped cloud has: its living servers by uuid, and every complaint."""

    servers: dict[str, Instance]
    leaks: list[str]


async def stopped(state_dir: Path) -> State:
    """Look into the state directory of a cloud that does not run."""
    file = GuestFile(state_dir / "agent" / "fake-guests.db")
    guests = file.everything()
    file.close()
    db = SqliteDatabase(state_dir / "kilonova.db", SystemClock())
    try:
        return await db.read(lambda tx: State(living(tx), leaks(tx, guests)))
    finally:
        await db.close()


def living(tx: Tx) -> dict[str, Instance]:
    rows = tx.all(select(*compute.instances.columns).where(compute.instances.c.deleted_at.is_(None)))
    found = [instances.from_row(row) for row in rows]
    return {each.uuid: each for each in found}


def leaks(tx: Tx, guests: Mapping[str, int]) -> list[str]:
    """Every thing that is not as it should be in an idle cloud; empty in a sound one.

    ``guests``: what the hypervisor has, uuid -> power state (PREPARED: only its disks).
    """
    servers = living(tx)
    result = [repr(each) for each in quotas.audit(tx)]
    result += [str(each) for each in audit.findings(audit_facts.of_top(tx), [audit_facts.of_cell(tx)])]
    result += [f"operation {row[0]} of {row[1]} is {row[2]}" for row in tx.all(_OPEN)]
    result += [f"signal {row[1]} {row[2]} of {row[0]} is left" for row in tx.all(_SIGNALS)]
    events = tx.scalar(select(func.count()).select_from(network.network_events))
    result += [f"{events} events were not delivered"] if events else []
    result += [f"files of {uuid} are put aside" for uuid in _parked(guests) if not _resized(servers, uuid)]
    guests = {uuid: state for uuid, state in guests.items() if not uuid.endswith(PARKED)}
    ports: dict[str, set[str]] = defaultdict(set)
    for port, device, host, status in tx.all(_PORTS):
        ports[device].add(port)
        if device in servers and (host, status) != _bound(servers[device]):
            result.append(f"port {port} of {device} is {status} on '{host}'")
    owed = {row[0] for row in tx.all(_OWED)}
    for kind, owners in (("a port", ports), ("a guest", guests)):
        known = {*servers, *owed} if kind == "a guest" else set(servers)
        result += [f"{kind} of {uuid}, which is no server" for uuid in owners if uuid not in known]
    for server in servers.values():
        result += _of_server(server, ports, guests)
    result += misattached(tx, servers)
    result += _counted_ports(tx)
    result += _unlogged(tx)
    return result


_OWED = select(cells.leftovers.c.instance_uuid)  # by hosts that could not be asked so far


def _parked(guests: Mapping[str, int]) -> list[str]:
    return [name.removesuffix(PARKED) for name in guests if name.endswith(PARKED)]


def _resized(servers: Mapping[str, Instance], uuid: str) -> bool:
    return uuid in servers and servers[uuid].vm_state == Vm.RESIZED


_OPEN = select(actions.c.id, actions.c.instance_uuid, actions.c.state).where(actions.c.open)
_SIGNALS = select(signals.c.instance_uuid, signals.c.name, signals.c.tag)
_PORTS = select(
    network.ports.c.id, network.ports.c.device_id, network.ports.c.host, network.ports.c.status
).where(network.ports.c.device_owner.like("compute:%"))
_ADDRESSES = select(network.port_addresses.c.address).where(
    network.port_addresses.c.port_id.not_in(select(network.ports.c.id))
)


def _of_server(server: Instance, ports: Mapping[str, set[str]], guests: Mapping[str, int]) -> Iterator[str]:
    """What a server in rest has, against what it should have."""
    uuid = server.uuid
    if server.task_state is not None:
        yield f"server {uuid} is {server.vm_state} and still {server.task_state}"
    known = {vif.port_id for vif in server.vifs}
    if known != ports.get(uuid, set()):
        yield f"server {uuid} knows the ports {known} and has {ports.get(uuid)}"
    if server.host is None:
        kinds = (("ports", {} if server.vm_state == Vm.SHELVED_OFFLOADED else ports), ("a guest", guests))
        yield from (f"server {uuid} is on no host and has {kind}" for kind, held in kinds if uuid in held)
        if server.vm_state in _POWER:
            yield f"server {uuid} is {server.vm_state} on no host"
        return
    wanted = _POWER.get(server.vm_state)
    if wanted is not None and (guests.get(uuid), server.power_state) != (wanted, wanted):
        yield f"server {uuid} is {server.vm_state}, its guest {guests.get(uuid)}, noted {server.power_state}"


def _bound(server: Instance) -> tuple[str | None, str]:
    """Where its ports should be, and in which status: those of one that was shelved away are nowhere."""
    return ("", "DOWN") if server.vm_state == Vm.SHELVED_OFFLOADED else (server.host, "ACTIVE")


_ATTACHMENTS = select(
    volume.volume_attachments.c.instance_uuid,
    volume.volume_attachments.c.volume_id,
    volume.volume_attachments.c.id,
    volume.volume_attachments.c.status,
    volume.volume_attachments.c.host,
)


def misattached(tx: Tx, servers: Mapping[str, Instance]) -> Iterator[str]:
    """Each volume of a server has one attachment, to the server's host, and there are no others."""
    there = {tuple(row) for row in tx.all(_ATTACHMENTS)}
    known = {
        (server.uuid, each.volume_id, each.attachment_id, "attached", server.host)
        for server in servers.values()
        for each in server.volumes
    }
    yield from (f"the attachment {each} is no server's" for each in sorted(there - known, key=str))
    yield from (f"the attachment {each} is not there" for each in sorted(known - there, key=str))


def _counted_ports(tx: Tx) -> Iterator[str]:
    """Neutron's quota of ports, and addresses without a port."""
    table = network.network_usages
    counted = {
        row[0]: row[1]
        for row in tx.all(select(table.c.project_id, table.c.used).where(table.c.resource == "port"))
    }
    there = dict(
        (row[0], row[1])
        for row in tx.all(
            select(network.ports.c.project_id, func.count())
            .where(network.ports.c.device_owner != "network:dhcp")  # which nobody is charged for
            .group_by(network.ports.c.project_id)
        )
    )
    for project in {*counted, *there}:
        if counted.get(project, 0) != there.get(project, 0):
            yield f"project {project} is booked {counted.get(project, 0)} ports, has {there.get(project, 0)}"
    yield from (f"the address {row[0]} belongs to no port" for row in tx.all(_ADDRESSES))


def _unlogged(tx: Tx) -> Iterator[str]:
    """Operations whose log does not tell what they did: each step of a finished one, once a round."""
    logged: dict[int, list[str]] = defaultdict(list)
    for action, step in tx.all(
        select(action_events.c.action_id, action_events.c.step).where(
            action_events.c.phase == "do", action_events.c.result == "Success"
        )
    ):
        logged[action].append(step)
    query = select(
        actions.c.id, actions.c.plan, actions.c.state, actions.c.finish_time, actions.c.message
    ).where(~actions.c.open)
    for action, plan, state, finished, message in tx.all(query):
        if finished is None or state not in ("done", "failed") or (state == "failed") != (message == "Error"):
            yield f"operation {action} is closed as {state}, finished {finished}, message {message}"
        missing = set(json.loads(plan)) - set(logged[action])
        if state == "done" and missing:
            yield f"operation {action} is done, its log lacks {missing}"
