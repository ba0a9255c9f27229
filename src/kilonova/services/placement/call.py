"""One request to the placement API: its microversion, its body, its answer."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kilonova.clock import SECOND
from kilonova.db import placement_providers as providers
from kilonova.db.engine import Database, Tx
from kilonova.errors import Forbidden, Invalid, NotFound
from kilonova.model.context import RequestContext
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.services.placement.view import Views
from kilonova.web.json import MAX_BODY, JsonResponse, parse_object, read_body
from kilonova.web.storable import is_storable

MIN, MAX = 0, 39  # of 1.x
GENERATION = "resource_provider_generation"
LARGE = 16 << 20  # bytes: allocations of some fifty thousand consumers

_VERSION = re.compile(r"1\.(0|[1-9][0-9]{0,3})\Z")

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class NotAcceptable(Invalid):
    """A microversion that is not there."""


class WrongMediaType(Invalid):
    """A body that does not say to be JSON."""


class Duplicated(Invalid):
    """A query parameter that stands twice."""


class BadQuery(Invalid):
    """A query parameter that makes no sense."""


class UnknownProvider(Invalid):
    """A body that speaks of a provider that is not there."""


class MissingValue(Invalid):
    """A query parameter that must be there is not."""


@dataclass(slots=True)
class Call:
    """``version`` is the x of the microversion 1.x."""

    placement: BuiltinPlacement
    request: Request
    context: RequestContext
    version: int

    @property
    def db(self) -> Database:
        return self.placement.db

    @property
    def views(self) -> Views:
        return self.placement.views

    def part(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def uuid(self) -> str:
        """The provider in the path, in the spelling of the database.  Raises NotFound."""
        found = read_uuid(self.part("uuid"))
        if found is None:
            raise NotFound(f"No resource provider with uuid {self.part('uuid')} found.")
        return found

    def need_admin(self) -> None:
        """Raises Forbidden unless the caller is an administrator or a service."""
        if not self.context.roles & {"admin", "service"}:
            raise Forbidden("Policy does not allow this request to be performed: it is for administrators.")

    def queries(self, *names: str, several: tuple[str, ...] = ()) -> dict[str, list[str]]:
        """The query parameters.  Raises Invalid for others than these, and for what stands twice."""
        found = self.all_queries()
        for name, values in found.items():
            if name not in names and name not in several:
                raise BadQuery(f"Invalid query string parameters: '{name}' is not known at 1.{self.version}.")
            if len(values) > 1 and name not in several:
                raise Duplicated(f"Query parameter '{name}' may be specified only once.")
        return found

    def all_queries(self) -> dict[str, list[str]]:
        """The query parameters, whatever they are.  Raises Invalid."""
        found: dict[str, list[str]] = {}
        for name, value in self.request.query_params.multi_items():
            if not is_storable(value):
                raise BadQuery(f"The query parameter '{name}' has a character that is not allowed.")
            found.setdefault(name, []).append(value)
        return found

    async def body(self) -> dict[str, Any]:
        """The JSON object in the body.  Raises Invalid."""
        return parse_object(await self.raw_body())

    async def large_body(self) -> dict[str, Any]:
        """The same of a body that tells of very many consumers."""
        return parse_object(await self.raw_body(LARGE))

    async def raw_body(self, limit: int = MAX_BODY) -> bytes:
        """Raises Invalid for one that is not said to be JSON, TooLarge above ``limit`` bytes."""
        kind = self.request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise WrongMediaType(
                f"The media type {kind or 'of nothing'} is not supported, use application/json."
            )
        return await read_body(self.request, limit)

    async def read(self, kind: type[S]) -> S:
        """The body as a record of that kind.  Raises Invalid."""
        return convert(await self.body(), kind)

    def answer(self, content: Any, status: int = 200) -> Response:
        return self.dated(JsonResponse(content, status))

    def dated(self, response: Response) -> Response:
        """The answer with the headers that caches read, from 1.15 on."""
        if self.version >= 15:
            response.headers["last-modified"] = formatdate(self.placement.clock.now() // SECOND, usegmt=True)
            response.headers["cache-control"] = "no-cache"
        return response

    def located(self, path: str, status: int = 201) -> Response:
        """An answer without a body to what was made, or was there, and can be read at ``path``."""
        response = Response(status_code=status)
        response.headers["location"] = self.absolute(path)
        return response

    def absolute(self, path: str) -> str:
        url = self.request.url
        return f"{url.scheme}://{url.netloc}{path}"

    async def on_provider(self, look: Callable[[Tx, str], T]) -> tuple[providers.Provider, T]:
        """Read something of the provider in the path.  Raises NotFound."""
        of = self.uuid()
        return await self.db.read(lambda tx: (providers.show(tx, of), look(tx, of)))


Handler = Callable[[Call], Awaitable[Response]]


class At(msgspec.Struct, frozen=True):
    """A handler, and the first microversion that has it."""

    handler: Handler
    since: int = 0


Routes = dict[str, dict[str, At]]
"""Path -> method -> handler."""


def convert(found: Any, kind: type[S]) -> S:
    """Raises Invalid, which says where and why."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"JSON does not validate: {error}.") from error


def no_content() -> Response:
    return Response(status_code=204)


def read_uuid(text: str) -> str | None:
    """A uuid in the spelling of the database; None for a text that is none, with or without its dashes."""
    try:
        found = uuid.UUID(text)
    except ValueError:
        return None
    return str(found) if text.lower() in (str(found), found.hex) else None


def check_path(path: str) -> None:
    """Raises NotFound for a path that can be of nothing that is stored."""
    if not is_storable(path):
        raise NotFound("The resource could not be found.")


def negotiate(header: str | None) -> int:
    """The x of the microversion 1.x that a header asks for.

    Raises Invalid for one that is no version, NotAcceptable for one that is not here.
    """
    for part in (header or "").split(","):
        service, _, wanted = part.strip().partition(" ")
        if service.lower() != "placement":
            continue
        wanted = wanted.strip()
        if wanted == "latest":
            return MAX
        if not re.match(r"[0-9]+\.[0-9]+\Z", wanted):
            raise Invalid(f"invalid version string: {wanted}")
        matched = _VERSION.match(wanted)
        if matched is None or int(matched[1]) > MAX:
            raise NotAcceptable(
                f"Unacceptable version header: {wanted}. Versions 1.{MIN} to 1.{MAX} are here."
            )
        return int(matched[1])
    return MIN
