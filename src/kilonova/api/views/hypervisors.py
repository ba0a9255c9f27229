"""Hypervisors as they are shown: a host, its figures, and its servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import msgspec

from kilonova.api.view import Item, View
from kilonova.clock import SECOND
from kilonova.db.hosts import Guest
from kilonova.model.host import Host
from kilonova.resources.tracker import Figures


class Hypervisor(msgspec.Struct, frozen=True, kw_only=True):
    host: Host
    up: bool
    now: int
    figures: Figures
    guests: tuple[Guest, ...] = ()


def uptime(hypervisor: Hypervisor) -> str | None:
    """In the words of uptime(1); None for a host that is down or does not say since when it is up."""
    host = hypervisor.host
    if not hypervisor.up or not host.started_at:
        return None
    minutes = max(hypervisor.now - host.started_at, 0) // (60 * SECOND)
    hours, days = minutes // 60, minutes // 1440
    clock = hypervisor.now // SECOND % 86_400
    time = f"{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02}"
    since = f"{days} day{'' if days == 1 else 's'}, " if days else ""
    return f"{time} up {since}{hours % 24}:{minutes % 60:02}"


def _service(hypervisor: Hypervisor, identity: int | str) -> dict[str, Any]:
    host = hypervisor.host
    return {"id": identity, "host": host.host, "disabled_reason": host.disabled_reason}


COUNTS: dict[str, Callable[[Hypervisor], Any]] = {
    name: attrgetter(f"figures.{name}")
    for name in (
        "vcpus",
        "memory_mb",
        "local_gb",
        "vcpus_used",
        "memory_mb_used",
        "local_gb_used",
        "free_ram_mb",
        "free_disk_gb",
        "current_workload",
        "running_vms",
        "disk_available_least",
    )
}
"""The counters of one hypervisor, which statistics add up."""

COUNTED_UNTIL = 87

_BRIEF = (
    Item("id", attrgetter("host.id"), until=52),
    Item("id", attrgetter("host.compute_id"), since=53),
    Item("hypervisor_hostname", attrgetter("host.hypervisor_hostname")),
    Item("state", lambda hypervisor: "up" if hypervisor.up else "down"),
    Item("status", lambda hypervisor: "disabled" if hypervisor.host.disabled else "enabled"),
)

BRIEF = View(*_BRIEF)

FULL = View(
    *_BRIEF,
    *(Item(name, get, until=COUNTED_UNTIL) for name, get in COUNTS.items()),
    Item("cpu_info", lambda hypervisor: json.dumps(hypervisor.host.cpu_info), until=27),
    Item("cpu_info", attrgetter("host.cpu_info"), since=28, until=COUNTED_UNTIL),
    Item("hypervisor_type", attrgetter("host.hypervisor_type")),
    Item("hypervisor_version", attrgetter("host.hypervisor_version")),
    Item("host_ip", attrgetter("host.host_ip")),
    Item("service", lambda hypervisor: _service(hypervisor, hypervisor.host.id), until=52),
    Item("service", lambda hypervisor: _service(hypervisor, hypervisor.host.service_uuid), since=53),
    Item("uptime", uptime, since=88),
)
