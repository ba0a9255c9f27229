"""What networks, subnets, ports, security groups and rules have in common over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.clock import iso_z
from kilonova.db import network_ledger as ledger
from kilonova.db import network_listing as listing
from kilonova.db.network_records import Stored
from kilonova.model.context import RequestContext
from kilonova.services.network import api_lists as lists
from kilonova.services.network.api_fields import Fields, read_values
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.faults import HTTPBadRequest
from kilonova.services.network.work import Work
from kilonova.web.json import JsonResponse, read_object

Handler = Callable[[Request, RequestContext], Awaitable[Response]]
Guard = Callable[[Handler], Any]
Record = Any  # one of the records of db/network_records.py


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of thing: how it is read, shown, made, changed and deleted.

    ``show`` gives the views of many records at once, ``get`` one that the caller may see or NotFound,
    ``create`` makes all of the given ones or none.
    """

    name: str
    plural: str
    stored: Stored[Any]
    fields: Fields
    filters: lists.Filters
    show: Callable[[Work, RequestContext, list[Record]], list[dict[str, Any]]]
    get: Callable[[Work, RequestContext, str], Record]
    create: Callable[[Work, RequestContext, list[dict[str, Any]]], list[Record]]
    update: Callable[[Work, RequestContext, str, dict[str, Any]], Record] | None
    delete: Callable[[Work, RequestContext, str], None]
    before_list: Callable[[BuiltinNetwork, RequestContext, dict[str, list[str]]], Awaitable[None]] | None = (
        None
    )

    @property
    def path(self) -> str:
        return "/v2.0/" + self.plural.replace("_", "-")


def times_of(record: Record) -> dict[str, Any]:
    """What every view has at its end."""
    return {
        "created_at": iso_z(record.created_at),
        "updated_at": iso_z(record.updated_at),
        "revision_number": record.revision,
    }


def tags_for(work: Work, records: list[Record]) -> dict[str, list[str]]:
    return ledger.tags_of(work.tx, [record.id for record in records])


class Handlers:
    """The five methods of one resource."""

    def __init__(self, resource: Resource, network: BuiltinNetwork, root_url: str) -> None:
        self.resource = resource
        self.network = network
        self.url = root_url + resource.path

    async def index(self, request: Request, context: RequestContext) -> Response:
        resource = self.resource
        pairs = request.query_params.multi_items()
        query = lists.read_query(pairs, resource.filters, context)
        if resource.before_list is not None:
            await resource.before_list(self.network, context, query.filters)

        def read(work: Work) -> list[dict[str, Any]] | None:
            rows = listing.rows(work.tx, resource.stored.table, query.conditions, query.page)
            if rows is None:
                return None
            return resource.show(work, context, [resource.stored.record(row) for row in rows])

        views = await self.network.read(read)
        if views is None:
            raise HTTPBadRequest(f"The marker {query.page.marker} is not in the list.")
        body: dict[str, Any] = {resource.plural: [lists.only(view, query.fields) for view in views]}
        links = lists.links(self.url, pairs, query.page, [view["id"] for view in views])
        if links:
            body[f"{resource.plural}_links"] = links
        return JsonResponse(body)

    async def show(self, request: Request, context: RequestContext) -> Response:
        resource, wanted = self.resource, request.path_params["id"]
        fields = frozenset(request.query_params.getlist("fields"))

        def read(work: Work) -> dict[str, Any]:
            return resource.show(work, context, [resource.get(work, context, wanted)])[0]

        return JsonResponse({resource.name: lists.only(await self.network.read(read), fields)})

    async def create(self, request: Request, context: RequestContext) -> Response:
        resource = self.resource
        body = await read_object(request)
        bulk = resource.plural in body
        entries = self._entries(body, bulk)
        values = [read_values(resource.fields, each, context, resource.name, True) for each in entries]

        def write(work: Work) -> list[dict[str, Any]]:
            made = resource.create(work, context, [dict(each) for each in values])
            return resource.show(work, context, made)

        views = await self.network.write(write)
        return JsonResponse({resource.plural: views} if bulk else {resource.name: views[0]}, 201)

    def _entries(self, body: dict[str, Any], bulk: bool) -> list[dict[str, Any]]:
        name = self.resource.plural if bulk else self.resource.name
        found = body.get(name)
        entries = found if bulk else [found]
        if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
            raise HTTPBadRequest(f"Body contains invalid data: '{name}' with an object is expected.")
        if len(body) != 1:
            raise HTTPBadRequest(f"Body contains invalid data: nothing but '{name}' is expected.")
        return entries

    async def update(self, request: Request, context: RequestContext) -> Response:
        resource, wanted = self.resource, request.path_params["id"]
        change = resource.update
        assert change is not None
        entry = self._entries(await read_object(request), False)[0]
        values = read_values(resource.fields, entry, context, resource.name, False)

        def write(work: Work) -> dict[str, Any]:
            return resource.show(work, context, [change(work, context, wanted, dict(values))])[0]

        return JsonResponse({resource.name: await self.network.write(write)})

    async def delete(self, request: Request, context: RequestContext) -> Response:
        wanted = request.path_params["id"]
        await self.network.write(lambda work: self.resource.delete(work, context, wanted))
        return Response(status_code=204)

    def routes(self, guard: Guard) -> list[Route]:
        """``guard`` makes an endpoint of a handler: it finds the caller and turns errors into answers."""
        one, many = self.resource.path + "/{id}", self.resource.path
        routes = [
            Route(many, guard(self.index), methods=["GET"]),
            Route(many, guard(self.create), methods=["POST"]),
            Route(one, guard(self.show), methods=["GET"]),
            Route(one, guard(self.delete), methods=["DELETE"]),
        ]
        if self.resource.update is not None:
            routes.append(Route(one, guard(self.update), methods=["PUT"]))
        return routes
