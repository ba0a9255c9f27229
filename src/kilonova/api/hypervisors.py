"""``/os-hypervisors``: the nodes that servers run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kilonova.api.call import Call
from kilonova.api.faults import NotSupported
from kilonova.api.over_cells import by_host
from kilonova.api.paging import next_link, page_of
from kilonova.api.query import Keys
from kilonova.api.routes import Route
from kilonova.api.schema.kinds import is_uuid, read_flag
from kilonova.api.shape import since
from kilonova.api.view import View
from kilonova.api.views.hypervisors import BRIEF, COUNTS, FULL, Hypervisor, uptime
from kilonova.db import host_stats, hosts
from kilonova.db.engine import Tx
from kilonova.errors import Invalid, NotFound
from kilonova.model.instance import instance_name
from kilonova.resources.tracker import figures

_RULE = "os_compute_api:os-hypervisors"
NOBODY = host_stats.Count()
_PATH = "/os-hypervisors"
_PAGED_SINCE = 33
_BY_UUID_SINCE = 53
_EMPTY_SERVERS_SINCE = 75
_WITH_SERVERS = {"with_servers": since(53)}
_LIST = Keys(
    {
        "limit": since(33),
        "marker": since(33),
        "hypervisor_hostname_pattern": since(53),
        **_WITH_SERVERS,
    },
    strict_since=53,
)
_SHOW = Keys(_WITH_SERVERS, strict_since=53)


async def _all(call: Call, *, servers: bool = False) -> list[Hypervisor]:
    """Every hypervisor, oldest first, with what placement and the servers say of it.

    ``servers``: also which ones these are; else they are only counted.
    """

    def read(tx: Tx) -> Any:
        return hosts.list_all(tx), host_stats.counts(tx), hosts.guests(tx) if servers else {}

    found, counts, guests = await call.cloud.db.read(read)
    if call.cloud.cells is not None:
        everything, counts = await by_host(call, found, host_stats.counts)
        found, guests = await by_host(call, everything, hosts.guests if servers else lambda tx: {})
    providers = {one.uuid: one for one in await call.cloud.placement.providers()}
    now, down_time = call.cloud.clock.now(), call.cloud.settings.number("service_down_time")
    return [
        Hypervisor(
            host=host,
            up=hosts.is_up(host, now, down_time),
            now=now,
            figures=figures(providers.get(host.compute_id), counts.get(host.host, NOBODY)),
            guests=tuple(guests.get(host.host, ())),
        )
        for host in found
    ]


def _wants_servers(call: Call) -> bool:
    text = call.query.last("with_servers") if call.version >= _BY_UUID_SINCE else None
    if text is None:
        return False
    try:
        return read_flag(text)
    except ValueError as error:
        raise Invalid(f"Invalid with_servers: {error}.") from error


def _servers(call: Call, hypervisor: Hypervisor) -> list[dict[str, str]]:
    template = call.cloud.settings.text("instance_name_template")
    return [
        {"name": instance_name(template, guest.id, guest.uuid), "uuid": guest.uuid}
        for guest in hypervisor.guests
    ]


def _shown(call: Call, view: View, found: Sequence[Hypervisor], servers: bool) -> list[dict[str, Any]]:
    render = view.bind(call)
    result = []
    for hypervisor in found:
        shown = render(hypervisor)
        if servers and (hypervisor.guests or call.version >= _EMPTY_SERVERS_SINCE):
            shown["servers"] = _servers(call, hypervisor)
        result.append(shown)
    return result


def _identity(call: Call, hypervisor: Hypervisor) -> str:
    host = hypervisor.host
    return host.compute_id if call.version >= _BY_UUID_SINCE else str(host.id)


def _after(call: Call, found: list[Hypervisor], marker: str | None) -> list[Hypervisor]:
    if marker is None:
        return found
    for number, hypervisor in enumerate(found):
        if _identity(call, hypervisor) == marker.lower():
            return found[number + 1 :]
    raise Invalid(f"marker [{marker}] not found")


def _matching(found: list[Hypervisor], pattern: str) -> list[Hypervisor]:
    """Those whose name has ``pattern`` in it.  Raises NotFound when there are none."""
    matching = [one for one in found if pattern in one.host.hypervisor_hostname]
    if not matching:
        raise NotFound(f"No hypervisor matching '{pattern}' could be found.")
    return matching


async def _page(call: Call, view: View) -> dict[str, Any]:
    servers = _wants_servers(call)
    if call.version < _PAGED_SINCE:
        return {"hypervisors": _shown(call, view, await _all(call), False)}
    limit, marker = page_of(call.query, call.cloud.settings.number("max_limit", "api"))
    pattern = call.query.last("hypervisor_hostname_pattern") if call.version >= _BY_UUID_SINCE else None
    if pattern is not None:
        if "limit" in call.query or "marker" in call.query:
            raise Invalid("Paging over hypervisors with the hypervisor_hostname_pattern is not supported.")
        return {
            "hypervisors": _shown(call, view, _matching(await _all(call, servers=servers), pattern), servers)
        }
    rest = _after(call, await _all(call, servers=servers), marker)
    page = rest[:limit]
    answer: dict[str, Any] = {"hypervisors": _shown(call, view, page, servers)}
    if page and len(page) == limit:
        answer["hypervisors_links"] = next_link(call.url, call.query, limit, _identity(call, page[-1]))
    return answer


async def index(call: Call) -> dict[str, Any]:
    return await _page(call, BRIEF)


async def detail(call: Call) -> dict[str, Any]:
    return await _page(call, FULL)


async def _one(call: Call, *, servers: bool = False) -> Hypervisor:
    """The hypervisor of the address: by uuid, or below 2.53 by number.  Raises NotFound or Invalid."""
    wanted = call.path["hypervisor_id"]
    if call.version >= _BY_UUID_SINCE and not is_uuid(wanted):
        raise Invalid(f"Invalid uuid {wanted}")
    for hypervisor in await _all(call, servers=servers):
        if _identity(call, hypervisor) == wanted.lower():
            return hypervisor
    raise NotFound(f"Hypervisor with ID '{wanted}' could not be found.")


async def show(call: Call) -> dict[str, Any]:
    servers = _wants_servers(call)
    return {"hypervisor": _shown(call, FULL, [await _one(call, servers=servers)], servers)[0]}


async def statistics(call: Call) -> dict[str, Any]:
    """Sums over the hosts that are enabled, as Nova adds them up."""
    found = [one for one in await _all(call) if not one.host.disabled]
    sums = {name: sum(get(one) for one in found) for name, get in COUNTS.items()}
    return {"hypervisor_statistics": {"count": len(found), **sums}}


async def show_uptime(call: Call) -> dict[str, Any]:
    servers = _wants_servers(call)
    hypervisor = await _one(call, servers=servers)
    if not hypervisor.up:
        raise Invalid(f"Compute service of {hypervisor.host.host} is unavailable at this time.")
    words = uptime(hypervisor)
    if words is None:
        raise NotSupported("The driver of this host does not report its uptime.")
    return {"hypervisor": {**_shown(call, BRIEF, [hypervisor], servers)[0], "uptime": words}}


async def search(call: Call) -> dict[str, Any]:
    found = _matching(await _all(call), call.path["hypervisor_id"])
    return {"hypervisors": _shown(call, BRIEF, found, False)}


async def with_servers(call: Call) -> dict[str, Any]:
    found = _matching(await _all(call, servers=True), call.path["hypervisor_id"])
    return {"hypervisors": _shown(call, BRIEF, found, True)}


_ONE = _PATH + "/{hypervisor_id}"

ROUTES = (
    Route("GET", _PATH, index, policy=f"{_RULE}:list", query=_LIST),
    Route("GET", _PATH + "/detail", detail, policy=f"{_RULE}:list-detail", query=_LIST),
    Route("GET", _PATH + "/statistics", statistics, policy=f"{_RULE}:statistics", until=87),
    Route("GET", _ONE, show, policy=f"{_RULE}:show", query=_SHOW),
    Route("GET", _ONE + "/uptime", show_uptime, policy=f"{_RULE}:uptime", until=87, query=_SHOW),
    Route("GET", _ONE + "/search", search, policy=f"{_RULE}:search", until=52),
    Route("GET", _ONE + "/servers", with_servers, policy=f"{_RULE}:servers", until=52),
)
