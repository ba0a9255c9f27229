"""What this host has, in the words of placement."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from kilonova.model.host import Inventory
from kilonova.virt.libvirt.capabilities import HostCpu, Machine
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.hardware import DISK_BUSES, VIDEO_MODELS, VIF_MODELS
from kilonova.virt.libvirt.options import Ratios
from kilonova.virt.libvirt.traits import cpu_traits

GIB = 1 << 30


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``version`` is QEMU's, as 7002000 for 7.2.0."""

    hostname: str
    version: int
    memory_mib: int
    cpus: int


async def read_facts(connection: Connection) -> HostFacts:
    def work(link: Any) -> HostFacts:
        info = link.getInfo()
        return HostFacts(
            hostname=link.getHostname(), version=link.getVersion(), memory_mib=info[1], cpus=info[2]
        )

    return await connection.call(work)


def inventories(facts: HostFacts, disk_gib: int, ratios: Ratios) -> dict[str, Inventory]:
    """Resources with what is kept back and how far they may be overbooked."""

    def of(total: int, reserved: int, ratio: float) -> Inventory:
        return Inventory(
            total=total, reserved=min(reserved, total), max_unit=max(1, total), allocation_ratio=ratio
        )

    return {
        "VCPU": of(facts.cpus, ratios.reserved_cpus, ratios.cpu),
        "MEMORY_MB": of(facts.memory_mib, ratios.reserved_memory_mb, ratios.ram),
        "DISK_GB": of(disk_gib, -(-ratios.reserved_disk_mb // 1024), ratios.disk),
    }


def disk_gib(directory: Path) -> int:
    """Whole GiB of the file system that guests' disks are on."""
    found = os.statvfs(directory)
    return found.f_blocks * found.f_frsize // GIB


def traits(machine: Machine, features: frozenset[str]) -> tuple[str, ...]:
    """What guests can have on this host; only what the driver really does."""
    found = {"COMPUTE_NODE", f"COMPUTE_ARCH_{machine.arch.upper()}", f"HW_ARCH_{machine.arch.upper()}"}
    found |= {f"COMPUTE_IMAGE_TYPE_{form}" for form in ("RAW", "QCOW2", "ISO")}
    found |= {f"COMPUTE_STORAGE_BUS_{bus.upper()}" for bus in DISK_BUSES if bus in machine.disk_buses}
    found |= {
        f"COMPUTE_GRAPHICS_MODEL_{model.upper()}" for model in VIDEO_MODELS if model in machine.video_models
    }
    found |= {f"COMPUTE_NET_VIF_MODEL_{model.upper()}" for model in VIF_MODELS}
    found.add("COMPUTE_FIRMWARE_BIOS")
    if "efi" in machine.firmware:
        found.add("COMPUTE_FIRMWARE_UEFI")
    return tuple(sorted(found | cpu_traits(features)))


def cpu_info(cpu: HostCpu) -> dict[str, object]:
    """The host's processor in the form of the hypervisors API."""
    return {
        "arch": cpu.arch,
        "model": cpu.model,
        "vendor": cpu.vendor,
        "topology": dict(cpu.topology),
        "features": list(cpu.features),
    }
