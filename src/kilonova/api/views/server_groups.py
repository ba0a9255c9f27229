"""Server groups as they are shown."""

from __future__ import annotations

from operator import attrgetter

from kilonova.api.schema.server_groups import ONE_POLICY
from kilonova.api.view import Item, View

GROUP = View(
    Item("id", attrgetter("uuid")),
    Item("name", attrgetter("name")),
    Item("policies", lambda group: [group.policy], until=ONE_POLICY - 1),
    Item("policy", attrgetter("policy"), since=ONE_POLICY),
    Item("rules", attrgetter("rules"), since=ONE_POLICY),
    Item("members", lambda group: list(group.members)),
    Item("metadata", lambda group: {}, until=ONE_POLICY - 1),
    Item("project_id", attrgetter("project_id"), since=13),
    Item("user_id", attrgetter("user_id"), since=13),
)
