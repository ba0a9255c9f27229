"""Hypervisors as they are shown: a host, what placement books there, and its servers."""

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
from kilonova.services.placement.port import ProviderSummary


class Hypervisor(msgspec.Struct, frozen=True, kw_only=True):
    host: Host
    up: bool
    now: int
    provider: ProviderSummary | None
    guests: tuple[Guest, ...]

    def total(self, resource: str) -> int:
        inventory = self.provider.inventories.get(resource) if self.provider else None
        return inventory.total if inventory else 0

    def used(self, resource: str) -> int:
        """What is booked and what the host keeps for itself, as Nova's resource tracker counts it."""
        if self.provider is None:
            return 0
        inventory = self.provider.inventories.get(resource)
        return self.provider.used.get(resource, 0) + (inventory.reserved if inventory else 0)

    def free(self, resource: str) -> int:
        return self.total(resource) - self.used(resource)

    @property
    def workload(self) -> int:
        return sum(guest.task_state is not None for guest in self.guests)


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


def _total(resource: str) -> Callable[[Hypervisor], int]:
    return lambda hypervisor: hypervisor.total(resource)


def _used(resource: str) -> Callable[[Hypervisor], int]:
    return lambda hypervisor: hypervisor.used(resource)


def _free(resource: str) -> Callable[[Hypervisor], int]:
    return lambda hypervisor: hypervisor.free(resource)


def _service(hypervisor: Hypervisor, identity: int | str) -> dict[str, Any]:
    host = hypervisor.host
    return {"id": identity, "host": host.host, "disabled_reason": host.disabled_reason}


COUNTS: dict[str, Callable[[Hypervisor], Any]] = {
    "vcpus": _total("VCPU"),
    "memory_mb": _total("MEMORY_MB"),
    "local_gb": _total("DISK_GB"),
    "vcpus_used": _used("VCPU"),
    "memory_mb_used": _used("MEMORY_MB"),
    "local_gb_used": _used("DISK_GB"),
    "free_ram_mb": _free("MEMORY_MB"),
    "free_disk_gb": _free("DISK_GB"),
    "current_workload": attrgetter("workload"),
    "running_vms": lambda hypervisor: len(hypervisor.guests),
    "disk_available_least": _free("DISK_GB"),
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
