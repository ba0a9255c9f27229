"""``/os-availability-zone``: zones and whether a server may be put there."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.views.services import Service, compute_service, controller_services
from kilonova.clock import iso_micro
from kilonova.db import hosts

_RULE = "os_compute_api:os-availability-zone"


async def _services(call: Call) -> list[Service]:
    now, settings = call.cloud.clock.now(), call.cloud.settings
    found = await call.cloud.db.read(hosts.list_all)
    return [compute_service(host, now, settings) for host in found]


def _zone(name: str, available: bool, shown: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"zoneName": name, "zoneState": {"available": available}, "hosts": shown}


def _by_zone(services: list[Service]) -> dict[str, list[Service]]:
    zones: dict[str, list[Service]] = {}
    for service in services:
        zones.setdefault(service.zone, []).append(service)
    return dict(sorted(zones.items()))


async def index(call: Call) -> dict[str, Any]:
    """A zone is available while one of its hosts is enabled, as in Nova."""
    zones = _by_zone(await _services(call))
    return {
        "availabilityZoneInfo": [
            _zone(name, any(not one.disabled for one in services)) for name, services in zones.items()
        ]
    }


def _hosts(services: list[Service]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for service in services:
        shown.setdefault(service.host, {})[service.binary] = {
            "available": service.up,
            "active": not service.disabled,
            "updated_at": iso_micro(service.updated_at),
        }
    return shown


async def detail(call: Call) -> dict[str, Any]:
    controllers = controller_services(call.cloud.clock.now(), call.cloud.settings)
    zones = _by_zone([*controllers, *await _services(call)])
    shown = []
    for name, services in zones.items():
        enabled = [one for one in services if not one.disabled]
        shown.append(_zone(name, bool(enabled), _hosts(enabled) if enabled else None))
    return {"availabilityZoneInfo": shown}


ROUTES = (
    Route("GET", "/os-availability-zone", index, policy=f"{_RULE}:list", query=NO_KEYS),
    Route("GET", "/os-availability-zone/detail", detail, policy=f"{_RULE}:detail", query=NO_KEYS),
)
