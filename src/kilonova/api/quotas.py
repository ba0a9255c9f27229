"""``/os-quota-sets``: the limits of a project, or of one user in it."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.flavor_access import check_project
from kilonova.api.routes import Route
from kilonova.api.schema.quotas import KEYS, UpdateQuotaSet, limits_given
from kilonova.api.views.quotas import QUOTA_SET
from kilonova.db import keypairs, quotas, server_groups
from kilonova.db.engine import Tx
from kilonova.db.quotas import Limits
from kilonova.resources.quota import check_limit, defaults

_RULE = "os_compute_api:os-quota-sets"
_PATH = "/os-quota-sets/{project_id}"


async def _project(call: Call) -> str:
    """The project of the address; checks that the caller may and that it exists."""
    project_id = call.path["project_id"]
    call.allow(target={"project_id": project_id, "user_id": call.context.user_id})
    await check_project(call, project_id)
    return project_id


def _user(call: Call) -> str | None:
    return call.query.last("user_id") or None


async def _limits(call: Call, project_id: str, user_id: str | None) -> Limits:
    known = defaults(call.cloud.settings)
    return await call.cloud.db.read(lambda tx: quotas.effective_limits(tx, project_id, user_id, known))


async def show(call: Call) -> dict[str, Any]:
    project_id = await _project(call)
    limits = await _limits(call, project_id, _user(call))
    return {"quota_set": {"id": project_id, **QUOTA_SET.bind(call)(limits)}}


async def detail(call: Call) -> dict[str, Any]:
    project_id, user_id = await _project(call), _user(call)
    known = defaults(call.cloud.settings)

    def read(tx: Tx) -> dict[str, dict[str, int]]:
        limits = quotas.effective_limits(tx, project_id, user_id, known)
        used = quotas.usage(tx, project_id, user_id)
        if user_id is not None:
            used["key_pairs"] = keypairs.count(tx, user_id)
        used["server_groups"] = server_groups.count(tx, project_id, user_id)
        return {
            name: {"limit": limit, "in_use": used.get(name, 0), "reserved": 0}
            for name, limit in limits.items()
        }

    found = await call.cloud.db.read(read)
    return {"quota_set": {"id": project_id, **QUOTA_SET.bind(call)(found)}}


async def show_defaults(call: Call) -> dict[str, Any]:
    project_id = await _project(call)
    known = defaults(call.cloud.settings)
    set_there = await call.cloud.db.read(lambda tx: quotas.limits_of(tx, quotas.CLASS, quotas.DEFAULT))
    return {"quota_set": {"id": project_id, **QUOTA_SET.bind(call)({**known, **set_there})}}


def _check(given: dict[str, int], limits: Limits, used: dict[str, int], of_user: bool) -> None:
    """Not below what is in use, and for a user not above what the project has.  Raises Invalid."""
    for name, limit in given.items():
        maximum = limits.project.get(name, -1) if of_user else -1
        check_limit(name, limit, minimum=used.get(name, 0), maximum=maximum)


async def update(call: Call) -> dict[str, Any]:
    project_id, user_id = await _project(call), _user(call)
    given, force = limits_given(call.body.quota_set), call.body.quota_set.force
    known = defaults(call.cloud.settings)
    scope, name = quotas.PROJECT, project_id
    if user_id is not None:
        scope, name = quotas.USER, quotas.user_scope(project_id, user_id)

    def write(tx: Tx) -> Limits:
        if not force:
            limits = quotas.effective_limits(tx, project_id, user_id, known)
            _check(given, limits, quotas.usage(tx, project_id, user_id), user_id is not None)
        quotas.set_limits(tx, scope, name, given)
        return quotas.effective_limits(tx, project_id, user_id, known)

    return {"quota_set": QUOTA_SET.bind(call)(await call.cloud.db.write(write))}


async def delete(call: Call) -> None:
    project_id, user_id = call.path["project_id"], _user(call)
    call.allow(target={"project_id": project_id, "user_id": call.context.user_id})
    await call.cloud.db.write(lambda tx: quotas.drop_limits(tx, project_id, user_id))


ROUTES = (
    Route("GET", _PATH, show, policy=f"{_RULE}:show", query=KEYS, late=True),
    Route("PUT", _PATH, update, policy=f"{_RULE}:update", query=KEYS, body=UpdateQuotaSet, late=True),
    Route("DELETE", _PATH, delete, policy=f"{_RULE}:delete", query=KEYS, success=202, late=True),
    Route("GET", _PATH + "/detail", detail, policy=f"{_RULE}:detail", query=KEYS, late=True),
    Route("GET", _PATH + "/defaults", show_defaults, policy=f"{_RULE}:defaults", late=True),
)
