"""The network that is made for a project by itself."""

from __future__ import annotations

from typing import Any

from kilonova.db import network_networks as networks
from kilonova.db.network_networks import Joined
from kilonova.model.context import RequestContext
from kilonova.services.network.networks import create_network
from kilonova.services.network.subnets import create_subnet
from kilonova.services.network.work import Work

NETWORK_NAME = "auto_allocated_network"
SUBNET_NAME = "auto_allocated_subnet_v4"


def network_values(name: str, **more: Any) -> dict[str, Any]:
    """All that ``create_network`` reads, by default."""
    return {
        "name": name,
        "description": "",
        "admin_state_up": True,
        "shared": False,
        "external": False,
        "mtu": 0,
        "port_security_enabled": True,
        **more,
    }


def subnet_values(network_id: str, name: str, cidr: str, **more: Any) -> dict[str, Any]:
    """All that ``create_subnet`` reads, by default; a gateway of Ellipsis is the first address."""
    return {
        "network_id": network_id,
        "name": name,
        "description": "",
        "cidr": cidr,
        "ip_version": 4,
        "gateway_ip": ...,
        "pools": None,
        "enable_dhcp": True,
        "dns_nameservers": (),
        "host_routes": (),
        "ipv6_ra_mode": None,
        "ipv6_address_mode": None,
        **more,
    }


def auto_network(work: Work, project_id: str) -> Joined:
    """The project's own network, made if it has none.  Raises OverQuota, NoNetworkAvailable."""
    found = networks.auto_network(work.tx, project_id)
    if found is None:
        owner = RequestContext(request_id="", user_id="", project_id=project_id, roles=frozenset({"member"}))
        network = create_network(work, owner, network_values(NETWORK_NAME))
        create_subnet(work, owner, subnet_values(network.id, SUBNET_NAME, work.options.auto_cidr))
        networks.insert_auto_network(work.tx, project_id, network.id)
        found = network.id
    joined = networks.with_subnets(work.tx, found)
    assert joined is not None, "the row goes with its network, in one transaction"
    return joined
