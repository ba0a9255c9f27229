"""Groups of users and who is in them."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.db import identity_records as records
from kilonova.db import identity_removal, identity_roles
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Domain, Group, User
from kilonova.errors import Invalid, NotFound
from kilonova.services.identity import bodies, listing, views
from kilonova.services.identity.bodies import GroupBody
from kilonova.services.identity.builtin import new_id
from kilonova.services.identity.call import Call, Routes, no_content
from kilonova.services.identity.login import DEFAULT_DOMAIN
from kilonova.web.json import JsonResponse


async def index(call: Call) -> Response:
    call.need_reader("identity:list_groups")
    wanted = listing.read_filter(call, "name", "domain_id")
    found = await call.identity.db.read(lambda tx: wanted.select(tx, Group))
    return call.listing("groups", (views.group(call, each) for each in found), full=wanted.is_full(found))


async def create(call: Call) -> Response:
    call.need_admin("identity:create_group")
    data = await call.body("group")
    fields = _columns(bodies.given(bodies.read(GroupBody, data)))
    if "name" not in fields:
        raise Invalid("A group must have a name.")
    home = fields.pop("domain_id", None) or call.context.domain_id or DEFAULT_DOMAIN
    made = Group(**fields, id=new_id(), domain_id=home, extra=bodies.extra(GroupBody, data))

    def change(tx: Tx) -> Group:
        if records.find(tx, Domain, home) is None:
            raise NotFound(f"Could not find domain: {home}.")
        return records.add(tx, made)

    await call.identity.change(change)
    return JsonResponse({"group": views.group(call, made)}, 201)


def _columns(fields: dict[str, Any]) -> dict[str, Any]:
    """The given fields that are columns; a description of null is none."""
    found = {name: value for name, value in fields.items() if name not in ("id", "options")}
    if "description" in found:
        found["description"] = found["description"] or ""
    return found


async def show(call: Call) -> Response:
    call.need_reader("identity:get_group")
    found = await call.identity.db.read(lambda tx: records.show(tx, Group, call.part("id")))
    return JsonResponse({"group": views.group(call, found)})


async def update(call: Call) -> Response:
    call.need_admin("identity:update_group")
    id = call.part("id")
    data = await call.body("group")
    body = bodies.read(GroupBody, data)
    bodies.check_id(body, id)

    def change(tx: Tx) -> Group:
        old = records.show(tx, Group, id)
        bodies.check_same("the domain of a group", body.domain_id, old.domain_id)
        extra = {**old.extra, **bodies.extra(GroupBody, data)}
        return records.change(tx, msgspec.structs.replace(old, **_columns(bodies.given(body)), extra=extra))

    found = await call.identity.change(change)
    return JsonResponse({"group": views.group(call, found)})


async def delete(call: Call) -> Response:
    call.need_admin("identity:delete_group")
    await call.identity.change(lambda tx: identity_removal.remove_group(tx, call.part("id")))
    return no_content()


async def members(call: Call) -> Response:
    call.need_reader("identity:list_users_in_group")
    id = call.part("id")

    def look(tx: Tx) -> list[User]:
        records.show(tx, Group, id)
        return identity_roles.members(tx, id)

    return call.listing("users", (views.user(call, each) for each in await call.identity.db.read(look)))


def _both(tx: Tx, call: Call) -> tuple[str, str]:
    """The ids of the group and the user in the path.  Raises NotFound."""
    group = records.show(tx, Group, call.part("id"))
    return group.id, records.show(tx, User, call.part("user_id")).id


async def join(call: Call) -> Response:
    call.need_admin("identity:add_user_to_group")
    await call.identity.change(lambda tx: identity_roles.join(tx, *_both(tx, call)))
    return no_content()


async def is_member(call: Call) -> Response:
    call.need_reader("identity:check_user_in_group", own=call.context.user_id == call.part("user_id"))
    if not await call.identity.db.read(lambda tx: identity_roles.is_member(tx, *_both(tx, call))):
        raise _no_member(call)
    return no_content()


async def leave(call: Call) -> Response:
    call.need_admin("identity:remove_user_from_group")
    if not await call.identity.change(lambda tx: identity_roles.leave(tx, *_both(tx, call))):
        raise _no_member(call)
    return no_content()


def _no_member(call: Call) -> NotFound:
    return NotFound(f"User {call.part('user_id')} not found in group {call.part('id')}.")


ROUTES: Routes = {
    "/v3/groups": {"GET": index, "POST": create},
    "/v3/groups/{id}": {"GET": show, "PATCH": update, "DELETE": delete},
    "/v3/groups/{id}/users": {"GET": members},
    "/v3/groups/{id}/users/{user_id}": {"PUT": join, "GET": is_member, "DELETE": leave},
}
