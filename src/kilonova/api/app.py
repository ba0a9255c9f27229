"""The Compute API as an ASGI application: from the bytes of a request to a handler and back.

A request passes, in this order: request id, version documents, token, route, microversion, content type,
query, body, policy, handler.  One function a stage and no middleware, since this is every client's path.
"""

from __future__ import annotations

from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from kilonova.api import faults, microversion, versions
from kilonova.api.call import Answer, Call, link_root
from kilonova.api.policy import Policy
from kilonova.api.query import NO_QUERY, Query
from kilonova.api.resources import all_routes
from kilonova.api.routes import Leaf, Route, Router, choose
from kilonova.api.shape import read
from kilonova.errors import Invalid, NotFound, Unauthenticated
from kilonova.model.context import RequestContext
from kilonova.operations.cloud import Cloud
from kilonova.operations.rehome import in_its_cell
from kilonova.web.auth import TokenValidator
from kilonova.web.json import encoder, parse_object, read_body
from kilonova.web.requests import new_request_id, unexpected

log = structlog.get_logger("kilonova.api")

Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_MEDIA_TYPES = (b"application/json", b"application/vnd.openstack.compute+json", b"text/plain")
_DOCUMENTS = {"/v2.1": "v2.1", "/v2.1/": "v2.1", "/v2": "v2.0", "/v2/": "v2.0"}


def app(cloud: Cloud, validator: TokenValidator, policy: Policy) -> ASGIApp:
    """The whole API with all its resources."""
    return ComputeApi(cloud, validator, policy, Router(all_routes()))


class ComputeApi:
    def __init__(self, cloud: Cloud, validator: TokenValidator, policy: Policy, router: Router) -> None:
        self.cloud = cloud
        self.validator = validator
        self.policy = policy
        self.router = router
        self._link_prefix = cloud.settings.text("compute_link_prefix", "api")
        self._challenge = f'Keystone uri="{cloud.settings.url("identity")}"'.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the Compute API does not speak {scope['type']}")
        request_id = new_request_id()
        number = request_id.encode()
        headers: Headers = [(b"x-openstack-request-id", number), (b"x-compute-request-id", number)]
        try:
            status, body = await self._answer(scope, receive, request_id, headers)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - it becomes the answer, and is logged
            status, body = self._fault(error, scope, request_id, headers)
        content = b"" if body is None else body if isinstance(body, bytes) else encoder.encode(body)
        if content or status not in (202, 204):
            headers.append(_JSON)
        if status != 204:
            headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _fault(self, error: Exception, scope: Scope, request_id: str, headers: Headers) -> tuple[int, Any]:
        status = faults.status_of(error)
        if status >= 500:
            log.error(
                "request failed",
                method=scope["method"],
                path=scope["path"],
                request_id=request_id,
                error=repr(error),
                exc_info=error if status == 500 else None,
            )
        if isinstance(error, Unauthenticated):
            headers.append((b"www-authenticate", self._challenge))
        ours = status == 500 and not isinstance(error, faults.Unsuccessful)
        message = unexpected(error) if ours else str(error)
        return status, faults.body(status, message)

    async def _answer(
        self, scope: Scope, receive: Receive, request_id: str, headers: Headers
    ) -> tuple[int, Any]:
        path: str = scope["path"]
        if path.startswith("/v2.1/") and len(path) > 6:
            legacy, rest = False, path[6:]
        elif path.startswith("/v2/") and len(path) > 4:
            legacy, rest = True, path[4:]
        else:
            return self._document(scope, path)
        given = dict(scope["headers"])
        context = await self._authenticate(given, request_id)
        leaf, values, project = self._find(rest.split("/"), context)
        version = microversion.MIN if legacy else microversion.negotiate(scope["headers"])
        if not legacy:
            headers.extend(microversion.ANSWER_HEADERS[version])
        call = Call(self.cloud, self.policy, context, scope, version)
        call.path, call.project_in_url, call.legacy = values, project, legacy
        return await self._run(call, leaf, given, receive, headers)

    def _document(self, scope: Scope, path: str) -> tuple[int, Any]:
        root = link_root(scope, self._link_prefix)
        if scope["method"] not in ("GET", "HEAD"):
            raise NotFound(faults.NO_SUCH_RESOURCE)
        if path == "/" or not path:
            return 200, versions.listing(root)
        identity = _DOCUMENTS.get(path)
        if identity is not None:
            return 200, versions.document(root, identity)
        return 300, versions.choices(root, path)

    async def _authenticate(self, given: dict[bytes, bytes], request_id: str) -> RequestContext:
        token = given.get(b"x-auth-token")
        if not token:
            raise Unauthenticated("The request you have made requires authentication.")
        return await self.validator.validate(token.decode("latin-1"), request_id)

    def _find(self, segments: list[str], context: RequestContext) -> tuple[Leaf, dict[str, str], str | None]:
        project = None
        if not self.router.knows(segments[0]):
            project, segments = segments[0], segments[1:]
        found = self.router.find(segments) if segments else None
        if found is None or any("\0" in value for value in found[1].values()):  # no database has such a name
            raise NotFound(faults.NO_SUCH_RESOURCE)
        if project is not None and project != context.project_id:
            raise Invalid(
                f"Malformed request URL: URL's project_id '{project}' "
                f"doesn't match Context's project_id '{context.project_id}'"
            )
        return (*found, project)

    async def _run(
        self, call: Call, leaf: Leaf, given: dict[bytes, bytes], receive: Receive, headers: Headers
    ) -> tuple[int, Any]:
        method = call.scope["method"]
        data: dict[str, Any] | None = None
        if method == "POST" and leaf.actions:
            data = await _read_data(call.scope, receive, given)
            route = _action(leaf, data, call.version)
        else:
            route = _route(leaf, "GET" if method == "HEAD" else method, call.version)
            if route.body is not None:
                data = await _read_data(call.scope, receive, given)
        call.route = route
        raw_query = call.scope["query_string"]
        call.query = Query(raw_query) if raw_query else NO_QUERY
        if route.query is not None:
            route.query.check(call.query, call.version)
        if route.body is not None:
            call.body = read(route.body, call.version, data, call.legacy)
        self.policy.refresh()
        if route.policy is not None and not route.late:
            call.allow()
        server_id = call.path.get("server_id")
        if server_id is not None and self.cloud.cells is not None:
            result = await in_its_cell(self.cloud.cells, server_id, call.handled_in)
        else:
            result = await route.handler(call)
        if isinstance(result, Answer):
            headers.extend(result.headers)
            return result.status or route.success, result.body
        return route.success, result


def _route(leaf: Leaf, method: str, version: int) -> Route:
    routes = leaf.methods.get(method)
    route = None if routes is None else choose(routes, version)
    if route is None:
        raise NotFound(faults.NO_SUCH_RESOURCE)
    return route


def _action(leaf: Leaf, data: dict[str, Any], version: int) -> Route:
    if len(data) != 1:
        raise Invalid("Malformed request body")
    name = next(iter(data))
    routes = leaf.actions.get(name)
    if routes is None:
        raise Invalid(f"There is no such action: {name}")
    route = choose(routes, version)
    if route is None:
        raise NotFound(faults.NO_SUCH_RESOURCE)
    return route


async def _read_data(scope: Scope, receive: Receive, given: dict[bytes, bytes]) -> dict[str, Any]:
    media_type = given.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type and media_type not in _MEDIA_TYPES:
        raise faults.WrongMediaType(
            f"Unsupported Content-Type {media_type.decode('latin-1')}: send application/json."
        )
    return parse_object(await read_body(Request(scope, receive)))


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
