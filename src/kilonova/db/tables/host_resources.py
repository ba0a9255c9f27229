"""Tables of what hosts give away one by one: cells, devices, listed items, and who holds them.

``host_topologies`` has a row for each host that has any of these; its ``generation`` is changed first by
every transaction that changes the others, so it is their lock and tells readers what to read again.
"""

from __future__ import annotations

from sqlalchemy import Index, PrimaryKeyConstraint, Table

from kilonova.db.tables import flag, json_text, metadata, number, text

host_topologies = Table(
    "host_topologies",
    metadata,
    text("compute_id", primary_key=True),
    number("generation"),
    json_text("topology", nullable=True),
)

pci_devices = Table(
    "pci_devices",
    metadata,
    text("compute_id"),
    text("address"),
    json_text("device"),
    text("holder", nullable=True),
    flag("reported"),
    PrimaryKeyConstraint("compute_id", "address"),
    Index("pci_devices_by_holder", "holder"),
)

host_items = Table(
    "host_items",
    metadata,
    text("compute_id"),
    text("provider"),
    text("resource_class"),
    text("identifier"),
    json_text("item"),
    text("holder", nullable=True),
    flag("reported"),
    PrimaryKeyConstraint("compute_id", "provider", "resource_class", "identifier"),
    Index("host_items_by_holder", "holder"),
)

# A consumer has at most one claim: a server its own, and the old side of a move the migration's.
host_claims = Table(
    "host_claims",
    metadata,
    text("consumer", primary_key=True),
    text("instance_uuid"),
    text("compute_id"),
    json_text("numa", nullable=True),
    json_text("requests"),
    json_text("holdings"),
    json_text("devices"),
    json_text("items"),
    Index("host_claims_by_host", "compute_id"),
    Index("host_claims_by_instance", "instance_uuid"),
)
