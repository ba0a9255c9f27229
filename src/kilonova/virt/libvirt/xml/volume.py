"""Volumes: disks that are told from a guest's own by their serial number, which is the volume's id."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from kilonova.errors import HostFault
from kilonova.virt.libvirt.volumes import VolumeFile
from kilonova.virt.libvirt.xml.disk_names import DiskNames
from kilonova.virt.libvirt.xml.element import element


def volume_disk(file: VolumeFile, bus: str, name: str) -> ET.Element:
    """The disk of a volume, as ``name`` on that bus.  It has no files beneath it, and none are looked for."""
    driver = {"name": "qemu", "type": file.format, "cache": file.cache, "discard": "unmap"}
    owner = element("seclabel", {"model": "dac", "relabel": "no"}) if file.owned else None
    return element(
        "disk",
        {"type": "file", "device": "disk"},
        element("driver", driver),
        element("source", {"file": str(file.path)}, owner),
        element("backingStore"),
        element("target", {"dev": name, "bus": bus}),
        element("shareable") if file.volume.multiattach else None,
        element("serial", text=file.volume.volume_id),
    )


def volume_of(domain: str, volume_id: str) -> ET.Element | None:
    """The disk of that volume in a domain's XML."""
    disks = ET.fromstring(domain).iterfind("devices/disk")
    return next((disk for disk in disks if serial_of(disk) == volume_id), None)


def serial_of(disk: ET.Element) -> str:
    """The id of the volume; empty for what is none."""
    return disk.findtext("serial", "")


def added_volume(file: VolumeFile, bus: str, domains: Iterable[str]) -> ET.Element:
    """The disk of a volume that comes to a guest, which ``domains`` describe: as it runs, and as stored.

    It gets the name that it is to have, but another if that is one of the guest's own disks.  Raises
    HostFault if another volume has it, Failed if the bus is full.
    """
    own: set[str] = set()
    volumes: set[str] = set()
    for disk in (disk for domain in domains for disk in ET.fromstring(domain).iterfind("devices/disk")):
        serial, target = serial_of(disk), disk.find("target")
        if target is not None and serial != file.volume.volume_id:
            (volumes if serial else own).add(target.get("dev", ""))
    names = DiskNames()
    wished = names.wished(bus, file.volume.device)
    if wished in volumes:
        raise HostFault(f"Another volume of the guest is its {file.volume.device}: choose another device.")
    names.take(own | volumes)
    return volume_disk(file, bus, names.first(bus) if wished is None or wished in own else wished)
