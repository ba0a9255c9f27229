"""A move of a server from one host to another, as it is recorded and shown."""

from __future__ import annotations

import msgspec

from kilonova.model.flavor import Flavor
from kilonova.model.port import Vif
from kilonova.model.volume import Attachment

MIGRATION, RESIZE, LIVE, EVACUATION = "migration", "resize", "live-migration", "evacuation"


class Status:
    """What a migration may be at, in Nova's words.

    A resize or a cold migration: pre-migrating, migrating, post-migrating, finished, then confirming and
    confirmed, or reverting and reverted.  A live one: accepted, queued, preparing, running, completed, or
    cancelled.  An evacuation: accepted, pre-migrating, done, and completed when its old host has come back.
    What fails ends as failed (the server is as before) or error.
    """

    ACCEPTED = "accepted"
    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    POSTCOPY = "running (post-copy)"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    ERROR = "error"
    PRE_MIGRATING = "pre-migrating"
    MIGRATING = "migrating"
    POST_MIGRATING = "post-migrating"
    FINISHED = "finished"
    CONFIRMING = "confirming"
    CONFIRMED = "confirmed"
    REVERTING = "reverting"
    REVERTED = "reverted"
    DONE = "done"


class Wish:
    """What a user wants of a live migration that is under way."""

    ABORT = "abort"
    FORCE_COMPLETE = "force_complete"


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
    wish: str | None = None  # of `Wish`: kept, so that it is heard whoever runs the move by then

    @property
    def in_progress(self) -> bool:
        return self.migration_type == LIVE and self.status in IN_PROGRESS


class MigrationContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a move must remember of a server until it is confirmed, reverted or over.

    ``old_vifs`` are the ports as they were bound at the source, with which it unplugs (OVS-21), ``new_vifs``
    as they are at the destination; so with the volumes.  ``shared`` says that both hosts have one directory
    of guests' files.
    """

    old_vm_state: str
    old_flavor: Flavor
    new_flavor: Flavor | None = None  # None: it keeps its flavor
    old_vifs: tuple[Vif, ...] = ()
    new_vifs: tuple[Vif, ...] = ()
    old_volumes: tuple[Attachment, ...] = ()
    new_volumes: tuple[Attachment, ...] = ()
    shared: bool = False
