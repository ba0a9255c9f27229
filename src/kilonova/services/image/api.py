"""The image service over HTTP: the part of Glance's v2 API that clients of a compute cloud use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from kilonova.errors import Invalid, NotFound
from kilonova.model.context import RequestContext
from kilonova.services.image import data_api, filters, patch, views
from kilonova.services.image.answers import render, unsupported_type
from kilonova.services.image.builtin import BuiltinImage
from kilonova.services.image.fields import clean_text, parse_new
from kilonova.services.image.schemas import SCHEMAS
from kilonova.web.auth import TokenValidator, authenticate
from kilonova.web.json import JsonResponse, read_body, read_object
from kilonova.web.requests import RequestIdMiddleware, answering_errors

MAX_DOCUMENT = 16 << 20  # bytes: 128 properties of the largest size, and a little

Handler = Callable[[Request, RequestContext], Awaitable[Response]]


class ImageApi:
    """The handlers of images, tags and members; each takes the request and who sent it."""

    def __init__(self, images: BuiltinImage) -> None:
        self._images = images

    async def list(self, request: Request, context: RequestContext) -> Response:
        asked = filters.parse(request.query_params.multi_items(), context)
        query = asked.query
        if asked.marker is not None:
            query = msgspec.structs.replace(query, marker=await self._marker(context, asked.marker))
        found = await self._images.list(msgspec.structs.replace(query, limit=query.limit + 1))
        shown = found[: query.limit]
        answer: dict[str, Any] = {
            "images": [views.image(each) for each in shown],
            "schema": "/v2/schemas/images",
            "first": _page(request, None),
        }
        if shown and len(found) > len(shown):
            answer["next"] = _page(request, shown[-1].id)
        return JsonResponse(answer)

    async def create(self, request: Request, context: RequestContext) -> Response:
        new = parse_new(await read_object(request, MAX_DOCUMENT), context)
        image = await self._images.create(context, new)
        location = str(request.url.replace(path=f"/v2/images/{image.id}", query=""))
        return JsonResponse(views.image(image), 201, {"Location": location})

    async def show(self, request: Request, context: RequestContext) -> Response:
        return JsonResponse(views.image(await self._images.get(context, _id(request))))

    async def update(self, request: Request, context: RequestContext) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in patch.MEDIA_TYPES:
            return unsupported_type(*patch.MEDIA_TYPES)
        changes = patch.parse(await read_body(request, MAX_DOCUMENT), media_type)
        return JsonResponse(views.image(await self._images.update(context, _id(request), changes)))

    async def delete(self, request: Request, context: RequestContext) -> Response:
        await self._images.delete(context, _id(request))
        return Response(status_code=204)

    async def add_tag(self, request: Request, context: RequestContext) -> Response:
        await self._images.add_tag(context, _id(request), request.path_params["tag"])
        return Response(status_code=204)

    async def remove_tag(self, request: Request, context: RequestContext) -> Response:
        await self._images.remove_tag(context, _id(request), request.path_params["tag"])
        return Response(status_code=204)

    async def deactivate(self, request: Request, context: RequestContext) -> Response:
        await self._images.set_active(context, _id(request), active=False)
        return Response(status_code=204)

    async def reactivate(self, request: Request, context: RequestContext) -> Response:
        await self._images.set_active(context, _id(request), active=True)
        return Response(status_code=204)

    async def tasks(self, request: Request, context: RequestContext) -> Response:
        await self._images.get(context, _id(request))
        return JsonResponse({"tasks": []})  # there are no imports, which are what makes tasks

    async def list_members(self, request: Request, context: RequestContext) -> Response:
        return JsonResponse(views.members(await self._images.members.list(context, _id(request))))

    async def add_member(self, request: Request, context: RequestContext) -> Response:
        document = await read_object(request)
        project = clean_text("member", document.get("member"), least=1)
        return JsonResponse(views.member(await self._images.members.add(context, _id(request), project)))

    async def show_member(self, request: Request, context: RequestContext) -> Response:
        project = _member(request)
        return JsonResponse(views.member(await self._images.members.show(context, _id(request), project)))

    async def update_member(self, request: Request, context: RequestContext) -> Response:
        document = await read_object(request)
        status = clean_text("status", document.get("status"), least=1)  # clients repeat the member beside it
        found = await self._images.members.set_status(context, _id(request), _member(request), status)
        return JsonResponse(views.member(found))

    async def remove_member(self, request: Request, context: RequestContext) -> Response:
        await self._images.members.remove(context, _id(request), _member(request))
        return Response(status_code=204)

    async def _marker(self, context: RequestContext, marker: str) -> Any:
        try:
            return await self._images.get(context, marker)
        except NotFound as error:
            raise Invalid(f"Marker {marker} could not be found.") from error


async def _schema(request: Request, context: RequestContext) -> Response:
    name = request.path_params["name"]
    if name not in SCHEMAS:
        raise NotFound(f"There is no schema {name!r}.")
    return JsonResponse(SCHEMAS[name])


async def _import_methods(request: Request, context: RequestContext) -> Response:
    methods: dict[str, Any] = {"description": "Import methods available.", "type": "array", "value": []}
    return JsonResponse({"import-methods": methods})


async def _stores(request: Request, context: RequestContext) -> Response:
    return JsonResponse({"stores": [{"id": data_api.STORE, "default": "true"}]})


def app(image: BuiltinImage, validator: TokenValidator, root_url: str) -> ASGIApp:
    """The service at ``root_url``; that has no ``/v2`` at its end."""
    api, data = ImageApi(image), data_api.DataApi(image)

    def route(path: str, method: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            context = await authenticate(request, validator, request.scope["request_id"])
            return await handler(request, context)

        return Route(path, answering_errors(endpoint, render), methods=[method])

    async def versions(request: Request) -> Response:
        return JsonResponse(views.versions(root_url), 300 if request.url.path == "/" else 200)

    one, member = "/v2/images/{id}", "/v2/images/{id}/members/{member}"
    routes = [
        *(Route(path, versions) for path in ("/", "/versions", "/versions/", "/v2", "/v2/")),
        route("/v2/images", "GET", api.list),
        route("/v2/images", "POST", api.create),
        route(one, "GET", api.show),
        route(one, "PATCH", api.update),
        route(one, "DELETE", api.delete),
        route(one + "/file", "GET", data.download),
        route(one + "/file", "PUT", data.upload),
        route(one + "/tags/{tag:path}", "PUT", api.add_tag),
        route(one + "/tags/{tag:path}", "DELETE", api.remove_tag),
        route(one + "/actions/deactivate", "POST", api.deactivate),
        route(one + "/actions/reactivate", "POST", api.reactivate),
        route(one + "/tasks", "GET", api.tasks),
        route(one + "/members", "GET", api.list_members),
        route(one + "/members", "POST", api.add_member),
        route(member, "GET", api.show_member),
        route(member, "PUT", api.update_member),
        route(member, "DELETE", api.remove_member),
        route("/v2/schemas/{name}", "GET", _schema),
        route("/v2/info/import", "GET", _import_methods),
        route("/v2/info/stores", "GET", _stores),
    ]
    service = Starlette(routes=routes, exception_handlers={HTTPException: _unrouted})
    service.router.redirect_slashes = False
    return RequestIdMiddleware(service)


async def _unrouted(request: Request, error: Exception) -> Response:
    """No such path, or not this method."""
    assert isinstance(error, HTTPException)
    answer = render(error.status_code, f"{request.method} {request.url.path}: {error.detail}.")
    answer.headers.update(error.headers or {})
    return answer


def _id(request: Request) -> str:
    return clean_text("the ID of an image", request.path_params["id"])


def _member(request: Request) -> str:
    return clean_text("the ID of a member", request.path_params["member"])


def _page(request: Request, marker: str | None) -> str:
    """The path of a page of the list that was asked for."""
    items = [each for each in request.query_params.multi_items() if each[0] != "marker"]
    if marker is not None:
        items.append(("marker", marker))
    return "/v2/images" + (f"?{urlencode(items)}" if items else "")
