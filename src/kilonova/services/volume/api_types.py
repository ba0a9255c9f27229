"""/v3/types: types of volumes and what is special about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.db import volume_types
from kilonova.db.engine import Tx, UniqueViolation
from kilonova.db.volume_types import DEFAULT_ID, VolumeType
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.services.volume import fields, views
from kilonova.services.volume.answers import Taken
from kilonova.services.volume.call import Call
from kilonova.services.volume.records import new_id
from kilonova.services.volume.writing import repeated
from kilonova.web.json import JsonResponse

PUBLIC = "os-volume-type-access:is_public"


def _visible(tx: Tx, call: Call) -> VolumeType:
    """The type of the path.  Raises NotFound."""
    type_id = call.part("id")
    kind = volume_types.show(tx, type_id)
    if kind is None or not (kind.is_public or call.context.is_admin):
        raise NotFound(f"Volume type {type_id} could not be found.")
    return kind


async def _default(call: Call) -> VolumeType:
    return await repeated(call.service.db, lambda tx: volume_types.default(tx, call.now()))


def _shown(call: Call, kind: VolumeType) -> dict[str, Any]:
    return views.volume_type(kind, admin=call.context.is_admin)


async def index(call: Call) -> Response:
    await _default(call)
    query = call.request.query_params
    public: bool | None = True
    if call.context.is_admin:
        word = query.get("is_public", "none").lower()
        public = None if word == "none" else fields.flag("is_public", word)
    limit = fields.whole("limit", query.get("limit", 1000), least=0)
    offset = fields.whole("offset", query.get("offset", 0), least=0)
    every = await call.service.db.read(volume_types.list_all)
    wanted = [each for each in every if public is None or each.is_public == public]
    wanted = [each for each in wanted if query.get("name", each.name) == each.name]
    if "marker" in query:
        ids = [each.id for each in wanted]
        if query["marker"] not in ids:
            raise Invalid(f"marker [{query['marker']:.80}] not found")
        wanted = wanted[ids.index(query["marker"]) + 1 :]
    shown = wanted[offset : offset + limit]
    return JsonResponse({"volume_types": [_shown(call, each) for each in shown]})


async def show_default(call: Call) -> Response:
    return JsonResponse({"volume_type": _shown(call, await _default(call))})


async def show(call: Call) -> Response:
    await _default(call)
    kind = await call.service.db.read(lambda tx: _visible(tx, call))
    return JsonResponse({"volume_type": _shown(call, kind)})


async def create(call: Call) -> Response:
    call.check_admin("volume_extension:type_create")
    given = await call.body("volume_type")
    fields.only(given, ("name", "description", "extra_specs", PUBLIC), "volume_type")
    now = call.now()
    kind = VolumeType(
        id=new_id(),
        name=fields.text("name", given.get("name"), least=1).strip(),
        description=fields.optional_text("description", given.get("description")),
        is_public=fields.flag(PUBLIC, given.get(PUBLIC, True)),
        extra_specs=fields.metadata(given.get("extra_specs") or {}),
        created_at=now,
        updated_at=now,
    )
    if not kind.name:
        raise fields.invalid("name", kind.name, "It must not be empty")
    try:
        await call.service.db.write(lambda tx: volume_types.add(tx, kind))
    except UniqueViolation:
        raise Taken(f"Volume Type {kind.name} already exists.") from None
    return JsonResponse({"volume_type": _shown(call, kind)})


async def update(call: Call) -> Response:
    call.check_admin("volume_extension:type_update")
    given = await call.body("volume_type")
    fields.only(given, ("name", "description", "is_public"), "volume_type")
    changes: dict[str, Any] = {}
    if given.get("name") is not None:
        changes["name"] = fields.text("name", given["name"], least=1)
    if "description" in given:
        changes["description"] = fields.optional_text("description", given["description"])
    if given.get("is_public") is not None:
        changes["is_public"] = fields.flag("is_public", given["is_public"])
    if not changes:
        raise Invalid("Specify volume type name, description, is_public or a combination thereof.")
    return JsonResponse({"volume_type": _shown(call, await _changed(call, lambda _: changes))})


async def delete(call: Call) -> Response:
    call.check_admin("volume_extension:type_delete")

    def run(tx: Tx) -> None:
        kind = _visible(tx, call)
        if kind.id == DEFAULT_ID:
            raise Conflict(f"Volume type {kind.name} is the default of this cloud and cannot be deleted.")
        if volume_types.users(tx, kind.id):
            raise Conflict("Target volume type is still in use.")
        volume_types.remove(tx, kind.id)

    await call.service.db.write(run)
    return Response(status_code=202)


async def _changed(call: Call, change: Callable[[VolumeType], dict[str, Any]]) -> VolumeType:
    def run(tx: Tx) -> VolumeType:
        kind = _visible(tx, call)
        changed = msgspec.structs.replace(kind, updated_at=call.now(), **change(kind))
        volume_types.save(tx, changed)
        return changed

    await _default(call)
    try:
        return await call.service.db.write(run)
    except UniqueViolation:
        raise Taken("Volume Type with that name already exists.") from None


# ---- extra specs ----


async def show_specs(call: Call) -> Response:
    call.check_admin("volume_extension:types_extra_specs:index")
    kind = await call.service.db.read(lambda tx: _visible(tx, call))
    return JsonResponse({"extra_specs": kind.extra_specs})


async def add_specs(call: Call) -> Response:
    call.check_admin("volume_extension:types_extra_specs:create")
    given = fields.metadata(await call.body("extra_specs"))
    await _changed(call, lambda kind: {"extra_specs": {**kind.extra_specs, **given}})
    return JsonResponse({"extra_specs": given})


async def show_spec(call: Call) -> Response:
    call.check_admin("volume_extension:types_extra_specs:show")
    key = call.part("key")
    kind = await call.service.db.read(lambda tx: _visible(tx, call))
    return JsonResponse({key: _spec(kind, key)})


async def delete_spec(call: Call) -> Response:
    call.check_admin("volume_extension:types_extra_specs:delete")
    key = call.part("key")

    def change(kind: VolumeType) -> dict[str, Any]:
        _spec(kind, key)
        return {"extra_specs": {name: value for name, value in kind.extra_specs.items() if name != key}}

    await _changed(call, change)
    return Response(status_code=202)


def _spec(kind: VolumeType, key: str) -> str:
    if key not in kind.extra_specs:
        raise NotFound(f"Volume Type {kind.id} has no extra specs with key {key}.")
    return kind.extra_specs[key]


_ONE = "/v3/types/{id}"
ROUTES = (
    ("/v3/types", "GET", index, 0),
    ("/v3/types", "POST", create, 0),
    ("/v3/types/default", "GET", show_default, 0),
    (_ONE, "GET", show, 0),
    (_ONE, "PUT", update, 0),
    (_ONE, "DELETE", delete, 0),
    (_ONE + "/extra_specs", "GET", show_specs, 0),
    (_ONE + "/extra_specs", "POST", add_specs, 0),
    (_ONE + "/extra_specs/{key}", "GET", show_spec, 0),
    (_ONE + "/extra_specs/{key}", "DELETE", delete_spec, 0),
)
