"""``GET /servers/{id}/diagnostics``: what the hypervisor counts of a guest."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import NO_KEYS
from kilonova.api.routes import Route
from kilonova.api.server_found import host_of, server_of
from kilonova.model.instance import Instance
from kilonova.rpc.messages import CpuDiagnostics, Diagnostics, DiskDiagnostics, NicDiagnostics

_NIC = ("octets", "errors", "drop", "packets")


async def show(call: Call) -> dict[str, Any]:
    instance = await server_of(call)
    found = await call.cloud.hosts.agent(host_of(instance)).diagnostics(instance.uuid)
    return fixed_form(found) if call.version >= 48 else free_form(found, instance)


def fixed_form(found: Diagnostics) -> dict[str, Any]:
    """The form that is the same for all hypervisors; null is what is not known."""
    return {
        "state": found.state,
        "driver": found.driver,
        "hypervisor": found.hypervisor,
        "hypervisor_os": found.hypervisor_os,
        "uptime": found.uptime,
        "config_drive": found.config_drive,
        "num_cpus": len(found.cpus),
        "num_nics": len(found.nics),
        "num_disks": len(found.disks),
        "cpu_details": [_cpu(each) for each in found.cpus],
        "nic_details": [_nic(each) for each in found.nics],
        "disk_details": [_disk(each) for each in found.disks],
        "memory_details": {"maximum": found.memory_maximum, "used": found.memory_used},
    }


def _cpu(cpu: CpuDiagnostics) -> dict[str, Any]:
    return {"id": cpu.id, "time": cpu.time, "utilisation": cpu.utilisation}


def _disk(disk: DiskDiagnostics) -> dict[str, Any]:
    return {name: getattr(disk, name) for name in disk.__struct_fields__}


def _nic(nic: NicDiagnostics) -> dict[str, Any]:
    shown = {name: getattr(nic, name) for name in nic.__struct_fields__}
    return {**shown, "rx_rate": None, "tx_rate": None}


def free_form(found: Diagnostics, instance: Instance) -> dict[str, Any]:
    """The form before 2.48, in the words of Nova's libvirt driver: a key for each counter."""
    shown: dict[str, Any] = {f"cpu{cpu.id}_time": cpu.time for cpu in found.cpus}
    for number, disk in enumerate(found.disks):
        name = f"vd{chr(ord('a') + number)}"
        shown[f"{name}_read"] = disk.read_bytes
        shown[f"{name}_read_req"] = disk.read_requests
        shown[f"{name}_write"] = disk.write_bytes
        shown[f"{name}_write_req"] = disk.write_requests
        shown[f"{name}_errors"] = disk.errors_count
    devices = {vif.mac: vif.devname for vif in instance.vifs}
    for nic in found.nics:
        name = devices.get(nic.mac_address, nic.mac_address)
        for direction in ("rx", "tx"):
            shown[f"{name}_{direction}"] = getattr(nic, f"{direction}_octets")
            for counter in _NIC[1:]:
                shown[f"{name}_{direction}_{counter}"] = getattr(nic, f"{direction}_{counter}")
    shown["memory"] = None if found.memory_maximum is None else found.memory_maximum * 1024
    shown["memory-actual"] = None if found.memory_used is None else found.memory_used * 1024
    return {name: value for name, value in shown.items() if value is not None}


ROUTES = (
    Route(
        "GET",
        "/servers/{server_id}/diagnostics",
        show,
        "os_compute_api:os-server-diagnostics",
        query=NO_KEYS,
        late=True,
    ),
)
