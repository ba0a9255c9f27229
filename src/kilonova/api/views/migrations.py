"""Migrations as they are shown: in the list of all, and in a server's own list of those under way."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from kilonova.api.call import Call
from kilonova.api.view import OMIT, Getter, Item, View
from kilonova.clock import iso_micro
from kilonova.model.migration import Migration

HOST = "os_compute_api:os-migrations:index:host"
SERVER_HOST = "os_compute_api:servers:migrations:index:host"
_PLACES = ("source_compute", "source_node", "dest_compute", "dest_node", "dest_host")


def _when(moment: int | None) -> str | None:
    return None if moment is None else iso_micro(moment)


def _place(name: str, rule: str) -> Item:
    """A host or node, which only some may know; the key is there for all."""

    def bind(call: Call) -> Getter:
        return attrgetter(name) if call.may(rule) else lambda migration: None

    return Item(name, bind=bind)


def _links(call: Call) -> Callable[[Migration], Any]:
    def get(migration: Migration) -> Any:
        if not migration.in_progress:
            return OMIT
        return call.links_of(f"servers/{migration.instance_uuid}/migrations", str(migration.id))

    return get


_OWNER = (
    Item("user_id", attrgetter("user_id"), since=80),
    Item("project_id", attrgetter("project_id"), since=80),
)

MIGRATION = View(
    Item("id", attrgetter("id")),
    Item("uuid", attrgetter("uuid"), since=59),
    Item("instance_uuid", attrgetter("instance_uuid")),
    *(_place(name, HOST) for name in _PLACES),
    Item("status", attrgetter("status")),
    Item("migration_type", attrgetter("migration_type"), since=23),
    Item("old_instance_type_id", attrgetter("old_flavor_id")),
    Item("new_instance_type_id", attrgetter("new_flavor_id")),
    Item("created_at", lambda migration: iso_micro(migration.created_at)),
    Item("updated_at", lambda migration: _when(migration.updated_at)),
    *_OWNER,
    Item("links", bind=_links, since=23, optional=True),
)
SERVER_MIGRATION = View(
    Item("id", attrgetter("id")),
    Item("uuid", attrgetter("uuid"), since=59),
    Item("server_uuid", attrgetter("instance_uuid")),
    *(_place(name, SERVER_HOST) for name in _PLACES),
    Item("status", attrgetter("status")),
    *(
        Item(f"{kind}_{part}_bytes", attrgetter(f"{kind}_{part}"))
        for kind in ("memory", "disk")
        for part in ("total", "processed", "remaining")
    ),
    Item("created_at", lambda migration: iso_micro(migration.created_at)),
    Item("updated_at", lambda migration: iso_micro(migration.updated_at or migration.created_at)),
    *_OWNER,
)
