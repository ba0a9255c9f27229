"""One request to the volume API: who sends it, by which microversion, and what is in its path and body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kilonova.errors import Forbidden, Invalid, NotFound
from kilonova.model.context import RequestContext
from kilonova.services.volume.builtin import BuiltinVolumes
from kilonova.services.volume.files import is_volume_id
from kilonova.services.volume.records import VolumeNotFound
from kilonova.web.json import read_object

READERS = frozenset({"reader", "member", "manager", "admin", "service"})
WRITERS = READERS - {"reader"}


@dataclass(frozen=True)
class Call:
    """``by_service``: another service sends it, or an administrator does."""

    request: Request
    context: RequestContext
    version: int
    service: BuiltinVolumes
    root_url: str
    by_service: bool

    def own_project(self) -> str:
        """The project of the token.  Raises Invalid for one without."""
        if self.context.project_id is None:
            raise Invalid("The token has no project: ask for one that has.")
        return self.context.project_id

    @property
    def seen(self) -> str | None:
        """The project whose things the caller sees; None: all."""
        return None if self.context.is_admin else self.own_project()

    @property
    def volume_id(self) -> str:
        """Raises NotFound for what cannot be one."""
        volume_id = str(self.request.path_params["id"])
        if not is_volume_id(volume_id):
            raise VolumeNotFound(volume_id)
        return volume_id

    def now(self) -> int:
        return self.service.clock.now()

    def part(self, name: str) -> str:
        """A part of the path.  Raises NotFound for what no database can hold."""
        value = str(self.request.path_params[name])
        if "\0" in value or not value.isprintable() or len(value) > 255:
            raise NotFound(f"There is no {name} of that name.")
        return value

    async def body(self, name: str) -> dict[str, Any]:
        """The object of that name in the body.  Raises Invalid."""
        document = await read_object(self.request)
        found = document.get(name)
        if not isinstance(found, dict):
            raise Invalid(f"Missing required element '{name}' in request body.")
        return found

    def check_admin(self, action: str) -> None:
        """Raises Forbidden for all but administrators."""
        if not self.context.is_admin:
            raise Forbidden(f"Policy doesn't allow {action} to be performed.")


Handler = Callable[[Call], Awaitable[Response]]


def check_role(call: Call, *, writes: bool) -> None:
    """Raises Forbidden for who may not read, or not change, anything."""
    if not call.context.roles & (WRITERS if writes else READERS):
        need = "member" if writes else "reader"
        raise Forbidden(f"Policy doesn't allow this to be performed: it needs the role {need}.")
