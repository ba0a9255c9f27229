"""``/os-keypairs``: the public keys of a user, which servers are made with."""

from __future__ import annotations

import asyncio
from typing import Any

from kilonova.api.call import Answer, Call
from kilonova.api.paging import next_link, page_of
from kilonova.api.routes import Route
from kilonova.api.schema.keypairs import LIST, OF_USER, CreateKeypair
from kilonova.api.views.keypairs import BRIEF, FULL, NEW
from kilonova.db import keypairs, quotas
from kilonova.db.engine import Tx, UniqueViolation
from kilonova.db.keypairs import Keypair
from kilonova.errors import Conflict
from kilonova.resources import keys
from kilonova.resources.quota import defaults

_RULE = "os_compute_api:os-keypairs"
_PAGED_SINCE = 35


def _user(call: Call, named: str | None) -> str:
    """The user whose keys are meant; checks that the caller may."""
    user_id = named or call.context.user_id
    call.allow(target={"user_id": user_id, "project_id": call.context.project_id})
    return user_id


def _named(call: Call) -> str | None:
    return call.query.last("user_id") if call.version >= 10 else None


async def index(call: Call) -> dict[str, Any]:
    user_id = _user(call, _named(call))
    limit, marker = None, None
    if call.version >= _PAGED_SINCE:
        limit, marker = page_of(call.query, call.cloud.settings.number("max_limit", "api"))
    found = await call.cloud.db.read(lambda tx: keypairs.list_page(tx, user_id, marker=marker, limit=limit))
    render = BRIEF.bind(call)
    answer: dict[str, Any] = {"keypairs": [{"keypair": render(each)} for each in found]}
    if limit is not None and found and len(found) == limit:
        answer["keypairs_links"] = next_link(call.url, call.query, limit, found[-1].name)
    return answer


async def show(call: Call) -> dict[str, Any]:
    user_id, name = _user(call, _named(call)), call.path["name"]
    found = await call.cloud.db.read(lambda tx: keypairs.show(tx, user_id, name))
    if found is None:
        raise keypairs.not_found(user_id, name)
    return {"keypair": FULL.bind(call)(found)}


async def create(call: Call) -> Answer:
    given = call.body.keypair
    user_id = _user(call, given.user_id)
    keys.check_name(given.name, wide=call.version >= 92)
    now, private = call.cloud.clock.now(), None
    if given.public_key is None:
        new = await asyncio.to_thread(keys.generate, given.type, user_id, now)
        public, fingerprint, private = new.public_key, new.fingerprint, new.private_key
    else:
        public, fingerprint = given.public_key, keys.fingerprint(given.type, given.public_key)
    keypair = Keypair(
        user_id=user_id,
        name=given.name,
        type=given.type,
        fingerprint=fingerprint,
        public_key=public,
        created_at=now,
    )
    made = await _keep(call, keypair)
    shown = NEW.bind(call)(made)
    if private is not None:
        shown["private_key"] = private
    return Answer({"keypair": shown}, status=200 if call.version < 2 else 201)


async def _keep(call: Call, keypair: Keypair) -> Keypair:
    project, known = call.context.project_id or "", defaults(call.cloud.settings)

    def write(tx: Tx) -> Keypair:
        limits = quotas.effective_limits(tx, project, keypair.user_id, known)
        return keypairs.create(tx, keypair, limits["key_pairs"])

    try:
        return await call.cloud.db.write(write)
    except UniqueViolation as error:
        raise Conflict(f"Key pair '{keypair.name}' already exists.") from error


async def delete(call: Call) -> Answer:
    user_id, name = _user(call, _named(call)), call.path["name"]
    await call.cloud.db.write(lambda tx: keypairs.remove(tx, user_id, name))
    return Answer(status=202 if call.version < 2 else 204)


ROUTES = (
    Route("GET", "/os-keypairs", index, policy=f"{_RULE}:index", query=LIST, late=True),
    Route(
        "POST",
        "/os-keypairs",
        create,
        policy=f"{_RULE}:create",
        body=CreateKeypair,
        success=201,
        late=True,
    ),
    Route("GET", "/os-keypairs/{name}", show, policy=f"{_RULE}:show", query=OF_USER, late=True),
    Route(
        "DELETE",
        "/os-keypairs/{name}",
        delete,
        policy=f"{_RULE}:delete",
        query=OF_USER,
        success=204,
        late=True,
    ),
)
