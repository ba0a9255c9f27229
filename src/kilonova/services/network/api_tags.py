"""/v2.0/{resource}/{id}/tags."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.db import network_ledger as ledger
from kilonova.model.context import RequestContext
from kilonova.services.network.api_resource import Handler, Record, Resource
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.faults import HTTPBadRequest, PolicyNotAuthorized, TagNotFound
from kilonova.services.network.networks import owns
from kilonova.services.network.work import Work
from kilonova.web.json import JsonResponse, read_object

LONGEST, MOST = 255, 50


class Tags:
    """The tags of one kind of thing: read by who sees it, changed by its owner."""

    def __init__(self, resource: Resource, network: BuiltinNetwork) -> None:
        self.resource = resource
        self.network = network

    def _get(self, work: Work, context: RequestContext, request: Request, change: bool) -> Record:
        record = self.resource.get(work, context, request.path_params["id"])
        if change and not owns(context, record.project_id):
            raise PolicyNotAuthorized(f"Only the owner of {self.resource.name} {record.id} may tag it.")
        return record

    async def index(self, request: Request, context: RequestContext) -> Response:
        def read(work: Work) -> list[str]:
            return _of(work, self._get(work, context, request, False))

        return JsonResponse({"tags": await self.network.read(read)})

    async def show(self, request: Request, context: RequestContext) -> Response:
        def read(work: Work) -> list[str]:
            return _of(work, self._get(work, context, request, False))

        if request.path_params["tag"] not in await self.network.read(read):
            raise TagNotFound(request.path_params["tag"])
        return Response(status_code=204)

    async def replace(self, request: Request, context: RequestContext) -> Response:
        names = _read_tags(await read_object(request))

        def write(work: Work) -> list[str]:
            record = self._get(work, context, request, True)
            ledger.delete_tags(work.tx, record.id)
            ledger.add_tags(work.tx, record.id, names)
            return _of(work, record)

        return JsonResponse({"tags": await self.network.write(write)})

    async def add_many(self, request: Request, context: RequestContext) -> Response:
        names = _read_tags(await read_object(request))
        return JsonResponse({"tags": await self._add(request, context, names)})

    async def add(self, request: Request, context: RequestContext) -> Response:
        await self._add(request, context, [_checked(request.path_params["tag"])])
        return Response(status_code=201)

    async def _add(self, request: Request, context: RequestContext, names: list[str]) -> list[str]:
        def write(work: Work) -> list[str]:
            record = self._get(work, context, request, True)
            ledger.add_tags(work.tx, record.id, names)
            found = _of(work, record)
            if len(found) > MOST:
                raise HTTPBadRequest(f"At most {MOST} tags are allowed.")
            return found

        return await self.network.write(write)

    async def delete(self, request: Request, context: RequestContext) -> Response:
        name = request.path_params["tag"]

        def write(work: Work) -> None:
            record = self._get(work, context, request, True)
            if not ledger.delete_tag(work.tx, record.id, name):
                raise TagNotFound(name)

        await self.network.write(write)
        return Response(status_code=204)

    async def clear(self, request: Request, context: RequestContext) -> Response:
        def write(work: Work) -> None:
            ledger.delete_tags(work.tx, self._get(work, context, request, True).id)

        await self.network.write(write)
        return Response(status_code=204)

    def routes(self, guard: Any) -> list[Route]:
        many = self.resource.path + "/{id}/tags"
        table: list[tuple[str, str, Handler]] = [
            (many, "GET", self.index),
            (many, "PUT", self.replace),
            (many, "POST", self.add_many),
            (many, "DELETE", self.clear),
            (many + "/{tag}", "GET", self.show),
            (many + "/{tag}", "PUT", self.add),
            (many + "/{tag}", "DELETE", self.delete),
        ]
        return [Route(path, guard(handler), methods=[method]) for path, method, handler in table]


def _of(work: Work, record: Record) -> list[str]:
    return ledger.tags_of(work.tx, [record.id])[record.id]


def _checked(name: Any) -> str:
    if not isinstance(name, str) or not name or len(name) > LONGEST or "/" in name or "," in name:
        raise HTTPBadRequest(f"Invalid tag: a tag is a text of 1 to {LONGEST} characters without / and ,")
    if "\x00" in name:
        raise HTTPBadRequest("Invalid tag: a null character is not allowed")
    return name


def _read_tags(body: dict[str, Any]) -> list[str]:
    given = body.get("tags")
    if len(body) != 1 or not isinstance(given, list):
        raise HTTPBadRequest("Body contains invalid data: 'tags' with a list is expected.")
    names = [_checked(each) for each in given]
    if len(set(names)) != len(names):
        raise HTTPBadRequest("Invalid tags: a tag is given twice.")
    if len(names) > MOST:
        raise HTTPBadRequest(f"At most {MOST} tags are allowed.")
    return names
