"""The ports of servers: what compute asks for, in transactions that may be repeated."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.db import network_bindings as bindings
from kilonova.db import network_groups as groups
from kilonova.db import network_ledger as ledger
from kilonova.db import network_networks as networks
from kilonova.db import network_ports as ports
from kilonova.db.network_networks import Joined
from kilonova.db.network_records import Port, encoded
from kilonova.errors import Conflict, Forbidden, Invalid, NotFound
from kilonova.model.port import DELEGATION, RequestedNetwork
from kilonova.services.network.addressing import Wanted, containing, occupy, places_for
from kilonova.services.network.auto import auto_network
from kilonova.services.network.groups import DEFAULT, ensure_default
from kilonova.services.network.port import PortRequest
from kilonova.services.network.ports import binding, remove_port, tell_if_left
from kilonova.services.network.work import Work


class Target(msgspec.Struct, frozen=True):
    """Where and for whom ports are bound."""

    instance_uuid: str
    owner: str  # device_owner
    hostname: str
    host: str
    details: dict[str, str]


AMBIGUOUS = "Multiple possible networks found, use a Network ID to be more specific."


def the_network(work: Work, project_id: str, auto: bool) -> Joined | None:
    """The one network that a server gets when its user named none; None when there is none.

    Raises Conflict when there are several.
    """
    found = networks.usable(work.tx, project_id)
    if len(found) > 1:
        raise Conflict(AMBIGUOUS)
    if found:
        return found[0]
    return auto_network(work, project_id) if auto else None


def named_network(work: Work, project_id: str, network_id: str, everything: bool = False) -> Joined:
    """A network that a server of the project may be put on.  Raises Invalid or Forbidden."""
    found = networks.with_subnets(work.tx, network_id)
    if found is not None:
        network = found.network
        if everything or network.project_id == project_id or network.shared:
            return found
        if network.external:
            raise Forbidden(f"It is not allowed to create an interface on external network {network_id}")
    raise Invalid(f"Network {network_id} could not be found.")


def group_ids(work: Work, project_id: str, names: tuple[str, ...]) -> list[str]:
    """The ids of a project's security groups, given by name or id.

    Raises Invalid for one that is not there, Conflict for a name that several have.
    """
    result: list[str] = []
    for name in names or (DEFAULT,):
        if name == DEFAULT:
            result.append(ensure_default(work, project_id))
            continue
        rows = groups.named(work.tx, project_id, name)
        exact = [row for row in rows if row[0] == name]
        if not rows:
            raise Invalid(f"Security group {name} not found.")
        if len(rows) > 1 and not exact:
            raise Conflict(
                f"Multiple security groups found matching '{name}'. Use an ID to be more specific."
            )
        result.append((exact or rows)[0][0])
    return list(dict.fromkeys(result))


def allocate(work: Work, request: PortRequest, target: Target) -> None:
    """Make the missing ports of a server and bind all of them to the target's host.

    Raises errors of the kind Refused when that cannot be.
    """
    mine = ports.of_device(work.tx, request.instance_uuid)
    existing = {port.nic_index: port for port in mine}
    by_id = {port.id: port for port in mine}
    wanted = request.networks
    if wanted is None:
        if mine:
            for port in mine:
                bind(work, port, target, port.nic_index, port.nic_tag)
            return
        wanted = _unnamed(work, request)
    joined: dict[str, Joined] = {}
    for index, each in enumerate(wanted):
        if each.port_id is not None:
            port = by_id.get(each.port_id) or _taken(work, request, each.port_id)
            place = port.nic_index if port.id in by_id else _place(existing, index)
            bind(work, port, target, place, each.tag)
            existing[place] = port
        elif index in existing:
            bind(work, existing[index], target, index, each.tag)
        else:
            make(work, request, each, index, target, joined)


def _place(existing: dict[int | None, Port], index: int) -> int:
    """The index, or the first free one after it."""
    while index in existing:
        index += 1
    return index


def _unnamed(work: Work, request: PortRequest) -> tuple[RequestedNetwork, ...]:
    found = the_network(work, request.project_id, request.auto)
    return () if found is None else (RequestedNetwork(network_id=found.network.id),)


def _taken(work: Work, request: PortRequest, port_id: str) -> Port:
    """A port that the user made, and that is free."""
    port = ports.locked_port(work.tx, port_id)
    if port is None:
        raise NotFound(f"Port {port_id} could not be found.")
    if port.device_id and port.device_id != request.instance_uuid:
        raise Conflict(f"Port {port_id} is still in use.")
    return port


def make(
    work: Work,
    request: PortRequest,
    wanted: RequestedNetwork,
    index: int,
    target: Target,
    known: dict[str, Joined],
    port_id: str | None = None,
) -> None:
    """Make a port and bind it; ``known`` networks need no look-up.  Raises Invalid, Conflict, OverQuota."""
    if wanted.network_id is None:
        raise Invalid("A requested network names neither a network nor a port.")
    joined = known.get(wanted.network_id)
    if joined is None:  # what compute asks for was checked with the user's rights
        joined = known[wanted.network_id] = named_network(
            work, request.project_id, wanted.network_id, everything=True
        )
    if not joined.subnets:
        raise Invalid(f"Network {joined.network.id} requires a subnet in order to boot instances on.")
    network = joined.network
    mac = work.new_mac()
    address = None if wanted.fixed_ip is None else (Wanted(address=wanted.fixed_ip),)
    places = places_for(work, joined, address, mac)
    vif_type, details = binding(target.host, "normal", target.details)
    port = Port(
        id=port_id or work.new_uuid(),
        network_id=network.id,
        project_id=request.project_id,
        name="",
        description="",
        mac_address=mac,
        admin_state_up=True,
        status="DOWN",
        device_id=target.instance_uuid,
        device_owner=target.owner,
        nic_index=index,
        made_by_compute=True,
        nic_tag=wanted.tag,
        hostname=target.hostname,
        host=target.host,
        vnic_type="normal",
        vif_type=vif_type,
        vif_details=details,
        profile={},
        port_security_enabled=network.port_security_enabled,
        allowed_pairs=(),
        revision=1,
        created_at=work.now,
        updated_at=work.now,
    )
    ports.insert_port(work.tx, port)
    occupy(work, places, port.id)
    if network.port_security_enabled:
        joining = group_ids(work, request.project_id, request.security_groups)
        ports.join_groups(work.tx, port.id, joining)
        work.groups.update(joining)
    work.ports.add(port.id)  # only its own host has to know: who wires it looks at the network, too
    work.use(request.project_id, "port", 1)  # last of all: others of the project wait from here on


def bind(work: Work, port: Port, target: Target, index: int | None, tag: str | None) -> None:
    """Have the port on the target's host for the target's server; nothing happens if it is."""
    vif_type, details = binding(target.host, port.vnic_type, target.details)
    if vif_type == "binding_failed":
        raise Conflict(f"Binding failed for port {port.id}: its vnic_type {port.vnic_type} is not supported.")
    to: dict[str, Any] = {
        "device_id": target.instance_uuid,
        "device_owner": target.owner,
        "nic_index": index,
        "nic_tag": tag,
        "hostname": target.hostname or port.hostname,
        "host": target.host,
        "vif_type": vif_type,
        "vif_details": details,
        "profile": port.profile,
    }
    if all(getattr(port, name) == value for name, value in to.items()):
        return
    moved = (port.host, port.device_id) != (target.host, target.instance_uuid)
    if moved:
        to["profile"] = _bare(port.profile)
    _set(work, port, to, "DOWN" if moved else port.status)


def _set(work: Work, port: Port, to: dict[str, Any], status: str) -> None:
    ports.bind_port(
        work.tx,
        port.id,
        work.now,
        to_device=to["device_id"],
        to_owner=to["device_owner"],
        to_index=to["nic_index"],
        to_tag=to["nic_tag"],
        to_hostname=to["hostname"],
        to_host=to["host"],
        to_type=to["vif_type"],
        to_details=encoded(to["vif_details"]),
        to_profile=encoded(to["profile"]),
        to_status=status,
    )
    if port.host and port.host != to["host"]:
        bindings.forget(work.tx, port.id)
        tell_if_left(work, port.network_id, port.host)
    work.ports.add(port.id)


def _bare(profile: dict[str, Any]) -> dict[str, Any]:
    """A profile without what a move has written into it."""
    return {name: value for name, value in profile.items() if name != DELEGATION}


def rebind(work: Work, instance_uuid: str, host: str, details: dict[str, str]) -> None:
    """Bind all ports of a server to another host."""
    for port in ports.of_device(work.tx, instance_uuid):
        target = Target(instance_uuid, port.device_owner, port.hostname, host, details)
        bind(work, port, target, port.nic_index, port.nic_tag)


def release(work: Work, port: Port) -> None:
    """Delete a port that compute made, or give the user's own back."""
    if port.made_by_compute:
        remove_port(work, port)
        return
    free: dict[str, Any] = {
        "device_id": "",
        "device_owner": "",
        "nic_index": None,
        "nic_tag": None,
        "hostname": "",
        "host": "",
        "vif_type": "unbound",
        "vif_details": {},
        "profile": _bare(port.profile),
    }
    _set(work, port, free, "DOWN")


def deallocate(work: Work, instance_uuid: str) -> None:
    """Release all ports of a server; nobody hears of events of it any more."""
    for port in ports.of_device(work.tx, instance_uuid):
        release(work, port)
    ledger.forget_events(work.tx, instance_uuid)


def release_one(work: Work, instance_uuid: str, port_id: str) -> None:
    """Release one port of a server, if it has it."""
    for port in ports.of_device(work.tx, instance_uuid):
        if port.id == port_id:
            release(work, port)


def check_address(joined: Joined, address: str) -> None:
    """Whether an address is one of a network's.  Raises Invalid."""
    try:
        containing(joined, address)
    except (ValueError, Invalid) as error:
        raise Invalid(
            f"Fixed IP {address} is not a valid ip address for network {joined.network.id}."
        ) from error
