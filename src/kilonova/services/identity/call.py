"""One request to the identity API, and what every handler needs of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kilonova.db.engine import Tx
from kilonova.errors import Forbidden, Invalid, NotFound
from kilonova.model.context import RequestContext
from kilonova.services.identity import catalog
from kilonova.services.identity.builtin import BuiltinIdentity
from kilonova.services.identity.catalog import Catalog, Entries
from kilonova.web.json import JsonResponse, read_object
from kilonova.web.storable import is_storable

NOT_ALLOWED = "You are not authorized to perform the requested action: {what}."


Handler = Callable[["Call"], Awaitable[Response]]
Routes = dict[str, dict[str, Handler]]
"""Path -> method -> handler."""


@dataclass(slots=True)
class Call:
    """``context`` is the caller; ``url`` the address of the API as the caller reached it, without /v3;
    ``configured`` what is in the catalog without anybody's doing."""

    identity: BuiltinIdentity
    configured: Entries
    request: Request
    url: str
    context: RequestContext

    def part(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def query(self, name: str) -> str | None:
        """A query parameter; an empty one is none.  Raises Invalid for text that cannot be stored."""
        value = self.request.query_params.get(name)
        if value and not is_storable(value):
            raise Invalid(f"The query parameter {name} has a character that is not allowed.")
        return value or None

    def flag(self, name: str) -> bool:
        """Whether a query parameter is there and is not false or 0."""
        value = self.request.query_params.get(name)
        return value is not None and value.lower() not in ("false", "0")

    async def body(self, name: str | None = None) -> dict[str, Any]:
        """The body, or the object in it that has this name.  Raises Invalid."""
        found = await read_object(self.request)
        if name is None:
            return found
        inner = found.get(name)
        if not isinstance(inner, dict):
            raise Invalid(f"The body must have an object named '{name}'.")
        return inner

    def all_entries(self, tx: Tx) -> Entries:
        return catalog.all_entries(tx, self.configured)

    async def entries(self) -> Entries:
        """Regions, services and endpoints."""
        return await self.identity.db.read(self.all_entries)

    async def catalog(self, project_id: str | None, user_id: str) -> Catalog:
        """The catalog of a token for a project, or for something else."""
        return catalog.catalog(await self.entries(), project_id, user_id)

    @property
    def reads_all(self) -> bool:
        """Whether the caller may see everything: an administrator, or a reader of the system."""
        roles = self.context.roles
        return "admin" in roles or (self.context.system_scope and "reader" in roles)

    def need_admin(self, what: str) -> None:
        """Raises Forbidden."""
        if not self.context.is_admin:
            raise Forbidden(NOT_ALLOWED.format(what=what))

    def need_reader(self, what: str, *, own: bool = False) -> None:
        """Raises Forbidden unless the caller sees everything, or it is the caller's ``own``."""
        if not own and not self.reads_all:
            raise Forbidden(NOT_ALLOWED.format(what=what))

    def listing(self, name: str, items: Iterable[dict[str, Any]], *, full: bool = False) -> Response:
        """An answer of a list; ``full`` when there may be more on a next page."""
        found = list(items)
        here = self.url + self.request.url.path
        if self.request.url.query:
            here += "?" + self.request.url.query
        following = None
        if full and found:
            following = self.url + str(
                self.request.url.include_query_params(marker=found[-1]["id"]).replace(scheme="", netloc="")
            )
        links = {"next": following, "self": here, "previous": None}
        return JsonResponse({name: found, "links": links})

    def link(self, *parts: str) -> dict[str, str]:
        return {"self": "/".join((self.url, "v3", *parts))}


def no_content() -> Response:
    return Response(status_code=204)


def check_path(path: str) -> None:
    """Raises NotFound for a path that can be of nothing that is stored."""
    if not is_storable(path):
        raise NotFound("The resource could not be found.")
