"""Host aggregates as they are shown."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from kilonova.api.view import Item, View
from kilonova.clock import iso_micro
from kilonova.db.aggregates import Aggregate

ZONE = "availability_zone"


def _metadata(aggregate: Aggregate) -> dict[str, Any]:
    """With the zone among it, where Nova keeps it."""
    zone = aggregate.availability_zone
    return aggregate.metadata if zone is None else {**aggregate.metadata, ZONE: zone}


def _updated_at(aggregate: Aggregate) -> str | None:
    return None if aggregate.updated_at is None else iso_micro(aggregate.updated_at)


NEW = View(
    Item("id", attrgetter("id")),
    Item("uuid", attrgetter("uuid"), since=41),
    Item("name", attrgetter("name")),
    Item(ZONE, attrgetter("availability_zone")),
    Item("created_at", lambda aggregate: iso_micro(aggregate.created_at)),
    Item("updated_at", _updated_at),
    Item("deleted", lambda aggregate: False),
    Item("deleted_at", lambda aggregate: None),
)

FULL = View(*NEW.items, Item("hosts", lambda aggregate: list(aggregate.hosts)), Item("metadata", _metadata))
