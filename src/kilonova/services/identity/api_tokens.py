"""Versions, tokens, and what the bearer of a token may use."""

from __future__ import annotations

from starlette.responses import Response

from kilonova.db import identity_records as records
from kilonova.db import identity_roles
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Domain
from kilonova.errors import Forbidden, NotFound, Unauthenticated
from kilonova.services.identity import login, views
from kilonova.services.identity.builtin import Token
from kilonova.services.identity.call import NOT_ALLOWED, Call, Routes, no_content
from kilonova.web.json import JsonResponse


async def versions(call: Call) -> Response:
    return JsonResponse({"versions": {"values": [views.version(call.url)]}}, 300)


async def version(call: Call) -> Response:
    return JsonResponse({"version": views.version(call.url)})


async def issue(call: Call) -> Response:
    wanted = login.read_login(await call.body())
    text, token = await login.log_in(call.identity, wanted)
    response = JsonResponse({"token": await _view(call, token)}, 201)
    response.headers["x-subject-token"] = text
    return response


async def _view(call: Call, token: Token) -> views.View:
    if token.standing.scope == "none" or "nocatalog" in call.request.query_params:
        return views.token(token, None)
    project = token.standing.project
    return views.token(token, await call.catalog(project.id if project else None, token.payload.user_id))


async def _subject(call: Call, what: str, *, allowed: bool) -> tuple[str, Token]:
    """The token that the call is about: one's own, or another's if that is ``allowed``."""
    text = call.request.headers.get("x-subject-token", "")
    try:
        found = await call.identity.inspect(text, allow_expired=call.flag("allow_expired"))
    except Unauthenticated as error:
        if not allowed:
            raise Forbidden(NOT_ALLOWED.format(what=what)) from error
        raise NotFound("Could not find token.") from error
    if not allowed and found.payload.user_id != call.context.user_id:
        raise Forbidden(NOT_ALLOWED.format(what=what))
    return text, found


async def show(call: Call) -> Response:
    allowed = call.reads_all or "service" in call.context.roles
    text, token = await _subject(call, "identity:validate_token", allowed=allowed)
    response = JsonResponse({"token": await _view(call, token)})
    response.headers["x-subject-token"] = text
    return response


async def revoke(call: Call) -> Response:
    _, token = await _subject(call, "identity:revoke_token", allowed=call.context.is_admin)
    await call.identity.revoke(token.payload)
    return no_content()


async def catalog(call: Call) -> Response:
    context = call.context
    if context.project_id is None and context.domain_id is None and not context.system_scope:
        raise Forbidden("The catalog is shown to tokens with a scope only.")
    found = await call.catalog(context.project_id, context.user_id)
    return JsonResponse({"catalog": found, "links": call.link("auth", "catalog")})


async def own_projects(call: Call) -> Response:
    found = await call.identity.db.read(lambda tx: login.own_projects(tx, call.context.user_id))
    return call.listing("projects", (views.project(call, each) for each in found))


async def own_domains(call: Call) -> Response:
    def look(tx: Tx) -> list[Domain]:
        ids = identity_roles.targets(tx, call.context.user_id, "domain")
        return records.select_all(tx, Domain, {"enabled": True}, ids=ids)

    return call.listing("domains", (views.domain(call, each) for each in await call.identity.db.read(look)))


async def own_system(call: Call) -> Response:
    found = await call.identity.db.read(lambda tx: identity_roles.targets(tx, call.context.user_id, "system"))
    system = [{"all": True}] if found else []
    return JsonResponse({"system": system, "links": call.link("auth", "system")})


PUBLIC: Routes = {
    "/": {"GET": versions},
    "/v3": {"GET": version},
    "/v3/auth/tokens": {"POST": issue},
}
ROUTES: Routes = {
    "/v3/auth/tokens": {"GET": show, "DELETE": revoke},
    "/v3/auth/catalog": {"GET": catalog},
    "/v3/auth/projects": {"GET": own_projects},
    "/v3/auth/domains": {"GET": own_domains},
    "/v3/auth/system": {"GET": own_system},
}
