"""A move of a server from one host to another, as it is recorded and shown."""

from __future__ import annotations

import msgspec

MIGRATION, RESIZE, LIVE, EVACUATION = "migration", "resize", "live-migration", "evacuation"

IN_PROGRESS = frozenset({"queued", "preparing", "running", "post-migrating"})
"""Statuses of a live migration that is under way: these are what a server's own list shows."""


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """``id`` is counted by the cell's database; moments in microseconds, sizes in bytes."""

    uuid: str
    instance_uuid: str
    project_id: str
    user_id: str
    migration_type: str
    status: str
    created_at: int
    id: int = 0
    source_compute: str | None = None
    source_node: str | None = None
    dest_compute: str | None = None
    dest_node: str | None = None
    dest_host: str | None = None
    old_flavor_id: int | None = None
    new_flavor_id: int | None = None
    hidden: bool = False
    cross_cell_move: bool = False
    memory_total: int | None = None
    memory_processed: int | None = None
    memory_remaining: int | None = None
    disk_total: int | None = None
    disk_processed: int | None = None
    disk_remaining: int | None = None
    updated_at: int | None = None

    @property
    def in_progress(self) -> bool:
        return self.migration_type == LIVE and self.status in IN_PROGRESS
