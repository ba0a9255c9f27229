"""Ports: what may be made, changed and deleted by users."""

from __future__ import annotations

from typing import Any

from kilonova.db import network_addresses as addresses
from kilonova.db import network_bindings as bindings
from kilonova.db import network_groups as groups
from kilonova.db import network_ledger as ledger
from kilonova.db import network_networks as networks
from kilonova.db import network_ports as ports
from kilonova.db.network_networks import Joined
from kilonova.db.network_records import Network, Port
from kilonova.model.context import RequestContext
from kilonova.services.network.addressing import occupy, places_for
from kilonova.services.network.faults import (
    AddressPairAndPortSecurityRequired,
    MacAddressInUse,
    PolicyNotAuthorized,
    PortInUse,
    PortNotFound,
    PortSecurityAndIPRequiredForSecurityGroups,
    PortSecurityPortHasSecurityGroup,
    SecurityGroupNotFound,
    ServicePortInUse,
)
from kilonova.services.network.groups import ensure_default
from kilonova.services.network.networks import owns, visible_network
from kilonova.services.network.work import DHCP_OWNER, Work, owner_of, privileged

_FOR_NETWORK_OWNERS = ("mac_address", "port_security_enabled", "allowed_pairs")


def binding(host: str, vnic_type: str, details: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(vif_type, vif_details) of a port on a host: bound by Open vSwitch, failed, or not bound.

    ``details`` are those of the host.
    """
    if not host:
        return "unbound", {}
    if vnic_type != "normal":
        return "binding_failed", {}
    return "ovs", {
        "port_filter": True,
        "connectivity": "l2",
        "ovs_hybrid_plug": False,
        "bound_drivers": {"0": "openvswitch"},
        **{name: value for name, value in details.items() if name == "datapath_type"},
    }


def visible_port(work: Work, context: RequestContext, port_id: str, lock: bool = False) -> Port:
    """The port, for its owner and the owner of its network.  Raises PortNotFound."""
    found = (ports.locked_port if lock else ports.port)(work.tx, port_id)
    if found is not None:
        if owns(context, found.project_id):
            return found
        network = networks.network(work.tx, found.network_id)
        if network is not None and owns(context, network.project_id):
            return found
    raise PortNotFound(port_id)


def create_port(work: Work, context: RequestContext, values: dict[str, Any]) -> Port:
    """A port with its addresses and groups.

    Raises NetworkNotFound, PolicyNotAuthorized, MacAddressInUse, SecurityGroupNotFound, OverQuota and the
    faults of ``places_for``.
    """
    project_id = owner_of(context, values)
    joined = visible_network(work, context, values["network_id"])
    network = joined.network
    _check_rights(context, network, values)
    work.use(project_id, "port", 1)
    mac = free_mac(work, network.id, values["mac_address"])
    secure = values["port_security_enabled"]
    secure = network.port_security_enabled if secure is None else secure
    port_id = work.new_uuid()
    places = places_for(work, joined, values["fixed_ips"], mac)
    vif_type, details = binding(values["host"], values["vnic_type"], {})
    record = Port(
        id=port_id,
        network_id=network.id,
        project_id=project_id,
        name=values["name"],
        description=values["description"],
        mac_address=mac,
        admin_state_up=values["admin_state_up"],
        status="DOWN",
        device_id=values["device_id"],
        device_owner=values["device_owner"],
        nic_index=None,
        made_by_compute=False,
        nic_tag=None,
        hostname="",
        host=values["host"],
        vnic_type=values["vnic_type"],
        vif_type=vif_type,
        vif_details=details,
        profile=values["profile"],
        port_security_enabled=secure,
        allowed_pairs=_pairs(values["allowed_pairs"], mac),
        revision=1,
        created_at=work.now,
        updated_at=work.now,
    )
    if record.allowed_pairs and not secure:
        raise AddressPairAndPortSecurityRequired
    joining = _groups_to_join(work, context, record, values["security_groups"])
    ports.insert_port(work.tx, record)
    occupy(work, places, port_id)
    ports.join_groups(work.tx, port_id, joining)
    _touch(work, record, joining)
    return record


def _check_rights(context: RequestContext, network: Network, values: dict[str, Any]) -> None:
    """On networks of others a port's addresses are not for the caller to choose, as in Neutron."""
    if owns(context, network.project_id):
        return
    given = [name for name in _FOR_NETWORK_OWNERS if values.get(name) not in (None, ())]
    if any(each.address is not None for each in values.get("fixed_ips") or ()):
        given.append("fixed_ips:ip_address")
    if str(values.get("device_owner", "")).startswith("network:"):
        given.append("device_owner")
    if given:
        raise PolicyNotAuthorized(
            f"Only the owner of network {network.id} may choose {', '.join(given)} of a port on it."
        )


def free_mac(work: Work, network_id: str, wanted: str | None) -> str:
    """The MAC address that is wanted, or one that the network does not have.  Raises MacAddressInUse."""
    if wanted is not None:
        if ports.mac_taken(work.tx, network_id, wanted):
            raise MacAddressInUse(network_id, wanted)
        return wanted
    return work.new_mac()  # a clash is met by the unique key, and the transaction repeated


def _pairs(pairs: tuple[tuple[str | None, str], ...], mac: str) -> tuple[tuple[str, str], ...]:
    return tuple((own or mac, cidr) for own, cidr in pairs)


def _groups_to_join(
    work: Work, context: RequestContext, port: Port, wanted: tuple[str, ...] | None
) -> list[str]:
    if not port.port_security_enabled:
        if wanted:
            raise PortSecurityAndIPRequiredForSecurityGroups
        return []
    if wanted is None:
        if port.device_owner.startswith("network:"):
            return []
        return [ensure_default(work, port.project_id)]
    return _existing(work, context, wanted)


def _existing(work: Work, context: RequestContext, wanted: tuple[str, ...]) -> list[str]:
    unique = list(dict.fromkeys(wanted))
    found = groups.existing(work.tx, None if privileged(context) else context.project_id, unique)
    for each in unique:
        if each not in found:
            raise SecurityGroupNotFound(each)
    return unique


def _touch(work: Work, port: Port, group_ids: list[str]) -> None:
    """Its host is told, and the hosts of those who let these groups in; no others have to look."""
    if port.host:
        work.ports.add(port.id)
    work.groups.update(group_ids)


def tell_if_left(work: Work, network_id: str, host: str) -> None:
    """Tell the network's other hosts if that one has lost its last port: tunnels to it are not needed."""
    if host and ports.has_left(work.tx, network_id, host):
        work.networks.add(network_id)


def update_port(work: Work, context: RequestContext, port_id: str, values: dict[str, Any]) -> Port:
    """Raises PortNotFound, PolicyNotAuthorized, PortInUse and what ``create_port`` does."""
    port = visible_port(work, context, port_id, lock=True)
    joined = networks.with_subnets(work.tx, port.network_id)
    assert joined is not None
    _check_update(work, context, joined.network, port, values)
    old_groups = ports.groups_of(work.tx, port_id)
    moved = _move(work, joined, port, values)
    regrouped = _regroup(work, context, port, values, old_groups)
    changes = _binding_changes(port, values)
    changes.update(_changed_fields(port, values))
    former = port.host if "host" in changes else ""
    if former:
        bindings.forget(work.tx, port.id)
    if moved or regrouped or changes:
        port = ports.update_port(work.tx, port_id, work.now, changes)
        tell_if_left(work, port.network_id, former)
    if port.serves_instance and port.host and (moved or regrouped or "mac_address" in changes):
        work.tell(port.device_id, "network-changed", port_id)
    if moved or regrouped or changes.keys() - {"name", "description"}:
        _touch(work, port, old_groups if moved or "allowed_pairs" in changes else [])
        work.networks.add(port.network_id)  # the name that DHCP gives is not among what its host knows
    if regrouped:
        work.groups.update(old_groups, ports.groups_of(work.tx, port_id))
    return port


def _check_update(
    work: Work, context: RequestContext, network: Network, port: Port, values: dict[str, Any]
) -> None:
    _check_rights(context, network, values)
    if not (owns(context, port.project_id) or owns(context, network.project_id)):
        raise PolicyNotAuthorized(f"Only the owner of port {port.id} may change it.")
    mac = values.get("mac_address")
    if mac is not None and mac != port.mac_address:
        if port.host:
            raise PortInUse(f"The MAC address of port {port.id} cannot change while it is bound to a host.")
        free_mac(work, port.network_id, mac)


def _move(work: Work, joined: Joined, port: Port, values: dict[str, Any]) -> bool:
    """Give the port other addresses, if others are wanted."""
    wanted = values.pop("fixed_ips", None)
    if wanted is None:
        return False
    old = addresses.of_port(work.tx, port.id)
    kept = {(each.subnet_id, each.address) for each in old}
    exact = [(each.subnet_id, each.address) for each in wanted]
    if len(exact) == len(kept) and all(
        any(address == have[1] and subnet in (None, have[0]) for have in kept) for subnet, address in exact
    ):
        return False
    places = places_for(work, joined, wanted, port.mac_address, keep=port.id)
    addresses.free_port(work.tx, port.id)
    occupy(work, places, port.id)
    return True


def _regroup(work: Work, context: RequestContext, port: Port, values: dict[str, Any], old: list[str]) -> bool:
    wanted = values.pop("security_groups", None)
    secure = values.get("port_security_enabled", port.port_security_enabled)
    pairs = values.get("allowed_pairs", port.allowed_pairs)
    if not secure and pairs:
        raise AddressPairAndPortSecurityRequired
    if not secure and (wanted or (wanted is None and old)):
        raise PortSecurityPortHasSecurityGroup
    if wanted is None:
        return False
    new = _existing(work, context, wanted)
    if sorted(new) == sorted(old):
        return False
    ports.leave_groups(work.tx, port.id)
    ports.join_groups(work.tx, port.id, new)
    return True


def _binding_changes(port: Port, values: dict[str, Any]) -> dict[str, Any]:
    host, vnic_type = values.get("host", port.host), values.get("vnic_type", port.vnic_type)
    if (host, vnic_type) == (port.host, port.vnic_type):
        return {}
    kept = port.vif_details if port.vif_type == "ovs" else {}
    vif_type, details = binding(host, vnic_type, kept)
    return {"vif_type": vif_type, "vif_details": details, "status": "DOWN"}


def _changed_fields(port: Port, values: dict[str, Any]) -> dict[str, Any]:
    values = dict(values)
    if "allowed_pairs" in values:
        mac = values.get("mac_address", port.mac_address)
        values["allowed_pairs"] = _pairs(values["allowed_pairs"], mac)
    changes = {name: value for name, value in values.items() if getattr(port, name) != value}
    if "device_id" in changes:  # whoever had it, compute did not give it to the new one
        changes.update(nic_index=None, made_by_compute=False, nic_tag=None)
    return changes


def delete_port(work: Work, context: RequestContext, port_id: str) -> None:
    """Also the port of a running server, as in Neutron: compute is told.

    Raises PortNotFound, ServicePortInUse.
    """
    port = visible_port(work, context, port_id, lock=True)
    if port.device_owner == DHCP_OWNER:
        raise ServicePortInUse(
            f"Port {port_id} cannot be deleted directly via the port API: it is the network's DHCP server. "
            "Disable DHCP on its subnets."
        )
    if port.serves_instance:
        work.tell(port.device_id, "network-vif-deleted", port_id)
    remove_port(work, port)


def remove_port(work: Work, port: Port) -> None:
    """The port and all that belongs to it."""
    _touch(work, port, ports.groups_of(work.tx, port.id))
    ports.erase(work.tx, port.id)
    ledger.delete_tags(work.tx, port.id)
    tell_if_left(work, port.network_id, port.host)
    work.use(port.project_id, "port", -1)
