"""``/flavors/{id}/os-extra_specs``."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.flavors import find
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema.flavor_extra_specs import OneSpec, SetSpecs, SpecValue
from kilonova.db import flavors
from kilonova.errors import Invalid, NotFound
from kilonova.resources.flavor_specs import check_key, check_spec, value_text

_RULE = "os_compute_api:os-flavor-extra-specs"
_PATH = "/flavors/{flavor_id}/os-extra_specs"
_CHECKED_SINCE = 86


def _checked(call: Call, given: dict[str, SpecValue]) -> dict[str, str]:
    specs: dict[str, str] = {}
    for key, value in given.items():
        check_key(key)
        specs[key] = value_text(key, value)
        if call.version >= _CHECKED_SINCE:
            check_spec(key, specs[key])
    return specs


async def _set(call: Call, given: dict[str, SpecValue]) -> None:
    specs, now = _checked(call, given), call.cloud.clock.now()
    flavorid = call.path["flavor_id"]
    await call.cloud.db.write(lambda tx: flavors.set_extra_specs(tx, flavorid, specs, now))


async def index(call: Call) -> dict[str, Any]:
    return {"extra_specs": (await find(call)).extra_specs}


async def show(call: Call) -> dict[str, Any]:
    flavor, key = await find(call), call.path["key"]
    if key not in flavor.extra_specs:
        raise NotFound(f"Flavor {flavor.flavorid} has no extra specs with key {key}.")
    return {key: flavor.extra_specs[key]}


async def create(call: Call) -> dict[str, Any]:
    """The answer repeats what was sent: a number is text only from the next request on, as in Nova."""
    await _set(call, call.body.extra_specs)
    return {"extra_specs": call.body.extra_specs}


async def update(call: Call) -> dict[str, SpecValue]:
    given: dict[str, SpecValue] = call.body
    if len(given) != 1:
        raise Invalid("Request body must have exactly one extra spec.")
    if call.path["key"] not in given:
        raise Invalid("Request body and URI mismatch")
    await _set(call, given)
    return given


async def delete(call: Call) -> None:
    flavorid, key, now = call.path["flavor_id"], call.path["key"], call.cloud.clock.now()
    await call.cloud.db.write(lambda tx: flavors.delete_extra_spec(tx, flavorid, key, now))


ROUTES = (
    Route("GET", _PATH, index, policy=f"{_RULE}:index", query=NO_KEYS),
    Route("POST", _PATH, create, policy=f"{_RULE}:create", body=SetSpecs),
    Route("GET", _PATH + "/{key}", show, policy=f"{_RULE}:show", query=NO_KEYS),
    Route("PUT", _PATH + "/{key}", update, policy=f"{_RULE}:update", body=OneSpec),
    Route("DELETE", _PATH + "/{key}", delete, policy=f"{_RULE}:delete"),
)
