"""Where a guest runs, in libvirt's words: pins, memory of cells, large pages, devices of the host."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Mapping

from kilonova.model.cpus import format_cpus
from kilonova.model.pci import PciDevice
from kilonova.virt.libvirt.placement import Placement
from kilonova.virt.libvirt.xml.element import element
from kilonova.virt.pci_spec import parts


def vcpu(count: int, placed: Placement) -> ET.Element:
    floating = None if placed.floating is None else format_cpus(placed.floating)
    return element("vcpu", {"placement": "static", "cpuset": floating} if floating else None, text=count)


def cputune(placed: Placement, priority: int, specs: Mapping[str, str]) -> ET.Element | None:
    """``priority`` is that of real-time CPUs, of the host's scheduler fifo; ``specs`` are the flavor's, for
    its shares and limits."""
    limits = [element(name, text=value) for name, value in _limits(specs).items()]
    if not placed.cells:
        return element("cputune", None, *limits) if limits else None
    pins = {cpu: pin for cell in placed.cells for cpu, pin in cell.pins.items()}
    realtime: dict[str, str | int | None]
    realtime = {"vcpus": format_cpus(placed.realtime), "scheduler": "fifo", "priority": priority}
    return element(
        "cputune",
        None,
        *limits,
        *(element("vcpupin", {"vcpu": cpu, "cpuset": format_cpus(pins[cpu])}) for cpu in sorted(pins)),
        element("emulatorpin", {"cpuset": format_cpus(placed.emulator)}),
        element("vcpusched", realtime) if placed.realtime else None,
    )


def _limits(specs: Mapping[str, str]) -> dict[str, int]:
    """The flavor's ``quota:cpu_shares``, ``cpu_period`` and ``cpu_quota``, which libvirt's cgroups keep."""
    found = {}
    for name in ("shares", "period", "quota"):
        value = specs.get(f"quota:cpu_{name}", "")
        if re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
            found[name] = int(value)
    return found


def numatune(placed: Placement) -> ET.Element | None:
    """Memory comes from the host's cells that were claimed, and from no others."""
    if not placed.cells:
        return None
    everywhere = format_cpus(cell.host_cell for cell in placed.cells)
    return element(
        "numatune",
        None,
        element("memory", {"mode": "strict", "nodeset": everywhere}),
        *(
            element("memnode", {"cellid": cell.id, "mode": "strict", "nodeset": cell.host_cell})
            for cell in placed.cells
        ),
    )


def memory_backing(placed: Placement) -> ET.Element | None:
    large: dict[int, list[int]] = defaultdict(list)
    for cell in placed.cells:
        if cell.large_page_kib is not None:
            large[cell.large_page_kib].append(cell.id)
    if not large and not placed.locked:
        return None
    pages = (
        element("page", {"size": size, "unit": "KiB", "nodeset": format_cpus(cells)})
        for size, cells in sorted(large.items())
    )
    return element(
        "memoryBacking",
        None,
        element("hugepages", None, *pages) if large else None,
        element("nosharepages") if placed.realtime else None,
        element("locked") if placed.locked else None,
    )


def guest_cells(placed: Placement) -> ET.Element | None:
    """What the guest sees of it, within ``<cpu>``."""
    if not placed.cells:
        return None
    return element(
        "numa",
        None,
        *(
            element(
                "cell",
                {"id": cell.id, "cpus": format_cpus(cell.pins), "memory": cell.memory_mib, "unit": "MiB"},
            )
            for cell in placed.cells
        ),
    )


def hostdev(device: PciDevice) -> ET.Element:
    """A device of the host, which libvirt takes from its driver and gives back, if it is ``managed``."""
    names = zip(("domain", "bus", "slot", "function"), parts(device.address), strict=True)
    address = {name: f"0x{part}" for name, part in names}
    return element(
        "hostdev",
        {"mode": "subsystem", "type": "pci", "managed": device.tags.get("managed", "yes")},
        element("driver", {"name": "vfio"}),
        element("source", None, element("address", address)),
    )
