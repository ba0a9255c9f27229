"""Disks and the controllers that they hang on."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from kilonova.errors import HostFault
from kilonova.virt.libvirt.disks import DiskFile
from kilonova.virt.libvirt.hardware import Hardware
from kilonova.virt.libvirt.volumes import VolumeFile
from kilonova.virt.libvirt.xml.disk_names import DiskNames
from kilonova.virt.libvirt.xml.element import element
from kilonova.virt.libvirt.xml.volume import volume_disk


def disks(
    files: Sequence[DiskFile],
    hardware: Hardware,
    cache: str,
    specs: Mapping[str, str],
    volumes: Sequence[VolumeFile] = (),
) -> list[ET.Element]:
    """``cache`` is QEMU's cache mode for what is written; ``specs`` are the flavor's, for limits of the
    guest's own disks.

    Volumes have the names that they were given, own disks those that are left.  Raises Failed if a bus has no
    room, HostFault for two volumes of one name.
    """
    names, limits = DiskNames(), _limits(specs)
    wished = [names.wished(hardware.disk_bus, file.volume.device) for file in volumes]
    given = [name for name in wished if name is not None]
    if len(set(given)) != len(given):
        raise HostFault(f"Two volumes of the guest have one name, of {', '.join(given)}: detach one.")
    names.take(given)
    made = []
    for file in files:
        bus = hardware.cdrom_bus if file.kind == "cdrom" else hardware.disk_bus
        made.append(_disk(file, bus, names.first(bus), cache, limits))
    for volume, name in zip(volumes, wished, strict=True):
        made.append(volume_disk(volume, hardware.disk_bus, name or names.first(hardware.disk_bus)))
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


def scsi_controller(
    files: Sequence[DiskFile], hardware: Hardware, volumes: Sequence[VolumeFile] = ()
) -> ET.Element | None:
    buses = {hardware.cdrom_bus if file.kind == "cdrom" else hardware.disk_bus for file in files}
    buses.update(hardware.disk_bus for _ in volumes)
    if "scsi" not in buses:
        return None
    return element("controller", {"type": "scsi", "index": 0, "model": hardware.scsi_model})
