"""Flavors as they are shown."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from kilonova.api.view import Item, View
from kilonova.model.flavor import Flavor

if TYPE_CHECKING:
    from kilonova.api.call import Call


def _links(call: Call) -> Callable[[Flavor], Any]:
    return lambda flavor: call.links_of("flavors", flavor.flavorid)


def _old_swap(flavor: Flavor) -> int | str:
    return flavor.swap_mb or ""


_NAMED = (
    Item("id", attrgetter("flavorid")),
    Item("name", attrgetter("name")),
    Item("description", attrgetter("description"), since=55),
    Item("links", bind=_links),
)

BRIEF = View(*_NAMED)

FULL = View(
    *_NAMED,
    Item("ram", attrgetter("memory_mb")),
    Item("disk", attrgetter("root_gb")),
    Item("swap", _old_swap, until=74),
    Item("swap", attrgetter("swap_mb"), since=75),
    Item("OS-FLV-EXT-DATA:ephemeral", attrgetter("ephemeral_gb")),
    Item("OS-FLV-DISABLED:disabled", attrgetter("disabled"), until=101),
    Item("vcpus", attrgetter("vcpus")),
    Item("os-flavor-access:is_public", attrgetter("is_public")),
    Item("rxtx_factor", attrgetter("rxtx_factor"), until=101),
    Item(
        "extra_specs",
        attrgetter("extra_specs"),
        since=61,
        rule="os_compute_api:os-flavor-extra-specs:index",
    ),
)


def access_list(flavor: Flavor) -> dict[str, Any]:
    """The projects that may use a private flavor."""
    return {
        "flavor_access": [{"flavor_id": flavor.flavorid, "tenant_id": project} for project in flavor.projects]
    }
