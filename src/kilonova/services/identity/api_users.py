"""Users and their passwords."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.db import identity_records as records
from kilonova.db import identity_removal, identity_roles
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Domain, User
from kilonova.errors import Invalid, NotFound, Unauthenticated
from kilonova.services.identity import bodies, listing, login, tokens, views
from kilonova.services.identity.bodies import PasswordBody, UserBody
from kilonova.services.identity.builtin import new_id
from kilonova.services.identity.call import Call, Routes, no_content
from kilonova.services.identity.login import DEFAULT_DOMAIN
from kilonova.web.json import JsonResponse


async def index(call: Call) -> Response:
    call.need_reader("identity:list_users")
    wanted = listing.read_filter(call, "name", "domain_id", "enabled", "default_project_id")
    found = await call.identity.db.read(lambda tx: wanted.select(tx, User))
    return call.listing("users", (views.user(call, each) for each in found), full=wanted.is_full(found))


async def create(call: Call) -> Response:
    call.need_admin("identity:create_user")
    data = await call.body("user")
    body = bodies.read(UserBody, data)
    fields = _columns(bodies.given(body))
    if "name" not in fields:
        raise Invalid("A user must have a name.")
    home = fields.pop("domain_id", None) or call.context.domain_id or DEFAULT_DOMAIN
    hashed = await call.identity.passwords.hash(body.password) if isinstance(body.password, str) else None
    made = User(**fields, id=new_id(), domain_id=home, extra=_extra(data), password_hash=hashed)

    def change(tx: Tx) -> User:
        if records.find(tx, Domain, home) is None:
            raise NotFound(f"Could not find domain: {home}.")
        return records.add(tx, made)

    await call.identity.change(change)
    return JsonResponse({"user": views.user(call, made)}, 201)


def _columns(fields: dict[str, Any]) -> dict[str, Any]:
    elsewhere = ("id", "options", "password", "email", "description")
    return {name: value for name, value in fields.items() if name not in elsewhere}


def _extra(data: dict[str, Any]) -> dict[str, Any]:
    return bodies.extra(UserBody, data, kept=("email", "description"))


async def show(call: Call) -> Response:
    id = call.part("id")
    call.need_reader("identity:get_user", own=call.context.user_id == id)
    found = await call.identity.db.read(lambda tx: records.show(tx, User, id))
    return JsonResponse({"user": views.user(call, found)})


async def update(call: Call) -> Response:
    call.need_admin("identity:update_user")
    id = call.part("id")
    data = await call.body("user")
    body = bodies.read(UserBody, data)
    bodies.check_id(body, id)
    changes = _columns(bodies.given(body))
    if isinstance(body.password, str):
        changes["password_hash"] = await call.identity.passwords.hash(body.password)
    elif body.password is None:
        changes["password_hash"] = None

    def change(tx: Tx) -> User:
        old = records.show(tx, User, id)
        bodies.check_same("the domain of a user", body.domain_id, old.domain_id)
        new = msgspec.structs.replace(old, **changes, extra={**old.extra, **_extra(data)})
        if "password_hash" in changes or (old.enabled and not new.enabled):
            new = msgspec.structs.replace(new, generation=old.generation + 1)
        return records.change(tx, new)

    found = await call.identity.change(change)
    return JsonResponse({"user": views.user(call, found)})


async def delete(call: Call) -> Response:
    call.need_admin("identity:delete_user")
    await call.identity.change(lambda tx: identity_removal.remove_user(tx, call.part("id")))
    return no_content()


async def change_password(call: Call) -> Response:
    """One's own: whoever knows the old one needs no token, as in Keystone."""
    id = call.part("id")
    body = bodies.read(PasswordBody, await call.body("user"))
    found = await call.identity.db.read(lambda tx: records.find(tx, User, id))
    old_hash = found.password_hash if found else None
    right = await call.identity.passwords.verify(old_hash, body.original_password)
    if found is None or not right or not found.enabled:
        raise Unauthenticated(tokens.NOT_VALID)
    hashed = await call.identity.passwords.hash(body.password)

    def change(tx: Tx) -> None:
        old = records.show(tx, User, id)
        if old.password_hash != old_hash or not old.enabled:
            raise Unauthenticated(tokens.NOT_VALID)
        new = msgspec.structs.replace(old, password_hash=hashed, generation=old.generation + 1)
        records.change(tx, new)

    await call.identity.change(change)
    return no_content()


async def projects(call: Call) -> Response:
    id = call.part("id")
    call.need_reader("identity:list_user_projects", own=call.context.user_id == id)

    def look(tx: Tx) -> list[records.Project]:
        records.show(tx, User, id)
        return login.own_projects(tx, id)

    return call.listing("projects", (views.project(call, each) for each in await call.identity.db.read(look)))


async def groups(call: Call) -> Response:
    id = call.part("id")
    call.need_reader("identity:list_groups_for_user", own=call.context.user_id == id)

    def look(tx: Tx) -> list[records.Group]:
        records.show(tx, User, id)
        return identity_roles.groups_of(tx, id)

    return call.listing("groups", (views.group(call, each) for each in await call.identity.db.read(look)))


PUBLIC: Routes = {"/v3/users/{id}/password": {"POST": change_password}}
ROUTES: Routes = {
    "/v3/users": {"GET": index, "POST": create},
    "/v3/users/{id}": {"GET": show, "PATCH": update, "DELETE": delete},
    "/v3/users/{id}/projects": {"GET": projects},
    "/v3/users/{id}/groups": {"GET": groups},
}
