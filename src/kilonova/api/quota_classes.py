"""``/os-quota-class-sets``: the limits of those for whom no other is set.  Only ``default`` has effect."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema.quota_classes import UpdateQuotaClassSet
from kilonova.api.schema.quotas import limits_given
from kilonova.api.views.quotas import QUOTA_CLASS_SET
from kilonova.db import quotas
from kilonova.db.engine import Tx
from kilonova.errors import Invalid
from kilonova.resources.quota import defaults

_RULE = "os_compute_api:os-quota-class-sets"
_PATH = "/os-quota-class-sets/{name}"
MAX_NAME = 255


async def show(call: Call) -> dict[str, Any]:
    name, known = call.path["name"], defaults(call.cloud.settings)
    found = await call.cloud.db.read(lambda tx: quotas.limits_of(tx, quotas.CLASS, name))
    return {"quota_class_set": {"id": name, **QUOTA_CLASS_SET.bind(call)({**known, **found})}}


async def update(call: Call) -> dict[str, Any]:
    name, known = call.path["name"], defaults(call.cloud.settings)
    if len(name) > MAX_NAME:
        raise Invalid(f"quota_class_name has {len(name)} characters, more than {MAX_NAME}.")
    given = limits_given(call.body.quota_class_set)

    def write(tx: Tx) -> dict[str, int]:
        quotas.set_limits(tx, quotas.CLASS, name, given)
        return {**known, **quotas.limits_of(tx, quotas.CLASS, name)}

    return {"quota_class_set": QUOTA_CLASS_SET.bind(call)(await call.cloud.db.write(write))}


ROUTES = (
    Route("GET", _PATH, show, policy=f"{_RULE}:show", query=NO_KEYS),
    Route("PUT", _PATH, update, policy=f"{_RULE}:update", body=UpdateQuotaClassSet),
)
