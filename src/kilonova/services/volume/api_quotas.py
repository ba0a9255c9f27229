"""/v3/limits and /v3/os-quota-sets: what projects may have, and have."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from kilonova.db import volume_ledger as ledger
from kilonova.db.engine import Tx
from kilonova.errors import Forbidden, Invalid
from kilonova.services.volume import fields
from kilonova.services.volume.call import Call
from kilonova.services.volume.writing import repeated
from kilonova.web.json import JsonResponse

_LIMITS = {
    "volumes": ("maxTotalVolumes", "totalVolumesUsed"),
    "gigabytes": ("maxTotalVolumeGigabytes", "totalGigabytesUsed"),
    "snapshots": ("maxTotalSnapshots", "totalSnapshotsUsed"),
    "backups": ("maxTotalBackups", "totalBackupsUsed"),
    "backup_gigabytes": ("maxTotalBackupGigabytes", "totalBackupGigabytesUsed"),
}


def _limits(tx: Tx, call: Call, project_id: str) -> dict[str, int]:
    return {**call.service.options.quotas, **ledger.limits(tx, project_id)}


async def limits(call: Call) -> Response:
    project_id = call.own_project()
    other = call.request.query_params.get("project_id", call.request.query_params.get("tenant_id"))
    if other is not None and call.context.is_admin and call.version >= 39:
        project_id = fields.text("project_id", other)

    def read(tx: Tx) -> dict[str, int]:
        most, used = _limits(tx, call, project_id), ledger.usages(tx, project_id)
        shown: dict[str, int] = {}
        for name, (limit, usage) in _LIMITS.items():
            shown |= {limit: most[name], usage: used.get(name, 0)}
        return shown

    return JsonResponse({"limits": {"rate": [], "absolute": await call.service.db.read(read)}})


def _project(call: Call) -> str:
    """The project of the path, if the caller may see its quota.  Raises Forbidden."""
    project_id = call.part("id")
    if not call.context.is_admin and project_id != call.context.project_id:
        raise Forbidden("Policy doesn't allow volume_extension:quotas:show to be performed.")
    return project_id


def _set(project_id: str, values: dict[str, Any]) -> Response:
    return JsonResponse({"quota_set": {"id": project_id, **values}})


async def show(call: Call) -> Response:
    project_id = _project(call)
    usage = fields.flag("usage", call.request.query_params.get("usage", "0"))

    def read(tx: Tx) -> dict[str, Any]:
        most, used = _limits(tx, call, project_id), ledger.usages(tx, project_id)
        if not usage:
            return dict(most)
        return {
            name: {"limit": limit, "in_use": used.get(name, 0), "reserved": 0, "allocated": 0}
            for name, limit in most.items()
        }

    return _set(project_id, await call.service.db.read(read))


async def show_defaults(call: Call) -> Response:
    return _set(_project(call), dict(call.service.options.quotas))


async def update(call: Call) -> Response:
    call.check_admin("volume_extension:quotas:update")
    project_id = call.part("id")
    given = await call.body("quota_set")
    values = {
        name: fields.whole(name, value, least=-1)
        for name, value in given.items()
        if name not in ("tenant_id", "project_id", "skip_validation", "id")
    }
    fields.only(values, call.service.options.quotas, "quota_set")
    if not values:
        raise Invalid("Invalid input for field/attribute quota_set. There is no limit in it.")
    # Cinder's default, too, is to take a limit below what is in use: nothing is taken away.

    def write(tx: Tx) -> dict[str, int]:
        for name, value in values.items():
            ledger.set_limit(tx, project_id, name, value)
        return _limits(tx, call, project_id)

    found = await repeated(call.service.db, write)
    return JsonResponse({"quota_set": found})


async def delete(call: Call) -> Response:
    call.check_admin("volume_extension:quotas:delete")
    project_id = call.part("id")
    await call.service.db.write(lambda tx: ledger.reset_limits(tx, project_id))
    return Response(status_code=200)


async def show_class(call: Call) -> Response:
    """There is one class, of what projects have for which nothing else was set."""
    call.check_admin("volume_extension:quota_classes:get")
    name = call.part("id")
    return JsonResponse({"quota_class_set": {"id": name, **call.service.options.quotas}})


_ONE = "/v3/os-quota-sets/{id}"
ROUTES = (
    ("/v3/limits", "GET", limits, 0),
    (_ONE, "GET", show, 0),
    (_ONE, "PUT", update, 0),
    (_ONE, "DELETE", delete, 0),
    (_ONE + "/defaults", "GET", show_defaults, 0),
    ("/v3/os-quota-class-sets/{id}", "GET", show_class, 0),
)
