"""/v2.0/networks and /v2.0/subnets."""

from __future__ import annotations

from typing import Any

from kilonova.db import network_listing as listing
from kilonova.db import network_networks as networks
from kilonova.db.network_records import NETWORKS, SUBNETS, Network, Subnet
from kilonova.model.context import RequestContext
from kilonova.services.network import api_fields as f
from kilonova.services.network.api_fields import OWNER, REQUIRED, Field
from kilonova.services.network.api_lists import Filters
from kilonova.services.network.api_resource import Resource, tags_for, times_of
from kilonova.services.network.networks import (
    create_network,
    delete_network,
    update_network,
    visible_network,
)
from kilonova.services.network.subnets import (
    create_subnet,
    delete_subnet,
    update_subnet,
    visible_subnet,
)
from kilonova.services.network.work import FIRST_VLAN, LAST_VLAN, Work, privileged

_TEXT = {
    "name": Field("name", f.string(255), ""),
    "description": Field("description", f.string(255), ""),
}

_NETWORK_FIELDS = {
    **OWNER,
    **_TEXT,
    "admin_state_up": Field("admin_state_up", f.boolean, True),
    "shared": Field("shared", f.boolean, False, admin=True),
    "router:external": Field("external", f.boolean, False, admin=True),
    "mtu": Field("mtu", f.whole(0, 65535), 0),
    "port_security_enabled": Field("port_security_enabled", f.boolean, True),
    "provider:network_type": Field("network_type", f.optional(f.string(32)), admin=True),
    "provider:physical_network": Field("physical_network", f.optional(f.string(128)), admin=True),
    "provider:segmentation_id": Field(
        "segmentation_id", f.optional(f.whole(FIRST_VLAN, LAST_VLAN)), admin=True
    ),
}

_COMMON = {
    "id": "id",
    "name": "name",
    "description": "description",
    "project_id": "project_id",
    "tenant_id": "project_id",
    "revision_number": "revision",
    "created_at": "created_at",
    "updated_at": "updated_at",
}

_PROVIDER = {
    "provider:network_type": "network_type",
    "provider:physical_network": "physical_network",
    "provider:segmentation_id": "segmentation_id",
}

_NETWORK_FILTERS = Filters(
    NETWORKS,
    {
        **_COMMON,
        **_PROVIDER,
        "status": "status",
        "admin_state_up": "admin_state_up",
        "shared": "shared",
        "router:external": "external",
        "mtu": "mtu",
        "port_security_enabled": "port_security_enabled",
    },
    {"subnets": listing.with_subnet},
    frozenset(_PROVIDER),
)


def show_networks(work: Work, context: RequestContext, records: list[Network]) -> list[dict[str, Any]]:
    tags = tags_for(work, records)
    subnets = networks.subnet_ids(work.tx, [record.id for record in records])
    views = []
    for record in records:
        view = {
            "id": record.id,
            "name": record.name,
            "tenant_id": record.project_id,
            "project_id": record.project_id,
            "description": record.description,
            "status": record.status,
            "admin_state_up": record.admin_state_up,
            "shared": record.shared,
            "router:external": record.external,
            "mtu": record.mtu,
            "port_security_enabled": record.port_security_enabled,
            "subnets": subnets[record.id],
            "availability_zone_hints": [],
            "availability_zones": [work.options.default_zone],
            "ipv4_address_scope": None,
            "ipv6_address_scope": None,
            "tags": tags[record.id],
            **times_of(record),
        }
        if privileged(context):
            view.update({name: getattr(record, column) for name, column in _PROVIDER.items()})
        views.append(view)
    return views


NETWORK = Resource(
    name="network",
    plural="networks",
    stored=NETWORKS,
    fields=_NETWORK_FIELDS,
    filters=_NETWORK_FILTERS,
    show=show_networks,
    get=lambda work, context, wanted: visible_network(work, context, wanted).network,
    create=lambda work, context, entries: [create_network(work, context, each) for each in entries],
    update=lambda work, context, wanted, values: update_network(work, context, wanted, values).network,
    delete=delete_network,
)


# -- subnets ------------------------------------------------------------------------------------------


def _pool(value: Any) -> tuple[str, str]:
    pool = f.mapping(value, ("start", "end"))
    if len(pool) != 2:
        raise ValueError(f"'{value}' has no start and end")
    return f.ip(pool["start"]), f.ip(pool["end"])


def _route(value: Any) -> tuple[str, str]:
    route = f.mapping(value, ("destination", "nexthop"))
    if len(route) != 2:
        raise ValueError(f"'{value}' has no destination and nexthop")
    return f.cidr(route["destination"]), f.ip(route["nexthop"])


def _nothing(value: Any) -> None:
    if value not in (None, [], False, ""):
        raise ValueError("this network service does not offer it")


_MODE = f.optional(f.one_of("slaac", "dhcpv6-stateful", "dhcpv6-stateless"))

_SUBNET_FIELDS = {
    **OWNER,
    **_TEXT,
    "network_id": Field("network_id", f.identifier, REQUIRED, put=False),
    "cidr": Field("cidr", f.cidr, REQUIRED, put=False),
    "ip_version": Field("ip_version", f.whole(4, 6), REQUIRED, put=False),
    "gateway_ip": Field("gateway_ip", f.optional(f.ip), ...),
    "allocation_pools": Field("pools", f.text_list(_pool, 64), None),
    "enable_dhcp": Field("enable_dhcp", f.boolean, True),
    "dns_nameservers": Field("dns_nameservers", f.text_list(f.ip, 5), ()),
    "host_routes": Field("host_routes", f.text_list(_route, 20), ()),
    "ipv6_ra_mode": Field("ipv6_ra_mode", _MODE, put=False),
    "ipv6_address_mode": Field("ipv6_address_mode", _MODE, put=False),
    # accepted when they ask for nothing, as clients send them along
    "subnetpool_id": Field("_subnetpool", _nothing, put=False),
    "service_types": Field("_service_types", _nothing, put=False),
}

_SUBNET_FILTERS = Filters(
    SUBNETS,
    {
        **_COMMON,
        "network_id": "network_id",
        "ip_version": "ip_version",
        "cidr": "cidr",
        "gateway_ip": "gateway_ip",
        "enable_dhcp": "enable_dhcp",
        "ipv6_ra_mode": "ipv6_ra_mode",
        "ipv6_address_mode": "ipv6_address_mode",
    },
)


def show_subnets(work: Work, context: RequestContext, records: list[Subnet]) -> list[dict[str, Any]]:
    tags = tags_for(work, records)
    return [
        {
            "id": record.id,
            "name": record.name,
            "tenant_id": record.project_id,
            "project_id": record.project_id,
            "description": record.description,
            "network_id": record.network_id,
            "ip_version": record.ip_version,
            "cidr": record.cidr,
            "gateway_ip": record.gateway_ip,
            "enable_dhcp": record.enable_dhcp,
            "allocation_pools": [{"start": first, "end": last} for first, last in record.pools],
            "dns_nameservers": record.dns_nameservers,
            "host_routes": [{"destination": to, "nexthop": via} for to, via in record.host_routes],
            "ipv6_ra_mode": record.ipv6_ra_mode,
            "ipv6_address_mode": record.ipv6_address_mode,
            "subnetpool_id": None,
            "service_types": [],
            "tags": tags[record.id],
            **times_of(record),
        }
        for record in records
    ]


SUBNET = Resource(
    name="subnet",
    plural="subnets",
    stored=SUBNETS,
    fields=_SUBNET_FIELDS,
    filters=_SUBNET_FILTERS,
    show=show_subnets,
    get=visible_subnet,
    create=lambda work, context, entries: [create_subnet(work, context, each) for each in entries],
    update=update_subnet,
    delete=delete_subnet,
)
