"""Key pairs as they are shown."""

from __future__ import annotations

from operator import attrgetter

from kilonova.api.view import Item, View
from kilonova.clock import iso_micro
from kilonova.db.keypairs import Keypair

_COMMON = (
    Item("name", attrgetter("name")),
    Item("public_key", attrgetter("public_key")),
    Item("fingerprint", attrgetter("fingerprint")),
    Item("type", attrgetter("type"), since=2),
)


def _created_at(keypair: Keypair) -> str:
    return iso_micro(keypair.created_at)


BRIEF = View(*_COMMON)

NEW = View(*_COMMON, Item("user_id", attrgetter("user_id")))

FULL = View(
    *_COMMON,
    Item("user_id", attrgetter("user_id")),
    Item("id", attrgetter("id")),
    Item("created_at", _created_at),
    Item("updated_at", lambda keypair: None),  # a key never changes
    Item("deleted", lambda keypair: False),
    Item("deleted_at", lambda keypair: None),
)
