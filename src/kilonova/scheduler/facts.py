"""What a flavor or a query may ask of a host by name: the attributes of Nova's host states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kilonova.scheduler.columns import Columns

Fact = Callable[[Columns, int], Any]


def _free(resource: str, scale: int = 1) -> Fact:
    """What is left of the physical amount."""

    def fact(columns: Columns, row: int) -> int:
        stock = columns.stock.get(resource)
        return 0 if stock is None else int(stock.physical[row] - stock.used[row]) * scale

    return fact


def _used(resource: str, scale: int = 1) -> Fact:
    def fact(columns: Columns, row: int) -> int:
        stock = columns.stock.get(resource)
        return 0 if stock is None else int(stock.used[row]) * scale

    return fact


def _total(resource: str) -> Fact:
    def fact(columns: Columns, row: int) -> int | None:
        provision = columns.provisions[row]
        inventory = None if provision is None else provision.inventories.get(resource)
        return None if inventory is None else inventory.total

    return fact


def _ratio(resource: str) -> Fact:
    def fact(columns: Columns, row: int) -> float | None:
        provision = columns.provisions[row]
        inventory = None if provision is None else provision.inventories.get(resource)
        return None if inventory is None else inventory.allocation_ratio

    return fact


def _host(name: str) -> Fact:
    return lambda columns, row: getattr(columns.record(row), name)


def _aggregates(columns: Columns, row: int) -> list[str]:
    name = columns.record(row).host
    return [aggregate.name for aggregate in columns.aggregates if name in aggregate.hosts]


FIXED: dict[str, Fact] = {
    "host": _host("host"),
    "nodename": _host("hypervisor_hostname"),
    "host_ip": _host("host_ip"),
    "hypervisor_hostname": _host("hypervisor_hostname"),
    "hypervisor_type": _host("hypervisor_type"),
    "hypervisor_version": _host("hypervisor_version"),
    "cpu_info": _host("cpu_info"),
    "uuid": _host("compute_id"),
    "aggregates": _aggregates,
    "vcpus_total": _total("VCPU"),
    "memory_mb": _total("MEMORY_MB"),
    "total_usable_ram_mb": _total("MEMORY_MB"),
    "local_gb": _total("DISK_GB"),
    "total_usable_disk_gb": _total("DISK_GB"),
    "cpu_allocation_ratio": _ratio("VCPU"),
    "ram_allocation_ratio": _ratio("MEMORY_MB"),
    "disk_allocation_ratio": _ratio("DISK_GB"),
}
"""Those that change only with ``Columns.version``."""

CHANGING: dict[str, Fact] = {
    "free_ram_mb": _free("MEMORY_MB"),
    "free_disk_gb": _free("DISK_GB"),
    "free_disk_mb": _free("DISK_GB", 1024),
    "vcpus_used": _used("VCPU"),
    "disk_mb_used": _used("DISK_GB", 1024),
    "memory_mb_used": _used("MEMORY_MB"),
    "num_instances": lambda columns, row: int(columns.instances[row]),
    "num_io_ops": lambda columns, row: int(columns.io_ops[row]),
    "failed_builds": lambda columns, row: int(columns.failed_builds[row]),
}

FACTS = {**FIXED, **CHANGING}


def fact_of(columns: Columns, row: int, path: Sequence[str]) -> Any:
    """What the host says; None when it does not."""
    get = FACTS.get(path[0])
    found = None if get is None else get(columns, row)
    for step in path[1:]:
        found = found.get(step) if isinstance(found, dict) else None
    return found
