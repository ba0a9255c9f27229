"""Networks: what may be made, changed and deleted."""

from __future__ import annotations

from typing import Any

from kilonova.db import network_addresses as addresses
from kilonova.db import network_ledger as ledger
from kilonova.db import network_networks as networks
from kilonova.db import network_ports as ports
from kilonova.db.network_networks import Joined
from kilonova.db.network_records import Network
from kilonova.model.context import RequestContext
from kilonova.services.network.faults import (
    InvalidInput,
    InvalidSharedSetting,
    NetworkInUse,
    NetworkNotFound,
    NoNetworkAvailable,
    PolicyNotAuthorized,
    VlanIdInUse,
)
from kilonova.services.network.work import (
    DHCP_OWNER,
    FIRST_VLAN,
    LAST_VLAN,
    Work,
    owner_of,
    privileged,
)

PROVIDER = ("network_type", "physical_network", "segmentation_id")


def sees(context: RequestContext, network: Network) -> bool:
    """Whether the caller may know of the network: its own, a shared or an external one."""
    return (
        privileged(context) or network.project_id == context.project_id or network.shared or network.external
    )


def owns(context: RequestContext, project_id: str) -> bool:
    return privileged(context) or project_id == context.project_id


def visible_network(work: Work, context: RequestContext, network_id: str) -> Joined:
    """The network with its subnets; it stays meanwhile.  Raises NetworkNotFound."""
    found = networks.with_subnets(work.tx, network_id)
    if found is None or not sees(context, found.network):
        raise NetworkNotFound(network_id)
    return found


def changeable_network(work: Work, context: RequestContext, network_id: str) -> Network:
    """The network, locked, for its owner.  Raises NetworkNotFound, PolicyNotAuthorized."""
    found = networks.locked_network(work.tx, network_id)
    if found is None or not sees(context, found):
        raise NetworkNotFound(network_id)
    if not owns(context, found.project_id):
        raise PolicyNotAuthorized(f"Only the owner of network {network_id} may do this.")
    return found


def create_network(work: Work, context: RequestContext, values: dict[str, Any]) -> Network:
    """Raises OverQuota, VlanIdInUse, NoNetworkAvailable, InvalidInput."""
    project_id = owner_of(context, values)
    work.use(project_id, "network", 1)
    vlan = _vlan(work, values)
    mtu = values["mtu"] or work.options.largest_mtu  # 0 asks for the largest that is possible
    if mtu > work.options.largest_mtu:
        raise InvalidInput(f"An MTU of {mtu} is not possible here: at most {work.options.largest_mtu} is.")
    record = Network(
        id=work.new_uuid(),
        project_id=project_id,
        name=values["name"],
        description=values["description"],
        status="ACTIVE",
        admin_state_up=values["admin_state_up"],
        shared=values["shared"],
        external=values["external"],
        mtu=mtu,
        port_security_enabled=values["port_security_enabled"],
        network_type="vlan",
        physical_network=work.options.physical_network,
        segmentation_id=vlan,
        revision=1,
        created_at=work.now,
        updated_at=work.now,
    )
    networks.insert_network(work.tx, record)
    return record


def _vlan(work: Work, values: dict[str, Any]) -> int:
    _check_provider(work, values)
    taken = networks.taken_vlans(work.tx)
    wanted = values.get("segmentation_id")
    if wanted is not None:
        if wanted in taken:
            raise VlanIdInUse(wanted, work.options.physical_network)
        return int(wanted)
    for vlan in range(FIRST_VLAN, LAST_VLAN + 1):
        if vlan not in taken:
            return vlan
    raise NoNetworkAvailable(f"Unable to create the network: all {LAST_VLAN} VLANs are taken.")


def _check_provider(work: Work, values: dict[str, Any]) -> None:
    kind, physical = values.get("network_type"), values.get("physical_network")
    if kind not in (None, "vlan"):
        raise InvalidInput(f"The network type {kind} is not supported: networks are of type vlan.")
    if physical not in (None, work.options.physical_network):
        raise InvalidInput(f"The physical network {physical} is unknown.")


def _changes(network: Network, values: dict[str, Any]) -> dict[str, Any]:
    """What is new in ``values``; null says nothing of a provider attribute."""
    silent = {name for name in PROVIDER if values.get(name) is None}
    return {
        name: value
        for name, value in values.items()
        if name not in silent and getattr(network, name) != value
    }


def update_network(work: Work, context: RequestContext, network_id: str, values: dict[str, Any]) -> Joined:
    """Raises NetworkNotFound, PolicyNotAuthorized, VlanIdInUse, InvalidSharedSetting, InvalidInput."""
    network = changeable_network(work, context, network_id)
    _check_provider(work, values)
    values = _changes(network, values)
    if "segmentation_id" in values:
        if ports.count_others(work.tx, network_id, DHCP_OWNER):
            raise NetworkInUse(network_id)
        values["segmentation_id"] = _vlan(work, values)
    if values.get("mtu") == 0:
        values["mtu"] = work.options.largest_mtu
    if values.get("mtu", 0) > work.options.largest_mtu:
        raise InvalidInput(
            f"An MTU of {values['mtu']} is not possible here: at most {work.options.largest_mtu} is."
        )
    if values.get("shared") is False and ports.foreign_ports(
        work.tx, network_id, network.project_id, DHCP_OWNER
    ):
        raise InvalidSharedSetting(
            f"Unable to reconfigure sharing settings for network {network.name}: other projects use it."
        )
    if values:
        networks.update_network(work.tx, network_id, work.now, values)
        work.networks.add(network_id)
        if "admin_state_up" in values or "segmentation_id" in values:
            work.ports.update(ports.on_network(work.tx, network_id))
    found = networks.with_subnets(work.tx, network_id)
    assert found is not None
    return found


def delete_network(work: Work, context: RequestContext, network_id: str) -> None:
    """The network with its subnets and DHCP port.

    Raises NetworkNotFound, PolicyNotAuthorized, NetworkInUse.
    """
    network = changeable_network(work, context, network_id)
    if ports.count_others(work.tx, network_id, DHCP_OWNER):
        raise NetworkInUse(network_id)
    for port_id in ports.owned_on_network(work.tx, network_id, DHCP_OWNER):
        ports.erase(work.tx, port_id)
    for subnet in networks.subnets(work.tx, network_id):
        networks.delete_subnet(work.tx, subnet.id)
        addresses.delete_cursor(work.tx, subnet.id)
        ledger.delete_tags(work.tx, subnet.id)
        work.use(subnet.project_id, "subnet", -1)
    networks.delete_network(work.tx, network_id)
    ledger.delete_tags(work.tx, network_id)
    work.use(network.project_id, "network", -1)
    work.networks.add(network_id)
