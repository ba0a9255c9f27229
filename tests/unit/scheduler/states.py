"""Hosts as the scheduler sees them, and servers looking for one."""

from __future__ import annotations

from typing import Any

from kilonova.model.host import Host, Inventory
from kilonova.scheduler.request import HostState, ServerRequest
from kilonova.services.placement.port import ProviderSummary


def state(name: str = "h1", *, up: bool = True, zone: str = "nova", **more: Any) -> HostState:
    """``inventories``, ``used`` and ``traits`` are its provider's; whatever else is given is the host's."""
    stock = {
        "VCPU": Inventory(total=4, allocation_ratio=2.0),
        "MEMORY_MB": Inventory(total=4096, reserved=512),
        "DISK_GB": Inventory(total=100, max_unit=50),
    }
    provider = {
        key: more.pop(key, default)
        for key, default in (("inventories", stock), ("used", {}), ("traits", frozenset()))
    }
    host: dict[str, Any] = {
        "id": 1,
        "service_uuid": f"service-{name}",
        "compute_id": f"node-{name}",
        "host": name,
        "hypervisor_hostname": f"{name}.example",
        "hypervisor_type": "QEMU",
        "hypervisor_version": 1,
        "host_ip": "192.0.2.1",
        "cpu_info": {"arch": "x86_64"},
        **more,
    }
    return HostState(
        host=Host(**host),
        provider=ProviderSummary(uuid=f"node-{name}", name=f"{name}.example", generation=1, **provider),
        up=up,
        zone=zone,
    )


def request(**more: Any) -> ServerRequest:
    wanted = {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 1}
    return ServerRequest(**{"uuid": "u1", "project_id": "p1", "resources": wanted, **more})
