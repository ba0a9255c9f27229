"""/v2.0/ports."""

from __future__ import annotations

from typing import Any

from kilonova.db import network_addresses as addresses
from kilonova.db import network_listing as listing
from kilonova.db import network_ports as ports
from kilonova.db.network_listing import Condition
from kilonova.db.network_records import PORTS, Port
from kilonova.model.context import RequestContext
from kilonova.services.network import api_fields as f
from kilonova.services.network.addressing import Wanted
from kilonova.services.network.api_fields import OWNER, REQUIRED, Field
from kilonova.services.network.api_lists import Filters
from kilonova.services.network.api_resource import Resource, tags_for, times_of
from kilonova.services.network.faults import HTTPBadRequest
from kilonova.services.network.ports import create_port, delete_port, update_port, visible_port
from kilonova.services.network.work import Work, privileged

VNIC_TYPES = (
    "normal",
    "direct",
    "macvtap",
    "baremetal",
    "direct-physical",
    "virtio-forwarder",
    "smart-nic",
    "vdpa",
    "accelerator-direct",
    "accelerator-direct-physical",
    "remote-managed",
)


def _fixed_ip(value: Any) -> Wanted:
    wanted = f.mapping(value, ("subnet_id", "ip_address"))
    subnet, address = wanted.get("subnet_id"), wanted.get("ip_address")
    if subnet is None and address is None:
        raise ValueError("a fixed ip names a subnet_id or an ip_address")
    return Wanted(
        None if subnet is None else f.identifier(subnet), None if address is None else f.ip(address)
    )


def _fixed_ips(value: Any) -> tuple[Wanted, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"'{value}' is not a list")
    if len(value) > 16:
        raise ValueError("a port has at most 16 addresses")
    found = tuple(_fixed_ip(each) for each in value)
    exact = [each.address for each in found if each.address is not None]
    if len(set(exact)) != len(exact):
        raise ValueError(f"Duplicate IP address in '{exact}'")
    return found


def _pair(value: Any) -> tuple[str | None, str]:
    pair = f.mapping(value, ("mac_address", "ip_address"))
    if "ip_address" not in pair:
        raise ValueError("an allowed address pair has an ip_address")
    text = pair["ip_address"]
    own = pair.get("mac_address")
    found = f.cidr(text) if isinstance(text, str) and "/" in text else f.ip(text)
    return None if own is None else f.mac(own), found


def _groups(value: Any) -> tuple[str, ...]:
    return () if value is None else f.identifiers(value)


_FIELDS = {
    **OWNER,
    "network_id": Field("network_id", f.identifier, REQUIRED, put=False),
    "name": Field("name", f.string(255), ""),
    "description": Field("description", f.string(255), ""),
    "admin_state_up": Field("admin_state_up", f.boolean, True),
    "mac_address": Field("mac_address", f.optional(f.mac)),
    "fixed_ips": Field("fixed_ips", _fixed_ips),
    "security_groups": Field("security_groups", _groups),
    "device_id": Field("device_id", f.string(255), ""),
    "device_owner": Field("device_owner", f.string(255), ""),
    "port_security_enabled": Field("port_security_enabled", f.optional(f.boolean)),
    "allowed_address_pairs": Field("allowed_pairs", f.text_list(_pair, 10), ()),
    "binding:host_id": Field("host", f.string(255), "", admin=True),
    "binding:profile": Field("profile", f.profile, {}, admin=True),
    "binding:vnic_type": Field("vnic_type", f.one_of(*VNIC_TYPES), "normal"),
}

_ADMIN_COLUMNS = {"binding:host_id": "host", "binding:vif_type": "vif_type"}


def _by_fixed_ip(values: list[str]) -> Condition:
    """``fixed_ips=ip_address=10.0.0.7``: values of one kind are alternatives, kinds hold together."""
    kinds = {
        "ip_address": listing.at_address,
        "ip_address_substr": listing.like_address,
        "subnet_id": listing.in_subnet,
    }
    given: dict[str, list[str]] = {}
    for value in values:
        kind, sign, wanted = value.partition("=")
        if not sign or kind not in kinds:
            raise HTTPBadRequest(f"Invalid filter for fixed_ips: '{value}' is none of {list(kinds)}=...")
        given.setdefault(kind, []).append(wanted)
    found = [kinds[kind](wanted) for kind, wanted in given.items()]
    result = found[0]
    for condition in found[1:]:
        result = result & condition
    return result


_FILTERS = Filters(
    PORTS,
    {
        "id": "id",
        "name": "name",
        "description": "description",
        "project_id": "project_id",
        "tenant_id": "project_id",
        "network_id": "network_id",
        "mac_address": "mac_address",
        "admin_state_up": "admin_state_up",
        "status": "status",
        "device_id": "device_id",
        "device_owner": "device_owner",
        "port_security_enabled": "port_security_enabled",
        "binding:vnic_type": "vnic_type",
        "revision_number": "revision",
        "created_at": "created_at",
        "updated_at": "updated_at",
        **_ADMIN_COLUMNS,
    },
    {
        "fixed_ips": _by_fixed_ip,
        "ip_address": listing.at_address,
        "security_groups": listing.in_group,
        "security_group_ids": listing.in_group,
    },
    frozenset(_ADMIN_COLUMNS),
)


def show_ports(work: Work, context: RequestContext, records: list[Port]) -> list[dict[str, Any]]:
    ids = [record.id for record in records]
    given = addresses.of_ports(work.tx, ids)
    groups = ports.groups_of_ports(work.tx, ids)
    tags = tags_for(work, records)
    views = []
    for record in records:
        view = {
            "id": record.id,
            "name": record.name,
            "description": record.description,
            "tenant_id": record.project_id,
            "project_id": record.project_id,
            "network_id": record.network_id,
            "mac_address": record.mac_address,
            "admin_state_up": record.admin_state_up,
            "status": record.status,
            "device_id": record.device_id,
            "device_owner": record.device_owner,
            "fixed_ips": [
                {"subnet_id": each.subnet_id, "ip_address": each.address} for each in given[record.id]
            ],
            "security_groups": groups[record.id],
            "allowed_address_pairs": [
                {"mac_address": mac, "ip_address": cidr} for mac, cidr in record.allowed_pairs
            ],
            "port_security_enabled": record.port_security_enabled,
            "binding:vnic_type": record.vnic_type,
            "extra_dhcp_opts": [],
            "tags": tags[record.id],
            **times_of(record),
        }
        if privileged(context):
            view["binding:host_id"] = record.host
            view["binding:vif_type"] = record.vif_type
            view["binding:vif_details"] = record.vif_details
            view["binding:profile"] = record.profile
        views.append(view)
    return views


def _update(work: Work, context: RequestContext, wanted: str, values: dict[str, Any]) -> Port:
    if values.get("port_security_enabled", True) is None:
        raise HTTPBadRequest("Invalid input for port_security_enabled. Reason: it cannot be null.")
    if values.get("mac_address", "") is None:
        values.pop("mac_address")
    if values.get("fixed_ips", ()) is None:
        values["fixed_ips"] = ()
    return update_port(work, context, wanted, values)


PORT = Resource(
    name="port",
    plural="ports",
    stored=PORTS,
    fields=_FIELDS,
    filters=_FILTERS,
    show=show_ports,
    get=visible_port,
    create=lambda work, context, entries: [create_port(work, context, each) for each in entries],
    update=_update,
    delete=delete_port,
)
