"""What this host has, in the words of placement."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import msgspec

from kilonova.model.host import Inventory
from kilonova.model.numa import HostTopology
from kilonova.virt.libvirt.capabilities import HostCpu, Machine
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.hardware import DISK_BUSES, VIDEO_MODELS, VIF_MODELS
from kilonova.virt.libvirt.host_topology import Cell, read_cells
from kilonova.virt.libvirt.traits import cpu_traits

GIB = 1 << 30
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ALL_CPUS = -1  # VIR_NODE_CPU_STATS_ALL_CPUS


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``version`` is QEMU's, as 7002000 for 7.2.0; ``online`` are the CPUs that are on."""

    hostname: str
    version: int
    memory_mib: int
    online: frozenset[int]
    cells: list[Cell] = []


async def read_facts(connection: Connection) -> HostFacts:
    """As they are now: pages and CPUs may come and go."""

    def work(link: Any) -> HostFacts:
        _, there, _ = link.getCPUMap()
        return HostFacts(
            hostname=link.getHostname(),
            version=link.getVersion(),
            memory_mib=link.getInfo()[1],
            online=frozenset(cpu for cpu, on in enumerate(there) if on),
            cells=read_cells(ET.fromstring(link.getCapabilities())),
        )

    return await connection.call(work)


def read_boot_id() -> str:
    """The kernel's name of the time since it was booted."""
    return BOOT_ID.read_text().strip()


async def read_cpu_stats(connection: Connection) -> dict[str, int]:
    """Nanoseconds since boot that the host's CPUs have spent, by kind, and their frequency in MHz."""

    def work(link: Any) -> dict[str, int]:
        return {**link.getCPUStats(ALL_CPUS), "frequency": link.getInfo()[3]}

    return await connection.call(work)


def inventories(shared: int, dedicated: int, memory_mib: int, disk_gib: int) -> dict[str, Inventory]:
    """Resources as they are; what is kept back, and how far they may be overbooked, is the agent's.

    Pinned CPUs are never overbooked.  There is no record of processors of a kind that there is none of.
    """
    processors = {"VCPU": shared, "PCPU": dedicated}
    totals = {name: total for name, total in processors.items() if total > 0}
    totals |= {"MEMORY_MB": memory_mib, "DISK_GB": disk_gib}
    return {name: Inventory(total=total, max_unit=max(total, 1)) for name, total in totals.items()}


def disk_gib(directory: Path) -> int:
    """Whole GiB of the file system that guests' disks are on."""
    found = os.statvfs(directory)
    return found.f_blocks * found.f_frsize // GIB


def traits(machine: Machine, features: frozenset[str], numa: HostTopology | None = None) -> tuple[str, ...]:
    """What guests can have on this host; only what the driver really does."""
    found = {"COMPUTE_NODE", f"COMPUTE_ARCH_{machine.arch.upper()}", f"HW_ARCH_{machine.arch.upper()}"}
    found |= {f"COMPUTE_IMAGE_TYPE_{form}" for form in ("RAW", "QCOW2", "ISO")}
    found |= {f"COMPUTE_STORAGE_BUS_{bus.upper()}" for bus in DISK_BUSES if bus in machine.disk_buses}
    found |= {
        f"COMPUTE_GRAPHICS_MODEL_{model.upper()}" for model in VIDEO_MODELS if model in machine.video_models
    }
    found |= {f"COMPUTE_NET_VIF_MODEL_{model.upper()}" for model in VIF_MODELS}
    found |= {"COMPUTE_NET_ATTACH_INTERFACE", "COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG"}
    if numa is not None:
        found.add("COMPUTE_SOCKET_PCI_NUMA_AFFINITY")
        if any(cell.siblings for cell in numa.cells):
            found.add("HW_CPU_HYPERTHREADING")
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
