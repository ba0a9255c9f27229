"""Tables of the network service: networks, subnets, ports, security groups, quotas.

There are no foreign keys: what would break one takes a row lock on the thing it depends on instead, so that
the loser of a race gets an answer and not a fault of the database.
"""

from __future__ import annotations

from sqlalchemy import Index, PrimaryKeyConstraint, Table, UniqueConstraint

from kilonova.db.tables import flag, json_text, metadata, number, serial, text

networks = Table(
    "networks",
    metadata,
    text("id", primary_key=True),
    text("project_id"),
    text("name"),
    text("description"),
    text("status"),
    flag("admin_state_up"),
    flag("shared"),
    flag("external"),
    number("mtu"),
    flag("port_security_enabled"),
    text("network_type"),
    text("physical_network"),
    number("segmentation_id", unique=True),  # the VLAN
    number("revision"),
    number("created_at"),
    number("updated_at"),
    Index("networks_by_project", "project_id"),
    Index("networks_by_name", "name"),
)

subnets = Table(
    "subnets",
    metadata,
    text("id", primary_key=True),
    text("network_id"),
    text("project_id"),
    text("name"),
    text("description"),
    number("ip_version"),
    text("cidr"),
    text("gateway_ip", nullable=True),
    flag("enable_dhcp"),
    json_text("pools"),  # [[first, last] ...]
    json_text("dns_nameservers"),
    json_text("host_routes"),  # [[destination, nexthop] ...]
    text("ipv6_ra_mode", nullable=True),
    text("ipv6_address_mode", nullable=True),
    number("revision"),
    number("created_at"),
    number("updated_at"),
    Index("subnets_by_network", "network_id"),
    Index("subnets_by_project", "project_id"),
)

subnet_cursors = Table(
    "subnet_cursors",
    metadata,
    # the position after the last address given; its row is the lock of whoever takes the next one
    text("subnet_id", primary_key=True),
    text("next"),
)

ports = Table(
    "ports",
    metadata,
    text("id", primary_key=True),
    text("network_id"),
    text("project_id"),
    text("name"),
    text("description"),
    text("mac_address"),
    flag("admin_state_up"),
    text("status"),
    text("device_id"),
    text("device_owner"),
    number("nic_index", nullable=True),  # its place among the server's ports
    flag("made_by_compute"),  # deleted with the server
    text("nic_tag", nullable=True),
    text("hostname"),  # what its DHCP answers say
    text("host"),  # binding:host_id
    text("vnic_type"),
    text("vif_type"),
    json_text("vif_details"),
    json_text("profile"),
    flag("port_security_enabled"),
    json_text("allowed_pairs"),  # [[mac, cidr] ...]
    number("revision"),
    number("created_at"),
    number("updated_at"),
    UniqueConstraint("network_id", "mac_address"),
    UniqueConstraint("device_id", "nic_index"),
    Index("ports_by_device", "device_id"),
    Index("ports_by_project", "project_id"),
    Index("ports_by_host", "host"),
    Index("ports_by_name", "name"),
)

port_bindings = Table(
    "port_bindings",
    metadata,
    # hosts to which a port is bound besides the one that has it, which stands in the port's own row
    text("port_id"),
    text("host"),
    text("network_id"),  # the port's, so that a network's hosts are found without its ports
    text("vif_type"),
    json_text("vif_details"),
    json_text("profile"),
    text("status"),  # ACTIVE when the port is wired there
    PrimaryKeyConstraint("port_id", "host"),
    Index("port_bindings_by_network", "network_id"),
)

port_addresses = Table(
    "port_addresses",
    metadata,
    text("subnet_id"),
    text("position"),  # the address as hexadecimal digits, which sort as addresses do
    text("network_id"),
    text("address"),
    text("port_id"),
    number("ordinal"),
    PrimaryKeyConstraint("subnet_id", "position"),
    Index("port_addresses_by_address", "network_id", "address"),
    Index("port_addresses_by_port", "port_id"),
)

security_groups = Table(
    "security_groups",
    metadata,
    text("id", primary_key=True),
    text("project_id"),
    text("name"),
    text("description"),
    flag("stateful"),
    number("revision"),
    number("created_at"),
    number("updated_at"),
    Index("security_groups_by_project", "project_id", "name"),
)

default_security_groups = Table(
    "default_security_groups",
    metadata,
    text("project_id", primary_key=True),
    text("group_id", unique=True),
)

security_group_rules = Table(
    "security_group_rules",
    metadata,
    text("id", primary_key=True),
    text("security_group_id"),
    text("project_id"),
    text("direction"),
    text("ethertype"),
    text("protocol", nullable=True),
    number("port_range_min", nullable=True),
    number("port_range_max", nullable=True),
    text("remote_ip_prefix", nullable=True),
    text("remote_group_id", nullable=True),
    text("description"),
    number("revision"),
    number("created_at"),
    number("updated_at"),
    Index("security_group_rules_by_group", "security_group_id"),
    Index("security_group_rules_by_remote", "remote_group_id"),
    Index("security_group_rules_by_project", "project_id"),
)

port_security_groups = Table(
    "port_security_groups",
    metadata,
    text("port_id"),
    text("group_id"),
    PrimaryKeyConstraint("port_id", "group_id"),
    Index("port_security_groups_by_group", "group_id"),
)

auto_networks = Table(
    "auto_networks",
    metadata,
    text("project_id", primary_key=True),
    text("network_id", unique=True),
)

network_tags = Table(
    "network_tags",
    metadata,
    text("resource_id"),
    text("tag"),
    PrimaryKeyConstraint("resource_id", "tag"),
    Index("network_tags_by_tag", "tag"),
)

network_quotas = Table(
    "network_quotas",
    metadata,
    text("project_id"),
    text("resource"),
    number("hard_limit"),
    PrimaryKeyConstraint("project_id", "resource"),
)

network_usages = Table(
    "network_usages",
    metadata,
    # changed in the same transaction as the things that it counts
    text("project_id"),
    text("resource"),
    number("used"),
    PrimaryKeyConstraint("project_id", "resource"),
)

network_events = Table(
    "network_events",
    metadata,
    # what compute has still to be told; a row goes when compute has heard it
    serial(),
    text("instance_uuid"),
    text("name"),
    text("tag"),
    text("status"),
    Index("network_events_by_instance", "instance_uuid"),
    Index("network_events_by_tag", "tag"),
)
