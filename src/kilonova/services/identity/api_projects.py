"""Projects."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.db import identity_records as records
from kilonova.db import identity_removal, identity_roles
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Domain, Project
from kilonova.errors import Forbidden, Invalid, NotFound
from kilonova.services.identity import bodies, listing, views
from kilonova.services.identity.bodies import ProjectBody
from kilonova.services.identity.builtin import new_id
from kilonova.services.identity.call import NOT_ALLOWED, Call, Routes, no_content
from kilonova.services.identity.login import DEFAULT_DOMAIN
from kilonova.web.json import JsonResponse


async def index(call: Call) -> Response:
    call.need_reader("identity:list_projects")
    wanted = listing.read_filter(call, "name", "domain_id", "parent_id", "enabled", "tags")
    # A domain is no project here, so there are none that act as one.
    none = "is_domain" in call.request.query_params and call.flag("is_domain")
    found = [] if none else await call.identity.db.read(lambda tx: wanted.select(tx, Project))
    return call.listing("projects", (views.project(call, each) for each in found), full=wanted.is_full(found))


async def create(call: Call) -> Response:
    call.need_admin("identity:create_project")
    data = await call.body("project")
    body = bodies.read(ProjectBody, data)
    fields = _columns(bodies.given(body))
    if "name" not in fields:
        raise Invalid("A project must have a name.")
    if body.is_domain is True:
        raise Invalid("A project cannot be a domain here: make a domain instead.")

    def change(tx: Tx) -> Project:
        parent = fields.pop("parent_id", None)
        above = records.find(tx, Project, parent) if parent else None
        home = fields.pop("domain_id", None) or (above.domain_id if above else None)
        home = home or call.context.domain_id or DEFAULT_DOMAIN
        if records.find(tx, Domain, home) is None:
            raise NotFound(f"Could not find domain: {home}.")
        if parent and parent != home and (above is None or above.domain_id != home):
            raise NotFound(f"Could not find project: {parent}.")
        made = Project(
            **fields,
            id=new_id(),
            domain_id=home,
            parent_id=parent or home,
            extra=bodies.extra(ProjectBody, data),
        )
        return records.add(tx, made)

    made = await call.identity.change(change)
    return JsonResponse({"project": views.project(call, made)}, 201)


def _columns(fields: dict[str, Any]) -> dict[str, Any]:
    """The given fields that are columns; a description of null is none."""
    found = {name: value for name, value in fields.items() if name not in ("id", "options", "is_domain")}
    if "description" in found:
        found["description"] = found["description"] or ""
    if "tags" in found:
        found["tags"] = tuple(sorted(set(found["tags"])))
    return found


def visible(tx: Tx, call: Call, what: str) -> Project:
    """The project in the path.

    Raises NotFound, and Forbidden for one that is not the caller's, whether there is one or not.
    """
    id = call.part("id")
    own = call.context.project_id == id or id in identity_roles.targets(tx, call.context.user_id, "project")
    if not own and not call.reads_all:
        raise Forbidden(NOT_ALLOWED.format(what=what))
    return records.show(tx, Project, id)


async def show(call: Call) -> Response:
    found = await call.identity.db.read(lambda tx: visible(tx, call, "identity:get_project"))
    return JsonResponse({"project": views.project(call, found)})


async def update(call: Call) -> Response:
    call.need_admin("identity:update_project")
    id = call.part("id")
    data = await call.body("project")
    body = bodies.read(ProjectBody, data)
    bodies.check_id(body, id)

    def change(tx: Tx) -> Project:
        old = records.show(tx, Project, id)
        bodies.check_same("the domain of a project", body.domain_id, old.domain_id)
        bodies.check_same("the parent of a project", body.parent_id, old.parent_id)
        extra = {**old.extra, **bodies.extra(ProjectBody, data)}
        new = msgspec.structs.replace(old, **_columns(bodies.given(body)), extra=extra)
        if old.enabled and not new.enabled:
            new = msgspec.structs.replace(new, generation=old.generation + 1)
        return records.change(tx, new)

    found = await call.identity.change(change)
    return JsonResponse({"project": views.project(call, found)})


async def delete(call: Call) -> Response:
    call.need_admin("identity:delete_project")
    await call.identity.change(lambda tx: identity_removal.remove_project(tx, call.part("id")))
    return no_content()


ROUTES: Routes = {
    "/v3/projects": {"GET": index, "POST": create},
    "/v3/projects/{id}": {"GET": show, "PATCH": update, "DELETE": delete},
}
