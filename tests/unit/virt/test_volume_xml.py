"""Volumes in the definition of a guest, hot plugged ones, and those of a guest that goes to another host."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kilonova.errors import Failed, HostFault
from kilonova.model.volume import Attachment
from kilonova.virt.libvirt.capabilities import _qemu_user
from kilonova.virt.libvirt.disks import DiskFile
from kilonova.virt.libvirt.volumes import QemuUser, VolumeFile
from kilonova.virt.libvirt.xml.addresses import placed
from kilonova.virt.libvirt.xml.moved import moved
from kilonova.virt.libvirt.xml.volume import added_volume, volume_disk, volume_of
from tests.unit.virt.machines import Q35, hardware
from tests.unit.virt.sources import guest
from tests.unit.virt.test_domain_xml import CONFIG, ROOT, attributes, built
from tests.unit.virt.test_moved_xml import domain, there

EPHEMERAL = DiskFile(path=Path("/i/u/disk.eph0"), format="raw")


def volume(name: str = "v1", device: str | None = "/dev/vdb", **more: Any) -> VolumeFile:
    multiattach = bool(more.pop("multiattach", False))
    wanted = Attachment(id="b", volume_id=name, attachment_id="a", device=device, multiattach=multiattach)
    return VolumeFile(**{"volume": wanted, "path": Path("/volumes", name), "format": "raw", **more})


def names(root: ET.Element) -> dict[str, str]:
    """Disk, by volume or file, -> its name."""
    found = {}
    for disk in root.iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        assert source is not None and target is not None
        found[disk.findtext("serial") or Path(source.get("file", "")).name] = target.get("dev", "")
    return found


def text(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode")


def test_what_a_volume_is_in_a_definition() -> None:
    root = built(volumes=(volume(),))
    disk = volume_of(text(root), "v1")
    assert disk is not None and volume_of(text(root), "v2") is None
    ET.indent(disk)
    assert text(disk).strip() == (
        '<disk type="file" device="disk">\n'
        '  <driver name="qemu" type="raw" cache="none" discard="unmap" />\n'
        '  <source file="/volumes/v1">\n'
        '    <seclabel model="dac" relabel="no" />\n'
        "  </source>\n"
        "  <backingStore />\n"
        '  <target dev="vdb" bus="virtio" />\n'
        "  <serial>v1</serial>\n"
        "</disk>"
    )


def test_what_may_differ() -> None:
    disk = volume_disk(
        volume(format="qcow2", cache="writeback", owned=False, multiattach=True), "scsi", "sdb"
    )
    assert attributes(disk, "driver")[0] == {
        "name": "qemu",
        "type": "qcow2",
        "cache": "writeback",
        "discard": "unmap",
    }
    assert disk.find("source/seclabel") is None and disk.find("shareable") is not None
    assert volume_disk(volume(), "virtio", "vdb").find("shareable") is None


def test_the_limits_of_the_flavor_are_those_of_its_own_disks() -> None:
    spec = guest(None, flavor={"extra_specs": {"quota:disk_total_iops_sec": "100"}})
    root = built(spec, volumes=(volume(),))
    assert [disk.find("iotune") is None for disk in root.iterfind("devices/disk")] == [False, True]


def test_own_disks_have_the_names_that_volumes_leave() -> None:
    """A flavor may bring a disk after a volume has got the name that it would have had."""
    root = built(files=(ROOT, EPHEMERAL, CONFIG), volumes=(volume("v1", "/dev/vdb"), volume("v2", None)))
    assert names(root) == {"disk": "vda", "disk.eph0": "vdc", "disk.config": "hda", "v1": "vdb", "v2": "vdd"}


@pytest.mark.parametrize(
    ("bus", "device", "name"),
    [("scsi", "/dev/vdb", "sdb"), ("virtio", "/dev/sdz", "vdz"), ("sata", "/dev/xvdc", "sdc")],
)
def test_the_name_is_that_of_the_bus(bus: str, device: str, name: str) -> None:
    root = built(wanted=hardware(disk_bus=bus), volumes=(volume("v1", device),))
    assert names(root)["v1"] == name


@pytest.mark.parametrize(
    "device", ["vdb", "/dev/vd", "/dev/vdaa", "/dev/vdb1", "/dev/../vdb", "/dev/nvme0n1", ""]
)
def test_what_is_no_disks_name(device: str) -> None:
    with pytest.raises(Failed, match=f"There is no disk '{device}' on the bus virtio"):
        built(volumes=(volume("v1", device),))


def test_two_volumes_of_one_name() -> None:
    with pytest.raises(HostFault, match="one name, of vdb, vdb"):
        built(volumes=(volume("v1", "/dev/vdb"), volume("v2", "/dev/sdb")))


def test_a_bus_that_is_full_of_volumes() -> None:
    built(
        wanted=hardware(disk_bus="scsi"),
        volumes=[volume(f"v{letter}", f"/dev/sd{letter}") for letter in "bcdefg"],
    )
    with pytest.raises(Failed, match="'/dev/sdh' on the bus scsi, which has 7 places"):
        built(wanted=hardware(disk_bus="scsi"), volumes=(volume("v", "/dev/sdh"),))
    with pytest.raises(Failed, match="no room for another disk on the bus scsi"):
        built(wanted=hardware(disk_bus="scsi"), volumes=[volume(f"v{n}", None) for n in range(7)])


def test_a_guest_that_boots_from_a_cd_gets_the_controller_of_its_volumes() -> None:
    cd = DiskFile(path=Path("/i/u/disk.base"), format="raw", kind="cdrom", readonly=True, boot=True)
    wanted = hardware(disk_bus="scsi", cdrom_bus="sata", machine=Q35)
    for volumes in ((), (volume(),)):
        root = built(wanted=wanted, files=(cd,), volumes=volumes)
        assert (root.find("devices/controller[@type='scsi']") is not None) is bool(volumes)


# ---- hot plug ----


def test_one_that_comes_has_its_name_unless_that_is_an_own_disks() -> None:
    running = text(built(files=(ROOT, EPHEMERAL), volumes=(volume("v1", "/dev/vdc"),)))
    added = added_volume(volume("v2", "/dev/vde"), "virtio", [running])
    assert attributes(added, "target") == [{"dev": "vde", "bus": "virtio"}]
    for device in ("/dev/vdb", None):
        added = added_volume(volume("v2", device), "virtio", [running])
        assert attributes(added, "target") == [{"dev": "vdd", "bus": "virtio"}]
    with pytest.raises(HostFault, match="/dev/vdc: choose another device"):
        added_volume(volume("v2", "/dev/vdc"), "virtio", [running])
    again = added_volume(volume("v1", "/dev/vdc"), "virtio", [running])
    assert attributes(again, "target")[0]["dev"] == "vdc"


def test_what_is_only_stored_counts() -> None:
    running, stored = text(built()), text(built(volumes=(volume("v1"),)))
    for domains in ([running, stored], [stored, running]):
        with pytest.raises(HostFault, match="choose another device"):
            added_volume(volume("v2"), "virtio", domains)


def test_places_on_the_bus_stay_with_the_disk_and_not_with_its_name() -> None:
    """A volume has vdc, then goes; the flavor's disk that stepped aside for it is named anew."""
    before = built(files=(ROOT, EPHEMERAL), volumes=(volume("v1", "/dev/vdb"), volume("v2", "/dev/vdd")))
    for slot, disk in enumerate(before.iterfind("devices/disk"), 4):
        ET.SubElement(disk, "address", {"type": "pci", "slot": f"{slot:#x}"})
    after = ET.fromstring(
        placed(text(built(files=(ROOT, EPHEMERAL), volumes=(volume("v2", "/dev/vdd"),))), text(before))
    )
    assert names(before)["disk.eph0"] == "vdc" and names(after)["disk.eph0"] == "vdb"
    slots = {
        disk.findtext("serial") or "own": next(disk.iter("address")).get("slot")
        for disk in after.iterfind("devices/disk")
    }
    assert slots == {"own": "0x5", "v2": "0x7"}


# ---- live migration ----


def sent(running: list[VolumeFile], wanted: list[VolumeFile]) -> ET.Element:
    def devices(files: list[VolumeFile]) -> str:
        return "".join(text(volume_disk(file, "virtio", f"vd{'bcd'[n]}")) for n, file in enumerate(files))

    return ET.fromstring(moved(domain("", devices(running)), there("", devices(wanted))))


@pytest.mark.capability("MG-LM-16")
def test_volumes_are_those_of_the_destinations_connections() -> None:
    one = volume("v1", cache="none", format="qcow2")
    elsewhere = replace(volume("v1", cache="writeback"), path=Path("/mnt/v1"), owned=False, format="qcow2")
    root = sent([one, volume("v2")], [volume("v2"), elsewhere])  # in another order, under other names
    disk = volume_of(text(root), "v1")
    assert disk is not None
    assert attributes(disk, "source") == [{"file": "/mnt/v1"}]
    assert disk.find("source/seclabel") is None
    assert attributes(disk, "driver")[0]["cache"] == "writeback"
    assert attributes(disk, "target")[0]["dev"] == "vdb", "what the guest has stays"
    assert len(disk.findall("backingStore")) == 1, "no file beneath it is looked for there"
    back = volume_of(text(sent([elsewhere], [one])), "v1")
    assert back is not None and len(back.findall("source/seclabel")) == 1


@pytest.mark.capability("MG-LM-16")
def test_a_volume_that_is_not_connected_there_stops_it() -> None:
    with pytest.raises(HostFault, match="volume v2 is not on the destination"):
        sent([volume("v1"), volume("v2")], [volume("v1")])


@given(st.permutations(["v1", "v2", "v3"]))
def test_any_order_there(order: list[str]) -> None:
    files = {name: volume(name) for name in order}
    root = sent([volume(name) for name in ("v1", "v2", "v3")], [files[name] for name in order])
    assert [Path(each["file"]).name for each in attributes(root, "devices/disk/source")] == ["v1", "v2", "v3"]


# ---- whom QEMU runs as ----


def test_libvirt_says_whom_qemu_runs_as() -> None:
    dac = "<secmodel><model>dac</model><doi>0</doi>{}</secmodel>"
    labels = "<baselabel type='kvm'>+64055:+109</baselabel><baselabel type='qemu'>+1:+2</baselabel>"
    other = "<secmodel><model>apparmor</model><doi>0</doi></secmodel>"

    def read(inside: str, virt_type: str) -> QemuUser | None:
        return _qemu_user(ET.fromstring(f"<capabilities><host>{inside}</host></capabilities>"), virt_type)

    assert read(other + dac.format(labels), "kvm") == QemuUser(64055, 109)
    assert read(dac.format(labels) + other, "qemu") == QemuUser(1, 2)
    assert read(dac.format(""), "kvm") is None
    assert read(other, "kvm") is None
