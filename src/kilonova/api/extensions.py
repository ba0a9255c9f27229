"""``/extensions``: a list that has not changed since microversions came."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.faults import NO_SUCH_RESOURCE
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.views.extensions import EXTENSIONS
from kilonova.errors import NotFound

_RULE = "os_compute_api:extensions"


async def index(call: Call) -> dict[str, Any]:
    return {"extensions": list(EXTENSIONS.values())}


async def show(call: Call) -> dict[str, Any]:
    found = EXTENSIONS.get(call.path["alias"])
    if found is None:
        raise NotFound(NO_SUCH_RESOURCE)
    return {"extension": found}


ROUTES = (
    Route("GET", "/extensions", index, policy=_RULE, query=NO_KEYS),
    Route("GET", "/extensions/{alias}", show, policy=_RULE, query=NO_KEYS),
)
