"""``/flavors``: made, listed, shown, described and deleted."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.paging import next_link, page_of
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema.flavors import LIST, CreateFlavor, UpdateFlavor
from kilonova.api.schema.kinds import MAX_INT, read_flag
from kilonova.api.view import View
from kilonova.api.views.flavors import BRIEF, FULL
from kilonova.db import flavors
from kilonova.db.engine import UniqueViolation
from kilonova.db.flavors import FlavorFilter
from kilonova.errors import Conflict, Invalid
from kilonova.model.flavor import Flavor
from kilonova.resources.flavor_specs import may_use

_MANAGE = "os_compute_api:os-flavor-manage"


async def find(call: Call) -> Flavor:
    """The flavor of the address, if it exists for the caller.  Raises NotFound."""
    flavorid = call.path["flavor_id"]
    flavor = await call.cloud.db.read(lambda tx: flavors.show(tx, flavorid))
    if flavor is None or not may_use(flavor, call.context.project_id, call.context.is_admin):
        raise flavors.not_found(flavorid)
    return flavor


def _is_public(text: str | None) -> bool | None:
    if text is None:
        return True
    if text.lower() == "none":
        return None
    try:
        return read_flag(text)
    except ValueError as error:
        raise Invalid(f"Invalid is_public filter [{text}]") from error


def _least(call: Call, name: str) -> int | None:
    text = call.query.last(name)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError as error:
        raise Invalid(f"Invalid {name} filter [{text}]") from error
    return max(-1, min(number, MAX_INT + 1))


def _wanted(call: Call) -> FlavorFilter:
    admin = call.context.is_admin
    return FlavorFilter(
        is_public=_is_public(call.query.last("is_public")) if admin else True,
        hide_disabled=not admin,
        project=call.context.project_id,
        min_ram=_least(call, "minRam"),
        min_disk=_least(call, "minDisk"),
        name=call.query.last("name") if call.version >= 102 else None,
    )


async def _page(call: Call, view: View) -> dict[str, Any]:
    limit, marker = page_of(call.query, call.cloud.settings.number("max_limit", "api"))
    wanted = _wanted(call)
    direction = call.query.last("sort_dir") or "asc"
    if direction not in ("asc", "desc"):
        raise Invalid(f"Unknown sort direction '{direction}': it must be 'asc' or 'desc'.")
    found = await call.cloud.db.read(
        lambda tx: flavors.list_page(
            tx,
            wanted,
            sort_key=call.query.last("sort_key") or "flavorid",
            descending=direction == "desc",
            marker=marker,
            limit=limit,
        )
    )
    render = view.bind(call)
    answer: dict[str, Any] = {"flavors": [render(flavor) for flavor in found]}
    if found and len(found) == limit:
        answer["flavors_links"] = next_link(call.url, call.query, limit, found[-1].flavorid)
    return answer


async def index(call: Call) -> dict[str, Any]:
    return await _page(call, BRIEF)


async def detail(call: Call) -> dict[str, Any]:
    return await _page(call, FULL)


async def show(call: Call) -> dict[str, Any]:
    return {"flavor": FULL.bind(call)(await find(call))}


async def create(call: Call) -> dict[str, Any]:
    given = call.body.flavor
    flavor = Flavor(
        id=0,
        flavorid=given.id or call.cloud.new_uuid(),
        name=given.name,
        vcpus=given.vcpus,
        memory_mb=given.ram,
        root_gb=given.disk,
        ephemeral_gb=given.ephemeral,
        swap_mb=given.swap,
        rxtx_factor=given.rxtx_factor,
        is_public=given.is_public,
        description=given.description,
    )
    now = call.cloud.clock.now()
    try:
        made = await call.cloud.db.write(lambda tx: flavors.create(tx, flavor, now))
    except UniqueViolation as error:
        raise Conflict(f"Flavor with name {given.name} or its ID already exists.") from error
    return {"flavor": FULL.bind(call)(made)}


async def update(call: Call) -> dict[str, Any]:
    words, now = call.body.flavor.description, call.cloud.clock.now()
    flavorid = call.path["flavor_id"]
    changed = await call.cloud.db.write(lambda tx: flavors.describe(tx, flavorid, words, now))
    return {"flavor": FULL.bind(call)(changed)}


async def delete(call: Call) -> None:
    await call.cloud.db.write(lambda tx: flavors.remove(tx, call.path["flavor_id"]))


ROUTES = (
    Route("GET", "/flavors", index, query=LIST),
    Route("POST", "/flavors", create, policy=f"{_MANAGE}:create", body=CreateFlavor),
    Route("GET", "/flavors/detail", detail, query=LIST),
    Route("GET", "/flavors/{flavor_id}", show, query=NO_KEYS),
    Route("PUT", "/flavors/{flavor_id}", update, policy=f"{_MANAGE}:update", since=55, body=UpdateFlavor),
    Route("DELETE", "/flavors/{flavor_id}", delete, policy=f"{_MANAGE}:delete", success=202),
)
