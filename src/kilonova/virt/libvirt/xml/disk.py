"""Disks and the controllers that they hang on."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from kilonova.errors import Failed
from kilonova.virt.libvirt.disks import DiskFile
from kilonova.virt.libvirt.hardware import Hardware
from kilonova.virt.libvirt.xml.element import element

PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"}
IDE_SLOTS = 4
SCSI_SLOTS = 7  # what libvirt puts on one controller; the eighth would ask for one of another model


def disks(
    files: Sequence[DiskFile], hardware: Hardware, cache: str, specs: Mapping[str, str]
) -> list[ET.Element]:
    """``cache`` is QEMU's cache mode for what is written; ``specs`` are the flavor's, for limits.

    Raises Failed if a bus has no room.
    """
    limits = _limits(specs)
    used: dict[str, int] = {}
    made = []
    for file in files:
        bus = hardware.cdrom_bus if file.kind == "cdrom" else hardware.disk_bus
        number = used.get(PREFIX[bus], 0)
        used[PREFIX[bus]] = number + 1
        if number >= {"ide": IDE_SLOTS, "scsi": SCSI_SLOTS}.get(bus, 26):
            raise Failed(f"There is no room for {len(files)} disks on the bus {bus}.")
        made.append(_disk(file, bus, f"{PREFIX[bus]}{'abcdefghijklmnopqrstuvwxyz'[number]}", cache, limits))
    return made


def _disk(file: DiskFile, bus: str, name: str, cache: str, limits: dict[str, int]) -> ET.Element:
    driver: dict[str, str | int | None] = {"name": "qemu", "type": file.format}
    if not file.readonly:
        driver |= {"cache": cache, "discard": "unmap"}
    return element(
        "disk",
        {"type": "file", "device": file.kind},
        element("driver", driver),
        element("source", {"file": str(file.path)}),
        element("target", {"dev": name, "bus": bus}),
        element("iotune", None, *(element(k, text=v) for k, v in limits.items()))
        if limits and not file.readonly
        else None,
        element("readonly") if file.readonly else None,
        element("boot", {"order": 1}) if file.boot else None,
    )


def _limits(specs: Mapping[str, str]) -> dict[str, int]:
    """The flavor's ``quota:disk_read_bytes_sec`` and so on, which QEMU itself keeps."""
    found = {}
    for what in ("bytes", "iops"):
        for direction in ("total", "read", "write"):
            name = f"{direction}_{what}_sec"
            value = specs.get(f"quota:disk_{name}")
            if value and value.isdigit() and int(value):
                found[name] = int(value)
    return found


def scsi_controller(files: Sequence[DiskFile], hardware: Hardware) -> ET.Element | None:
    buses = {hardware.cdrom_bus if file.kind == "cdrom" else hardware.disk_bus for file in files}
    if "scsi" not in buses:
        return None
    return element("controller", {"type": "scsi", "index": 0, "model": hardware.scsi_model})
