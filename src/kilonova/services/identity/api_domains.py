"""Domains."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.db import identity_records as records
from kilonova.db import identity_removal
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Domain
from kilonova.errors import Invalid
from kilonova.services.identity import bodies, listing, views
from kilonova.services.identity.bodies import DomainBody
from kilonova.services.identity.builtin import new_id
from kilonova.services.identity.call import Call, Routes, no_content
from kilonova.web.json import JsonResponse


async def index(call: Call) -> Response:
    call.need_reader("identity:list_domains")
    wanted = listing.read_filter(call, "name", "enabled")
    found = await call.identity.db.read(lambda tx: wanted.select(tx, Domain))
    return call.listing("domains", (views.domain(call, each) for each in found), full=wanted.is_full(found))


async def create(call: Call) -> Response:
    call.need_admin("identity:create_domain")
    data = await call.body("domain")
    body = bodies.read(DomainBody, data)
    fields = {**bodies.given(body), "extra": bodies.extra(DomainBody, data, kept=("tags",))}
    if "name" not in fields:
        raise Invalid("A domain must have a name.")
    made = Domain(**{**_columns(fields), "id": new_id()})
    await call.identity.change(lambda tx: records.add(tx, made))
    return JsonResponse({"domain": views.domain(call, made)}, 201)


def _columns(fields: dict[str, Any]) -> dict[str, Any]:
    """The given fields that are columns; a description of null is none."""
    found = {name: value for name, value in fields.items() if name not in ("id", "options", "tags")}
    if "description" in found:
        found["description"] = found["description"] or ""
    return found


async def show(call: Call) -> Response:
    id = call.part("id")
    call.need_reader("identity:get_domain", own=call.context.domain_id == id)
    found = await call.identity.db.read(lambda tx: records.show(tx, Domain, id))
    return JsonResponse({"domain": views.domain(call, found)})


async def update(call: Call) -> Response:
    call.need_admin("identity:update_domain")
    id = call.part("id")
    data = await call.body("domain")
    body = bodies.read(DomainBody, data)
    bodies.check_id(body, id)

    def change(tx: Tx) -> Domain:
        old = records.show(tx, Domain, id)
        extra = {**old.extra, **bodies.extra(DomainBody, data, kept=("tags",))}
        new = msgspec.structs.replace(old, **_columns(bodies.given(body)), extra=extra)
        if old.enabled and not new.enabled:
            new = msgspec.structs.replace(new, generation=old.generation + 1)
            identity_removal.end_tokens_of_domain(tx, id)
        return records.change(tx, new)

    found = await call.identity.change(change)
    return JsonResponse({"domain": views.domain(call, found)})


async def delete(call: Call) -> Response:
    call.need_admin("identity:delete_domain")
    await call.identity.change(lambda tx: identity_removal.remove_domain(tx, call.part("id")))
    return no_content()


ROUTES: Routes = {
    "/v3/domains": {"GET": index, "POST": create},
    "/v3/domains/{id}": {"GET": show, "PATCH": update, "DELETE": delete},
}
