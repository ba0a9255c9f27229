"""``/os-server-groups``: servers that should be together, or apart."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.paging import page_of, whole_number
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema.server_groups import LIST, CreateServerGroup, NewServerGroup
from kilonova.api.views.server_groups import GROUP
from kilonova.db import quotas, server_groups
from kilonova.db.engine import Tx
from kilonova.db.server_groups import ANTI_AFFINITY, MOST, ServerGroup
from kilonova.errors import Invalid
from kilonova.resources.quota import defaults

_RULE = "os_compute_api:os-server-groups"
_PATH = "/os-server-groups"
_ONE = _PATH + "/{id}"


async def index(call: Call) -> dict[str, Any]:
    """Of the caller's project; of all for those who may see them and ask for it."""
    call.allow(target={"project_id": call.context.project_id})
    limit, _ = page_of(call.query, call.cloud.settings.number("max_limit", "api"))
    skip = whole_number("offset", call.query.last("offset") or "0")
    project: str | None = call.context.project_id or ""
    if "all_projects" in call.query and call.may(f"{_RULE}:index:all_projects"):
        project = None
    found = await call.cloud.top.read(lambda tx: server_groups.list_page(tx, project, most=limit, skip=skip))
    render = GROUP.bind(call)
    return {"server_groups": [render(each) for each in found]}


async def _found(call: Call) -> ServerGroup:
    """Raises NotFound, and Forbidden for one of another project."""
    found = await call.cloud.top.read(lambda tx: server_groups.show(tx, call.path["id"]))
    call.allow(target={"project_id": found.project_id})
    return found


async def show(call: Call) -> dict[str, Any]:
    return {"server_group": GROUP.bind(call)(await _found(call))}


def _rules(given: NewServerGroup, policy: str) -> dict[str, int]:
    most = None if given.rules is None else given.rules.max_server_per_host
    if given.rules is not None and policy != ANTI_AFFINITY:
        raise Invalid("Only anti-affinity policy supports rules.")
    return {} if most is None else {MOST: most}


async def create(call: Call) -> dict[str, Any]:
    call.allow(target={"project_id": call.context.project_id})
    given: NewServerGroup = call.body.server_group
    policy = str(given.policy or (given.policies or given.hard)[0])
    group = ServerGroup(
        id=0,
        uuid=call.cloud.new_uuid(),
        project_id=call.context.project_id or "",
        user_id=call.context.user_id,
        name=given.name,
        policy=policy,
        rules=_rules(given, policy),
        created_at=call.cloud.clock.now(),
    )
    known = defaults(call.cloud.settings)

    def write(tx: Tx) -> ServerGroup:
        quotas.lock_project(tx, group.project_id)
        limits = quotas.effective_limits(tx, group.project_id, group.user_id, known)
        of_user = limits.of_user.get("server_groups")
        return server_groups.create(tx, group, limit=limits.project["server_groups"], user_limit=of_user)

    return {"server_group": GROUP.bind(call)(await call.cloud.top.write(write))}


async def delete(call: Call) -> None:
    found = await _found(call)
    await call.cloud.top.write(lambda tx: server_groups.remove(tx, found.uuid))


ROUTES = (
    Route("GET", _PATH, index, policy=f"{_RULE}:index", query=LIST, late=True),
    Route("POST", _PATH, create, policy=f"{_RULE}:create", body=CreateServerGroup, late=True),
    Route("GET", _ONE, show, policy=f"{_RULE}:show", query=NO_KEYS, late=True),
    Route("DELETE", _ONE, delete, policy=f"{_RULE}:delete", success=204, late=True),
)
