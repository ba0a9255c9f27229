"""Which projects may use a private flavor: ``os-flavor-access`` and the two actions of a flavor."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.flavors import find
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema.flavors import AddAccess, RemoveAccess
from kilonova.api.views.flavors import access_list
from kilonova.db import flavors
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.model.flavor import Flavor

_RULE = "os_compute_api:os-flavor-access"


async def check_project(call: Call, project_id: str) -> None:
    """Raises Invalid for a project that the identity service does not know."""
    if not await call.cloud.identity.project_exists(project_id):
        raise Invalid(f"Project ID {project_id} is not a valid project.")


async def index(call: Call) -> dict[str, Any]:
    flavor = await find(call)
    if flavor.is_public:
        raise NotFound("Access list not available for public flavors.")
    return access_list(flavor)


async def add(call: Call) -> dict[str, Any]:
    project = call.body.access.tenant
    await check_project(call, project)
    flavorid, now, strict = call.path["flavor_id"], call.cloud.clock.now(), call.version >= 7

    def write(tx: Tx) -> Flavor:
        flavor = flavors.show(tx, flavorid)
        if strict and flavor is not None and flavor.is_public:
            raise Conflict("Can not add access to a public flavor.")
        return flavors.add_access(tx, flavorid, project, now)

    return access_list(await call.cloud.db.write(write))


async def remove(call: Call) -> dict[str, Any]:
    project = call.body.access.tenant
    await check_project(call, project)
    flavorid, now = call.path["flavor_id"], call.cloud.clock.now()
    left = await call.cloud.db.write(lambda tx: flavors.remove_access(tx, flavorid, project, now))
    return access_list(left)


ROUTES = (
    Route("GET", "/flavors/{flavor_id}/os-flavor-access", index, policy=_RULE, query=NO_KEYS),
    Route(
        "POST",
        "/flavors/{flavor_id}/action",
        add,
        policy=f"{_RULE}:add_tenant_access",
        action="addTenantAccess",
        body=AddAccess,
    ),
    Route(
        "POST",
        "/flavors/{flavor_id}/action",
        remove,
        policy=f"{_RULE}:remove_tenant_access",
        action="removeTenantAccess",
        body=RemoveAccess,
    ),
)
