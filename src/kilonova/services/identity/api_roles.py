"""Roles, and which of them imply which."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from kilonova.db import identity_records as records
from kilonova.db import identity_removal, identity_roles
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Role
from kilonova.errors import Forbidden, Invalid, NotFound
from kilonova.services.identity import bodies, listing, views
from kilonova.services.identity.bodies import RoleBody
from kilonova.services.identity.bootstrap import ROLES
from kilonova.services.identity.builtin import new_id
from kilonova.services.identity.call import Call, Routes, no_content
from kilonova.web.json import JsonResponse


async def index(call: Call) -> Response:
    call.need_reader("identity:list_roles")
    if call.query("domain_id") is not None:  # roles of a domain do not exist here
        return call.listing("roles", [])
    wanted = listing.read_filter(call, "name")
    found = await call.identity.db.read(lambda tx: wanted.select(tx, Role))
    return call.listing("roles", (views.role(call, each) for each in found), full=wanted.is_full(found))


async def create(call: Call) -> Response:
    call.need_admin("identity:create_role")
    data = await call.body("role")
    body = bodies.read(RoleBody, data)
    fields = _columns(bodies.given(body))
    if "name" not in fields:
        raise Invalid("A role must have a name.")
    if isinstance(body.domain_id, str):
        raise Invalid("Roles that belong to a domain are not supported: leave domain_id out.")
    made = Role(**fields, id=new_id(), extra=bodies.extra(RoleBody, data))
    await call.identity.change(lambda tx: records.add(tx, made))
    return JsonResponse({"role": views.role(call, made)}, 201)


def _columns(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in ("name", "description")}


async def show(call: Call) -> Response:
    call.need_reader("identity:get_role")
    found = await call.identity.db.read(lambda tx: records.show(tx, Role, call.part("id")))
    return JsonResponse({"role": views.role(call, found)})


async def update(call: Call) -> Response:
    call.need_admin("identity:update_role")
    id = call.part("id")
    data = await call.body("role")
    body = bodies.read(RoleBody, data)
    bodies.check_id(body, id)
    bodies.check_same("the domain of a role", body.domain_id, None)

    def change(tx: Tx) -> Role:
        old = records.show(tx, Role, id)
        if body.name not in (UNSET, old.name):
            _check_mutable(old)
        extra = {**old.extra, **bodies.extra(RoleBody, data)}
        return records.change(tx, msgspec.structs.replace(old, **_columns(bodies.given(body)), extra=extra))

    found = await call.identity.change(change)
    return JsonResponse({"role": views.role(call, found)})


async def delete(call: Call) -> Response:
    call.need_admin("identity:delete_role")
    id = call.part("id")

    def change(tx: Tx) -> None:
        _check_mutable(records.show(tx, Role, id))
        identity_removal.remove_role(tx, id)

    await call.identity.change(change)
    return no_content()


def _check_mutable(role: Role) -> None:
    """Raises Forbidden for the roles that policies are made of: without them nobody could do anything."""
    if role.name in ROLES:
        raise Forbidden(f"Cannot delete or rename the role {role.name}: it is immutable.")


def _short(call: Call, role: Role) -> dict[str, Any]:
    return {"id": role.id, "name": role.name, "links": call.link("roles", role.id)}


def _inference(call: Call, prior: Role, implied: list[Role]) -> dict[str, Any]:
    return {"prior_role": _short(call, prior), "implies": [_short(call, each) for each in implied]}


async def inferences(call: Call) -> Response:
    call.need_reader("identity:list_role_inference_rules")
    roles, implied = await call.identity.db.read(
        lambda tx: (identity_roles.all_roles(tx), identity_roles.implied(tx))
    )
    found = [
        _inference(call, prior, [each for each in roles if each.id in implied[prior.id]])
        for prior in roles
        if prior.id in implied
    ]
    return JsonResponse({"role_inferences": found, "links": call.link("role_inferences")})


async def implications(call: Call) -> Response:
    call.need_reader("identity:list_implied_roles")

    def look(tx: Tx) -> tuple[Role, list[Role]]:
        prior = records.show(tx, Role, call.part("id"))
        ids = identity_roles.implied(tx).get(prior.id, set())
        return prior, [each for each in identity_roles.all_roles(tx) if each.id in ids]

    found = _inference(call, *await call.identity.db.read(look))
    links = call.link("roles", call.part("id"), "implies")
    return JsonResponse({"role_inference": found, "links": links})


def _pair(tx: Tx, call: Call) -> tuple[Role, Role]:
    prior = records.show(tx, Role, call.part("id"))
    return prior, records.show(tx, Role, call.part("implied_id"))


async def imply(call: Call) -> Response:
    call.need_admin("identity:create_implied_role")

    def change(tx: Tx) -> tuple[Role, Role]:
        prior, implied = _pair(tx, call)
        if prior.id == implied.id:
            raise Invalid(f"Role {prior.id} cannot imply itself.")
        identity_roles.imply(tx, prior.id, implied.id)
        return prior, implied

    return JsonResponse(_rule(call, *await call.identity.change(change)), 201)


def _rule(call: Call, prior: Role, implied: Role) -> dict[str, Any]:
    found = {"prior_role": _short(call, prior), "implies": _short(call, implied)}
    return {"role_inference": found, "links": call.link("roles", prior.id, "implies", implied.id)}


async def implication(call: Call) -> Response:
    call.need_reader("identity:get_implied_role")

    def look(tx: Tx) -> tuple[Role, Role]:
        prior, implied = _pair(tx, call)
        if implied.id not in identity_roles.implied(tx).get(prior.id, set()):
            raise _no_rule(prior, implied)
        return prior, implied

    return JsonResponse(_rule(call, *await call.identity.db.read(look)))


async def imply_no_more(call: Call) -> Response:
    call.need_admin("identity:delete_implied_role")

    def change(tx: Tx) -> None:
        prior, implied = _pair(tx, call)
        if not identity_roles.imply_no_more(tx, prior.id, implied.id):
            raise _no_rule(prior, implied)

    await call.identity.change(change)
    return no_content()


def _no_rule(prior: Role, implied: Role) -> NotFound:
    return NotFound(f"{prior.id} does not imply {implied.id}.")


ROUTES: Routes = {
    "/v3/roles": {"GET": index, "POST": create},
    "/v3/roles/{id}": {"GET": show, "PATCH": update, "DELETE": delete},
    "/v3/role_inferences": {"GET": inferences},
    "/v3/roles/{id}/implies": {"GET": implications},
    "/v3/roles/{id}/implies/{implied_id}": {"PUT": imply, "GET": implication, "DELETE": imply_no_more},
}
