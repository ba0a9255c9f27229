"""``/limits``: what a project may have and what it uses."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import Keys
from kilonova.api.routes import Route
from kilonova.api.shape import Span
from kilonova.api.views.limits import ABSOLUTE, Account
from kilonova.db import quotas, server_groups
from kilonova.db.engine import Tx
from kilonova.resources.quota import defaults

_RULE = "os_compute_api:limits"

_KEYS = Keys({"tenant_id": Span()}, strict_since=75)


async def index(call: Call) -> dict[str, Any]:
    project = call.context.project_id or ""
    other = call.query.last("tenant_id")
    if other and other != project:
        call.allow(f"{_RULE}:other_project", {"project_id": other, "user_id": call.context.user_id})
        project = other
    known = defaults(call.cloud.settings)

    def read(tx: Tx) -> Account:
        used = quotas.usage(tx, project) | {"server_groups": server_groups.count(tx, project)}
        return Account(quotas.effective_limits(tx, project, None, known), used)

    account = await call.cloud.db.read(read)
    return {"limits": {"rate": [], "absolute": ABSOLUTE.bind(call)(account)}}


ROUTES = (Route("GET", "/limits", index, policy=_RULE, query=_KEYS),)
