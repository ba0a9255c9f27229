"""The tags of a project, one by one and all at once."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.responses import Response

from kilonova.db import identity_records as records
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Project
from kilonova.errors import NotFound
from kilonova.services.identity import bodies
from kilonova.services.identity.api_projects import visible
from kilonova.services.identity.bodies import TagsBody
from kilonova.services.identity.call import Call, Routes, no_content
from kilonova.web.json import JsonResponse


def _all(call: Call, found: Project) -> Response:
    links = call.link("projects", found.id, "tags")
    return JsonResponse({"tags": list(found.tags), "links": links})


async def _change(call: Call, what: str, change: Callable[[set[str]], object]) -> Project:
    """Change the tags of the project in the path, of which ``change`` gets a set."""
    call.need_admin(what)

    def transaction(tx: Tx) -> Project:
        old = records.show(tx, Project, call.part("id"))
        tags = set(old.tags)
        change(tags)
        body = bodies.read(TagsBody, {"tags": sorted(tags)})  # there may be too many by now
        return records.change(tx, msgspec.structs.replace(old, tags=tuple(body.tags)))

    return await call.identity.change(transaction)


async def index(call: Call) -> Response:
    return _all(call, await call.identity.db.read(lambda tx: visible(tx, call, "identity:list_project_tags")))


async def replace(call: Call) -> Response:
    wanted = bodies.read(TagsBody, await call.body()).tags

    def change(tags: set[str]) -> None:
        tags.clear()
        tags.update(wanted)

    return _all(call, await _change(call, "identity:update_project_tags", change))


async def delete_all(call: Call) -> Response:
    await _change(call, "identity:delete_project_tags", lambda tags: tags.clear())
    return no_content()


async def check(call: Call) -> Response:
    found = await call.identity.db.read(lambda tx: visible(tx, call, "identity:get_project_tag"))
    _check_there(call, set(found.tags))
    return no_content()


def _check_there(call: Call, tags: set[str]) -> None:
    if call.part("tag") not in tags:
        raise NotFound(f"Could not find project tag: {call.part('tag')}.")


async def add(call: Call) -> Response:
    tag = call.part("tag")
    await _change(call, "identity:create_project_tag", lambda tags: tags.add(tag))
    return Response(status_code=201, headers={"location": call.url + call.request.url.path})


async def delete(call: Call) -> Response:
    def change(tags: set[str]) -> None:
        _check_there(call, tags)
        tags.discard(call.part("tag"))

    await _change(call, "identity:delete_project_tag", change)
    return no_content()


ROUTES: Routes = {
    "/v3/projects/{id}/tags": {"GET": index, "PUT": replace, "DELETE": delete_all},
    "/v3/projects/{id}/tags/{tag}": {"GET": check, "PUT": add, "DELETE": delete},
}
