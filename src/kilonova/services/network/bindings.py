"""Ports that are bound to two hosts, because their server moves from one to the other."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from kilonova.db import network_bindings as bindings
from kilonova.db import network_ports as ports
from kilonova.db.network_records import Binding, Port
from kilonova.errors import Conflict
from kilonova.model.port import DELEGATION, Profiles
from kilonova.services.network.ports import binding, tell_if_left
from kilonova.services.network.work import Work


def add(
    work: Work, instance_uuid: str, host: str, details: dict[str, str], profiles: Profiles | None
) -> None:
    """Bind the server's ports to a host, beside the one that has them.  Raises Conflict."""
    known = bindings.of_device(work.tx, instance_uuid, host)
    for port in ports.of_device(work.tx, instance_uuid):
        if port.host != host:
            put(work, port, known.get(port.id), _new(port, host, details, profiles))


def _new(port: Port, host: str, details: dict[str, str], profiles: Profiles | None) -> Binding:
    profile = dict(port.profile)
    if profiles is not None:  # who says it of some ports, says that the others are not
        profile |= {DELEGATION: False, **profiles.get(port.id, {})}
    return new_binding(port, host, port.vnic_type, details, profile)


def new_binding(
    port: Port, host: str, vnic_type: str, details: dict[str, Any], profile: dict[str, Any]
) -> Binding:
    """What a port's binding to a host is.  Raises Conflict when there can be none."""
    vif_type, vif_details = binding(host, vnic_type, details)
    if vif_type == "binding_failed":
        raise Conflict(
            f"Binding failed for port {port.id} on host {host}: its vnic_type {vnic_type} is not supported."
        )
    return Binding(port.id, host, port.network_id, vif_type, vif_details, profile, "DOWN")


def put(work: Work, port: Port, known: Binding | None, new: Binding) -> None:
    """Have the port bound like this."""
    if known is None:
        bindings.insert(work.tx, new)
    elif replace(known, status=new.status) != new:
        bindings.change(work.tx, new)
    else:
        return
    work.ports.add(port.id)


def activate(work: Work, instance_uuid: str, host: str) -> None:
    """Have the server's ports at a host to which they are bound.  Raises Conflict."""
    known = bindings.of_device(work.tx, instance_uuid, host)
    for port in ports.of_device(work.tx, instance_uuid):
        if port.host == host:
            continue
        if port.id not in known:
            raise Conflict(f"Port {port.id} is not bound to host {host}, so it cannot be activated there.")
        activate_one(work, port, known[port.id])


def activate_one(work: Work, port: Port, to: Binding) -> Port:
    """The port as it is then; the binding that was active is kept, and is so no more."""
    bindings.remove(work.tx, port.id, to.host)
    if port.host:
        former = Binding(
            port.id,
            port.host,
            port.network_id,
            port.vif_type,
            port.vif_details,
            port.profile,
            port.status,
        )
        bindings.insert(work.tx, former)
    changes: dict[str, Any] = {
        "host": to.host,
        "vif_type": to.vif_type,
        "vif_details": to.vif_details,
        "profile": to.profile,
        "status": to.status,
    }
    work.ports.add(port.id)
    return ports.update_port(work.tx, port.id, work.now, changes)


def remove(work: Work, instance_uuid: str, host: str) -> None:
    """Remove the server's bindings to a host that does not have the ports."""
    for port in ports.of_device(work.tx, instance_uuid):
        remove_one(work, port, host)


def remove_one(work: Work, port: Port, host: str) -> bool:
    """Whether the port had such a binding."""
    if not bindings.remove(work.tx, port.id, host):
        return False
    work.ports.add(port.id)
    tell_if_left(work, port.network_id, host)
    return True
