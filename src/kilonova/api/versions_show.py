"""``GET /versions/{id}``: the description of one version of the API, below the endpoint."""

from __future__ import annotations

from typing import Any

from kilonova.api import versions
from kilonova.api.call import Call, link_root
from kilonova.api.routes import Route
from kilonova.errors import NotFound


async def show(call: Call) -> dict[str, Any]:
    root = link_root(call.scope, call.cloud.settings.text("compute_link_prefix", "api"))
    identity = call.path["id"]
    if identity not in versions.VERSIONS:
        raise NotFound(f"There is no version {identity}.")
    return versions.document(root, identity)


ROUTES = (Route("GET", "/versions/{id}", show),)
