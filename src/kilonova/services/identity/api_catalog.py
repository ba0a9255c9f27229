"""Regions, services and endpoints: what the configuration of this cloud says, to be read only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from kilonova.errors import Forbidden, NotFound
from kilonova.services.identity.call import Call, Handler, Routes
from kilonova.services.identity.catalog import REGION
from kilonova.web.json import JsonResponse

View = dict[str, Any]


def _regions(call: Call) -> list[View]:
    links = call.link("regions", REGION)
    return [{"id": REGION, "description": "", "parent_region_id": None, "links": links}]


def _services(call: Call) -> list[View]:
    return [
        {
            "id": each["id"],
            "type": each["type"],
            "name": each["name"],
            "enabled": True,
            "description": "",
            "links": call.link("services", each["id"]),
        }
        for each in call.catalog()
    ]


def _endpoints(call: Call) -> list[View]:
    return [
        {
            **each,
            "service_id": service["id"],
            "enabled": True,
            "links": call.link("endpoints", each["id"]),
        }
        for service in call.catalog()
        for each in service["endpoints"]
    ]


# Plural -> what there is, what may be filtered by, whether everybody may read it.
_KINDS: dict[str, tuple[Callable[[Call], list[View]], tuple[str, ...], bool]] = {
    "regions": (_regions, ("parent_region_id",), True),
    "services": (_services, ("type", "name"), False),
    "endpoints": (_endpoints, ("interface", "service_id", "region_id"), False),
}


def _list(plural: str) -> Handler:
    views, filters, everybody = _KINDS[plural]

    async def answer(call: Call) -> Response:
        call.need_reader(f"identity:list_{plural}", own=everybody)
        wanted = {name: call.query(name) for name in filters if call.query(name) is not None}
        found = [each for each in views(call) if all(each[name] == value for name, value in wanted.items())]
        return call.listing(plural, found)

    return answer


def _show(plural: str) -> Handler:
    views, _, everybody = _KINDS[plural]
    singular = plural[:-1]

    async def answer(call: Call) -> Response:
        call.need_reader(f"identity:get_{singular}", own=everybody)
        for each in views(call):
            if each["id"] == call.part("id"):
                return JsonResponse({singular: each})
        raise NotFound(f"Could not find {singular}: {call.part('id')}.")

    return answer


async def _fixed(call: Call) -> Response:
    raise Forbidden("The catalog of this cloud comes from its configuration and cannot be changed here.")


ROUTES: Routes = {}
for _plural in _KINDS:
    ROUTES[f"/v3/{_plural}"] = {"GET": _list(_plural), "POST": _fixed}
    ROUTES[f"/v3/{_plural}/{{id}}"] = {"GET": _show(_plural), "PATCH": _fixed, "DELETE": _fixed}
