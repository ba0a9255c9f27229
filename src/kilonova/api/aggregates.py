"""``/os-aggregates``: groups of hosts, which availability zones are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from msgspec import UNSET

from kilonova.api.call import Call
from kilonova.api.over_cells import servers_elsewhere
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.schema.aggregates import (
    AddHost,
    CreateAggregate,
    RemoveHost,
    SetMetadata,
    UpdateAggregate,
    read_zone,
)
from kilonova.api.shape import Shape
from kilonova.api.views.aggregates import FULL, NEW, ZONE
from kilonova.db import aggregates, hosts
from kilonova.db.aggregates import Aggregate
from kilonova.db.engine import Tx
from kilonova.errors import Invalid, KilonovaError, Refused
from kilonova.model.host import Host

log = structlog.get_logger("kilonova.api")

_RULE = "os_compute_api:os-aggregates"
_PATH = "/os-aggregates"
_ONE = _PATH + "/{aggregate_id}"


def _number(call: Call) -> int:
    text = call.path["aggregate_id"]
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise Invalid(f"Invalid aggregate id {text[:100]}: it must be an integer.")
    return int(text)


def _shown(call: Call, aggregate: Aggregate) -> dict[str, Any]:
    return {"aggregate": FULL.bind(call)(aggregate)}


async def index(call: Call) -> dict[str, Any]:
    found = await call.cloud.db.read(aggregates.list_all)
    render = FULL.bind(call)
    return {"aggregates": [render(one) for one in found]}


async def show(call: Call) -> dict[str, Any]:
    number = _number(call)
    return _shown(call, await call.cloud.db.read(lambda tx: aggregates.show(tx, number)))


async def create(call: Call) -> dict[str, Any]:
    given, now, uuid = call.body.aggregate, call.cloud.clock.now(), call.cloud.new_uuid()
    made = await call.cloud.db.write(
        lambda tx: aggregates.create(tx, uuid, given.name, given.availability_zone, now)
    )
    return {"aggregate": NEW.bind(call)(made)}


async def _changed(call: Call, fn: Callable[[Tx], Aggregate]) -> dict[str, Any]:
    """Make the change and show the aggregate; hosts may be in other zones now."""
    changed = await call.cloud.db.write(fn)
    call.cloud.scheduler.forget()
    return _shown(call, changed)


async def _busy(call: Call, number: int, *names: str) -> tuple[str, ...]:
    """The hosts (of the aggregate, or those named) that have servers in cells besides the first.

    Raises DatabaseUnavailable for a cell that does not answer: nobody knows whether its servers may move.
    """
    if call.cloud.cells is None:
        return ()

    def look(tx: Tx) -> list[Host | None]:
        return [hosts.show(tx, name) for name in names or aggregates.show(tx, number).hosts]

    found = [host for host in await call.cloud.top.read(look) if host is not None]
    return tuple([host.host for host in found if await servers_elsewhere(call, host)])


async def update(call: Call) -> dict[str, Any]:
    number, given, now = _number(call), call.body.aggregate, call.cloud.clock.now()
    if given.name is None and given.availability_zone is UNSET:
        raise Invalid("No updates were requested. Give 'name' or 'availability_zone'.")
    busy = await _busy(call, number) if given.availability_zone is not UNSET else ()
    return await _changed(
        call,
        lambda tx: aggregates.change(
            tx, number, now, name=given.name, zone=given.availability_zone, busy=busy
        ),
    )


async def set_metadata(call: Call) -> dict[str, Any]:
    number, now = _number(call), call.cloud.clock.now()
    given = dict(call.body.given.metadata)
    zone = given.pop(ZONE, UNSET)
    if isinstance(zone, str):
        try:
            read_zone(zone)
        except ValueError as error:
            raise Invalid(f"Invalid input for field/attribute {ZONE}: {error}.") from error
    busy = await _busy(call, number) if zone is not UNSET else ()
    return await _changed(
        call, lambda tx: aggregates.change(tx, number, now, zone=zone, metadata=given, busy=busy)
    )


async def delete(call: Call) -> None:
    number = _number(call)
    await call.cloud.db.write(lambda tx: aggregates.remove(tx, number))


async def add_host(call: Call) -> dict[str, Any]:
    """Placement is told as well; when it does not take it, the aggregate holds nevertheless, as in Nova."""
    number, name, now = _number(call), call.body.chosen.host, call.cloud.clock.now()
    found: list[Host | None] = []
    busy = await _busy(call, number, name)

    def write(tx: Tx) -> Aggregate:
        changed = aggregates.add_host(tx, number, name, now, busy)
        found[:] = [hosts.show(tx, name)]
        return changed

    changed = await call.cloud.db.write(write)
    call.cloud.scheduler.forget()
    (host,) = found
    assert host is not None
    try:
        await call.cloud.placement.set_aggregate(host.compute_id, changed.uuid, True)
    except KilonovaError as error:
        log.warning("placement not told of the aggregate", host=name, aggregate=number, error=str(error))
    return _shown(call, changed)


async def remove_host(call: Call) -> dict[str, Any]:
    """Placement first: while it holds on to the host, the aggregate does."""
    number, name, now = _number(call), call.body.chosen.host, call.cloud.clock.now()

    def look(tx: Tx) -> tuple[Aggregate, Host | None]:
        return aggregates.show(tx, number), hosts.show(tx, name)

    found, host = await call.cloud.db.read(look)
    busy = await _busy(call, number, name)
    placement, known = call.cloud.placement, host is not None and name in found.hosts
    if host is not None and known:
        await placement.set_aggregate(host.compute_id, found.uuid, False)
    try:
        return await _changed(call, lambda tx: aggregates.remove_host(tx, number, name, now, busy))
    except Refused:
        if host is not None and known:
            await placement.set_aggregate(host.compute_id, found.uuid, True)
        raise


def _action(name: str, handler: Callable[[Call], Any], body: type[Shape]) -> Route:
    return Route("POST", _ONE + "/action", handler, policy=f"{_RULE}:{name}", action=name, body=body)


ROUTES = (
    Route("GET", _PATH, index, policy=f"{_RULE}:index", query=NO_KEYS),
    Route("POST", _PATH, create, policy=f"{_RULE}:create", body=CreateAggregate),
    Route("GET", _ONE, show, policy=f"{_RULE}:show", query=NO_KEYS),
    Route("PUT", _ONE, update, policy=f"{_RULE}:update", body=UpdateAggregate),
    Route("DELETE", _ONE, delete, policy=f"{_RULE}:delete"),
    _action("add_host", add_host, AddHost),
    _action("remove_host", remove_host, RemoveHost),
    _action("set_metadata", set_metadata, SetMetadata),
)
