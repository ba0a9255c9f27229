"""Tables of cells (in the top database: which there are, and what is in which) and of migrations."""

from __future__ import annotations

from sqlalchemy import Index, Table, UniqueConstraint

from kilonova.db.tables import flag, json_text, metadata, number, serial, text

cell_mappings = Table(
    "cell_mappings",
    metadata,
    serial(),
    text("uuid", unique=True),
    text("name", unique=True),
    text("database_connection"),
    text("transport_url"),
    flag("disabled"),  # takes no new servers
    number("created_at"),
    number("updated_at", nullable=True),
)

instance_mappings = Table(
    "instance_mappings",
    metadata,
    # servers that are not in the first cell, whose database is this one, or have been elsewhere
    text("instance_uuid", primary_key=True),
    text("cell_uuid"),
    text("project_id"),
    text("user_id"),
    text("state"),  # pending: booked here, not yet seen in the cell; made; gone: its quota is given back
    number("residence"),  # how often it has changed its cell: the mapping changes under compare-and-set
    flag("queued_for_delete"),
    json_text("flavor"),
    json_text("image", nullable=True),
    text("availability_zone", nullable=True),
    number("created_at"),
    number("updated_at", nullable=True),
    Index("instance_mappings_by_project", "project_id", "cell_uuid", "created_at"),
    Index("instance_mappings_by_cell", "cell_uuid", "queued_for_delete", "created_at"),
    Index("instance_mappings_by_state", "state", "updated_at"),
)

migrations = Table(
    "migrations",
    metadata,
    serial(),
    text("uuid", unique=True),
    text("instance_uuid"),
    text("project_id"),
    text("user_id"),
    text("migration_type"),  # migration, resize, live-migration, evacuation
    text("status"),
    text("source_compute", nullable=True),
    text("source_node", nullable=True),
    text("dest_compute", nullable=True),
    text("dest_node", nullable=True),
    text("dest_host", nullable=True),  # an address
    number("old_flavor_id", nullable=True),
    number("new_flavor_id", nullable=True),
    flag("hidden"),
    flag("cross_cell_move"),
    number("memory_total", nullable=True),  # bytes, as the five below
    number("memory_processed", nullable=True),
    number("memory_remaining", nullable=True),
    number("disk_total", nullable=True),
    number("disk_processed", nullable=True),
    number("disk_remaining", nullable=True),
    number("created_at"),
    number("updated_at", nullable=True),
    text("wish", nullable=True),  # abort, force_complete
    Index("migrations_by_instance", "instance_uuid", "id"),
    Index("migrations_by_age", "created_at", "id"),
    Index("migrations_by_source", "source_compute"),
    Index("migrations_by_destination", "dest_compute"),
)

migration_contexts = Table(
    "migration_contexts",
    metadata,
    text("migration_uuid", primary_key=True),
    text("instance_uuid"),
    json_text("content"),
    Index("migration_contexts_by_instance", "instance_uuid"),
)

arrivals = Table(  # servers that come from another cell, packed, until their mapping names this one
    "arrivals",
    metadata,
    text("instance_uuid", primary_key=True),
    number("residence"),  # that it will have here
    number("action"),  # who has packed it: the operation's number in the other cell, and its epoch
    number("epoch"),
    json_text("content"),
    number("created_at"),
)

leftovers = Table(  # what a host may still have of servers that are not its own any more
    "leftovers",
    metadata,
    serial(),
    text("host"),
    text("instance_uuid"),
    text("migration_uuid", nullable=True),
    number("action"),  # of the operation that has left it
    json_text("vifs"),
    flag("keep_files"),
    number("created_at"),
    UniqueConstraint("host", "instance_uuid", name="leftovers_once"),
)
