"""``/os-services``: the compute service of each host, and what this controller runs."""

from __future__ import annotations

from typing import Any

import structlog

from kilonova.api.call import Call
from kilonova.api.over_cells import servers_elsewhere
from kilonova.api.routes import Route
from kilonova.api.schema.kinds import is_uuid
from kilonova.api.schema.services import LIST, UpdateService, VerbOnService
from kilonova.api.views.services import COMPUTE, SERVICE, Service, compute_service, controller_services
from kilonova.db import aggregates, host_resources, hosts, instances, leftovers
from kilonova.db.engine import Tx
from kilonova.db.leftovers import Leftover
from kilonova.errors import Conflict, Invalid, KilonovaError, NotFound
from kilonova.model.host import DISABLED_TRAIT, Host
from kilonova.operations.cells import in_each_cell
from kilonova.operations.leftovers import release_of

log = structlog.get_logger("kilonova.api")

_RULE = "os_compute_api:os-services"
_PATH = "/os-services/{service_id}"
_BY_UUID_SINCE = 53
_FORCE_DOWN_SINCE = 11
IN_USE = "Unable to delete compute service that is hosting instances. Migrate or delete the instances first."


def _controllers(call: Call) -> list[Service]:
    return controller_services(call.cloud.clock.now(), call.cloud.settings)


def _compute(call: Call, host: Host) -> Service:
    return compute_service(host, call.cloud.clock.now(), call.cloud.settings)


async def index(call: Call) -> dict[str, Any]:
    found = await call.cloud.db.read(hosts.list_all)
    services = [*_controllers(call), *(_compute(call, host) for host in found)]
    host, binary = call.query.last("host"), call.query.last("binary")
    render = SERVICE.bind(call)
    return {
        "services": [
            render(service)
            for service in services
            if (not host or service.host == host) and (not binary or service.binary == binary)
        ]
    }


def _not_found(service_id: str) -> NotFound:
    return NotFound(f"Service {service_id} could not be found.")


def _refuse_controllers(call: Call, service_id: str) -> None:
    """Raises Invalid for a service of this process, which cannot be disabled on its own."""
    for service in _controllers(call):
        if service_id.lower() in (service.uuid, str(service.id)):
            raise Invalid(
                f"Updating a {service.binary} service is not supported. Must be a nova-compute service."
            )


def _check_uuid(service_id: str) -> None:
    if not is_uuid(service_id):
        raise Invalid(f"Invalid uuid {service_id}")


def _present(tx: Tx, name: str) -> Host:
    host = hosts.show(tx, name)
    assert host is not None
    return host


async def _changed(call: Call, host: Host) -> None:
    """Tell those who choose hosts.  What placement does not hear now it hears when the host reports."""
    call.cloud.scheduler.forget()
    try:
        await call.cloud.placement.set_trait(host.compute_id, DISABLED_TRAIT, host.disabled)
    except KilonovaError as error:
        log.warning("placement not told of the service", host=host.host, error=str(error))


async def update(call: Call) -> dict[str, Any]:
    service_id, given = call.path["service_id"], call.body
    _check_uuid(service_id)
    _refuse_controllers(call, service_id)
    if given.disabled_reason is not None and given.status != "disabled":
        raise Invalid("Specifying 'disabled_reason' is only allowed with the status 'disabled'.")
    if given.status is None and given.forced_down is None:
        raise Invalid("No updates were requested. Fields 'status' or 'forced_down' should be specified.")
    now = call.cloud.clock.now()
    if given.forced_down is False:
        await _check_cleared(call, service_id)

    def write(tx: Tx) -> Host:
        host = hosts.by_service(tx, service_id)
        if host is None:
            raise _not_found(service_id)
        if given.status is not None:
            hosts.set_disabled(tx, host.host, given.status == "disabled", given.disabled_reason, now)
        if given.forced_down is not None:
            hosts.set_forced_down(tx, host.host, given.forced_down, now)
        return _present(tx, host.host)

    changed = await call.cloud.db.write(write)
    await _changed(call, changed)
    return {"service": SERVICE.bind(call)(_compute(call, changed))}


async def _check_cleared(call: Call, service_id: str) -> None:
    """Raises Invalid while the host may still have servers that were evacuated from it."""
    host = await call.cloud.db.read(lambda tx: hosts.by_service(tx, service_id))
    if host is None or not host.forced_down:
        return
    owed = await _owed(call, host.host)
    if owed:
        raise Invalid(
            f"The host {host.host} has not yet been cleared of {len(owed)} servers that have left it while "
            "it was down: start its agent first."
        )


async def _owed(call: Call, host: str) -> list[Leftover]:
    """What a host owes of servers of any cell: they may have left it for another one.

    Raises DatabaseUnavailable while a cell does not answer.
    """
    cells = call.cloud.cells
    if cells is None:
        return await call.cloud.db.read(lambda tx: leftovers.of_host(tx, host))
    told = await cells.each(lambda tx: leftovers.of_host(tx, host))
    for each in told:
        if each.error is not None:
            raise each.error
    return [one for each in told for one in each.answer or []]


async def update_by_verb(call: Call) -> dict[str, Any]:
    """enable, disable, disable-log-reason and, from 2.11 on, force-down."""
    verb, given = call.path["service_id"], call.body
    shown: dict[str, Any] = {"host": given.host, "binary": given.binary}
    now = call.cloud.clock.now()
    if verb == "force-down" and call.version >= _FORCE_DOWN_SINCE:
        if given.forced_down is None:
            raise Invalid("Missing forced_down field")
        shown["forced_down"] = given.forced_down
    elif verb == "disable-log-reason" and given.disabled_reason is None:
        raise Invalid("Missing disabled reason field")
    elif verb in ("enable", "disable", "disable-log-reason"):
        shown["status"] = "enabled" if verb == "enable" else "disabled"
        if verb == "disable-log-reason":
            shown["disabled_reason"] = given.disabled_reason
    else:
        raise NotFound("Unknown action")

    def write(tx: Tx) -> Host:
        if given.binary != COMPUTE or hosts.show(tx, given.host) is None:
            raise NotFound(f"Could not find binary {given.binary} on host {given.host}.")
        if "forced_down" in shown:
            hosts.set_forced_down(tx, given.host, shown["forced_down"], now)
        else:
            disabled = shown["status"] == "disabled"
            hosts.set_disabled(tx, given.host, disabled, shown.get("disabled_reason"), now)
        return _present(tx, given.host)

    await _changed(call, await call.cloud.db.write(write))
    return {"service": shown}


async def delete(call: Call) -> None:
    """Also its node and resource provider, and its part in aggregates.

    An agent that still runs reports anew, with another id.
    """
    service_id = call.path["service_id"]
    if call.version >= _BY_UUID_SINCE:
        _check_uuid(service_id)
    elif not (service_id.isascii() and service_id.isdecimal()):
        raise Invalid(f"Invalid service id {service_id}: it must be an integer.")
    if any(service_id.lower() in (one.uuid, str(one.id)) for one in _controllers(call)):
        raise Conflict("This service is a part of the process that answers: it cannot be deleted.")

    def unused(tx: Tx) -> Host:
        host = hosts.by_service(tx, service_id)
        if host is None:
            raise _not_found(service_id)
        if instances.uuids_by_host(tx, host.host):
            raise Conflict(IN_USE)
        return host

    found = await call.cloud.db.read(unused)
    if await servers_elsewhere(call, found):
        raise Conflict(IN_USE)
    await in_each_cell(call.cloud, lambda cloud: release_of(cloud, found.host), "what a removed host owes")
    # First the provider: while a server is on its way to the host, something is booked there.
    await call.cloud.placement.remove(found.compute_id)

    def forget(tx: Tx) -> None:
        gone = unused(tx)
        aggregates.forget_host(tx, gone.host)
        host_resources.forget(tx, gone.compute_id)
        hosts.remove(tx, gone.host)

    await call.cloud.db.write(forget)
    call.cloud.scheduler.forget()


ROUTES = (
    Route("GET", "/os-services", index, policy=f"{_RULE}:list", query=LIST),
    Route("PUT", _PATH, update_by_verb, policy=f"{_RULE}:update", until=52, body=VerbOnService),
    Route("PUT", _PATH, update, policy=f"{_RULE}:update", since=53, body=UpdateService),
    Route("DELETE", _PATH, delete, policy=f"{_RULE}:delete", success=204),
)
