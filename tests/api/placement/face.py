"""The placement API and the words to ask it in."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from starlette.types import ASGIApp

from kilonova.errors import Unauthenticated
from kilonova.model.context import RequestContext
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.services.placement.call import MAX
from tests.api.direct import Reply, send

_numbers = itertools.count(1)
ROLES = {
    "admin": {"admin", "manager", "member", "reader"},
    "service": {"service"},
    "manager": {"manager", "member", "reader"},
    "member": {"member", "reader"},
    "reader": {"reader"},
    "nobody": set(),
}


class Tokens:
    """A token is the name of a role, of the project ``project-<role>``."""

    async def validate(self, token: str, request_id: str) -> RequestContext:
        if token not in ROLES:
            raise Unauthenticated("The request you have made requires authentication.")
        return RequestContext(
            request_id=request_id,
            user_id="user-" + token,
            project_id="project-" + token,
            roles=frozenset(ROLES[token]),
        )


def new() -> str:
    return str(uuid.uuid4())


def fresh(what: str) -> str:
    return f"{what}-{next(_numbers)}"


class Face:
    def __init__(self, app: ASGIApp, placement: BuiltinPlacement) -> None:
        self.app = app
        self.placement = placement

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        v: int | str | None = MAX,
        who: str = "admin",
        **headers: str,
    ) -> Reply:
        """``v``: the x of 1.x, or what the header says after the service's name; None sends none."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if who:
            given["x-auth-token"] = who
        if v is not None:
            given["openstack-api-version"] = "placement " + (f"1.{v}" if isinstance(v, int) else v)
        return await send(self.app, method, path, body, given)

    async def get(self, path: str, v: int = MAX) -> Any:
        return (await self.call("GET", path, v=v)).expect(200).json

    async def provider(self, parent: str | None = None, **stock: Any) -> str:
        """The uuid of a new provider with these inventories: totals, or all fields."""
        made = new()
        body = {"uuid": made, "name": fresh("host"), "parent_provider_uuid": parent}
        (await self.call("POST", "/resource_providers", body)).expect(200)
        if stock:
            inventories = {
                name: each if isinstance(each, dict) else {"total": each} for name, each in stock.items()
            }
            body = {"resource_provider_generation": 0, "inventories": inventories}
            (await self.call("PUT", f"/resource_providers/{made}/inventories", body)).expect(200)
        return made

    async def generation(self, provider: str) -> int:
        return int((await self.get(f"/resource_providers/{provider}"))["generation"])

    async def allocate(self, consumer: str, allocations: dict[str, dict[str, int]], **more: Any) -> Reply:
        """Provider -> class -> amount, for a consumer that is new unless ``consumer_generation`` is given."""
        body = {
            "allocations": {of: {"resources": resources} for of, resources in allocations.items()},
            "project_id": "p",
            "user_id": "u",
            "consumer_generation": None,
            "consumer_type": "INSTANCE",
            **more,
        }
        return await self.call("PUT", f"/allocations/{consumer}", body)


def is_fault(reply: Reply, status: int, code: str | None = None) -> str:
    """The detail of an answer in placement's shape of errors."""
    reply.expect(status)
    (error,) = reply.json["errors"]
    assert error["status"] == status and error["title"] and error["detail"]
    assert error["request_id"] == reply.headers["x-openstack-request-id"]
    if code is not None:
        assert error["code"] == code
    return str(error["detail"])
