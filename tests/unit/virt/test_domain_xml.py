"""The domain's XML, property by property."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.clock import parse_iso
from kilonova.errors import Failed
from kilonova.model.port import FixedIp, Vif
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt.disks import DiskFile
from kilonova.virt.libvirt.hardware import Hardware
from kilonova.virt.libvirt.options import LibvirtOptions
from kilonova.virt.libvirt.topology import Topology
from kilonova.virt.libvirt.xml.domain import Blueprint, Cpu, domain_xml
from kilonova.virt.libvirt.xml.metadata import read_mark
from tests.unit.virt.machines import Q35, hardware
from tests.unit.virt.sources import Images, guest

ROOT = DiskFile(path=Path("/i/u/disk"), format="qcow2", boot=True)
CONFIG = DiskFile(path=Path("/i/u/disk.config"), format="raw", kind="cdrom", readonly=True)
NOVA = "{http://openstack.org/xmlns/libvirt/nova/1.1}"


def built(
    spec: GuestSpec | None = None,
    wanted: Hardware | None = None,
    files: Sequence[DiskFile] = (ROOT,),
    options: LibvirtOptions | None = None,
    **more: Any,
) -> ET.Element:
    fields: dict[str, Any] = {
        "guest": spec or guest(Images().add(b"x")),
        "hardware": wanted or hardware(),
        "files": files,
        "console": Path("/i/u/console.log"),
        "virt_type": "qemu",
        "cpu": Cpu(mode="maximum"),
        "cache": "none",
        "compute_id": "c0ffee",
        "started_at": 17,
    }
    plan = Blueprint(**{**fields, **more})
    return ET.fromstring(domain_xml(plan, options or LibvirtOptions()))


def text(root: ET.Element, path: str) -> str | None:
    return root.findtext(path)


def attributes(root: ET.Element, path: str) -> list[dict[str, str]]:
    return [dict(each.attrib) for each in root.iterfind(path)]


def test_identity_and_size() -> None:
    spec = guest(None, flavor={"memory_mb": 640, "vcpus": 3})
    root = built(spec)
    assert root.get("type") == "qemu"
    assert text(root, "uuid") == text(root, "name") == spec.uuid
    memory = root.find("memory")
    assert memory is not None and (memory.text, memory.get("unit")) == ("640", "MiB")
    assert text(root, "vcpu") == "3"
    assert built(virt_type="kvm").get("type") == "kvm"
    assert [text(root, f"on_{what}") for what in ("poweroff", "reboot", "crash")] == [
        "destroy",
        "restart",
        "destroy",
    ]


def test_metadata_for_operators_and_the_mark_of_our_own() -> None:
    vif = Vif(
        port_id="11111111-2222-3333-4444-555555555555",
        mac="fa:16:3e:00:00:01",
        network_id="n",
        network_name="net",
        fixed_ips=(
            FixedIp(subnet_id="s", address="10.0.0.5"),
            FixedIp(subnet_id="s", address="fd::5", version=6),
        ),
    )
    image = Images().add(b"x")
    spec = guest(
        image,
        name="web <1> & \x00\x1b\ud800 naïve",
        user_id="u1",
        user_name="ada",
        project_id="p1",
        vifs=(vif,),
        created_at=parse_iso("2026-11-24T01:02:03Z"),
        flavor={"name": "m1.small", "root_gb": 5, "swap_mb": 6, "ephemeral_gb": 7},
    )
    root = built(spec)
    nova = root.find(f"metadata/{NOVA}instance")
    assert nova is not None
    assert nova.findtext(f"{NOVA}name") == "web <1> & ??? naïve"
    assert nova.findtext(f"{NOVA}creationTime") == "2026-11-24 01:02:03"
    flavor = nova.find(f"{NOVA}flavor")
    assert flavor is not None and flavor.get("name") == "m1.small"
    sizes = {
        name: flavor.findtext(f"{NOVA}{name}") for name in ("memory", "disk", "swap", "ephemeral", "vcpus")
    }
    assert sizes == {"memory": "32", "disk": "5", "swap": "6", "ephemeral": "7", "vcpus": "1"}
    user, project = nova.find(f"{NOVA}owner/{NOVA}user"), nova.find(f"{NOVA}owner/{NOVA}project")
    assert user is not None and (user.get("uuid"), user.text) == ("u1", "ada")
    assert project is not None and (project.get("uuid"), project.text) == ("p1", "p1")
    assert attributes(nova, f"{NOVA}root") == [{"type": "image", "uuid": image.id}]
    assert attributes(nova, f"{NOVA}ports/{NOVA}port") == [{"uuid": vif.port_id}]
    assert attributes(nova, f"{NOVA}ports/{NOVA}port/{NOVA}ip") == [
        {"type": "fixed", "address": "10.0.0.5", "ipVersion": "4"},
        {"type": "fixed", "address": "fd::5", "ipVersion": "6"},
    ]
    mark = root.find("metadata/{urn:kilonova:guest:1}guest")
    assert mark is not None
    assert read_mark(ET.tostring(mark, encoding="unicode")) == ("c0ffee", 17)


def test_cloud_init_knows_where_it_is() -> None:
    spec = guest(None)
    root = built(spec)
    entries = {entry.get("name"): entry.text for entry in root.iterfind("sysinfo/system/entry")}
    assert entries["product"] == "OpenStack Compute"
    assert entries["uuid"] == entries["serial"] == spec.uuid
    assert attributes(root, "os/smbios") == [{"mode": "sysinfo"}]


def test_machine_and_firmware() -> None:
    root = built()
    assert attributes(root, "os/type") == [{"arch": "x86_64", "machine": "pc-i440fx-7.2"}]
    assert text(root, "os/type") == "hvm"
    assert attributes(root, "os") == [{}]
    uefi = built(wanted=hardware(uefi=True))
    assert attributes(uefi, "os") == [{"firmware": "efi"}]
    assert attributes(uefi, "os/firmware/feature") == [{"enabled": "no", "name": "secure-boot"}]
    assert uefi.find("features/smm") is None
    secure = built(wanted=hardware(uefi=True, secure_boot=True))
    assert attributes(secure, "os/firmware/feature") == [{"enabled": "yes", "name": "secure-boot"}]
    assert attributes(secure, "features/smm") == [{"state": "on"}]
    assert attributes(built(wanted=hardware(boot_menu=True)), "os/bootmenu") == [{"enable": "yes"}]


@pytest.mark.parametrize(
    ("cpu", "expected", "model"),
    [
        (Cpu(), {}, None),
        (Cpu(mode="maximum"), {"mode": "maximum"}, None),
        (Cpu(mode="host-model"), {"mode": "host-model"}, None),
        (Cpu(mode="custom", model="Nehalem"), {"mode": "custom", "match": "exact"}, "Nehalem"),
    ],
)
def test_processor(cpu: Cpu, expected: dict[str, str], model: str | None) -> None:
    topology = Topology(sockets=1, cores=2, threads=3)
    root = built(wanted=hardware(topology=topology), cpu=cpu)
    assert attributes(root, "cpu") == [expected]
    assert text(root, "cpu/model") == model
    assert attributes(root, "cpu/topology") == [{"sockets": "1", "cores": "2", "threads": "3"}]


def test_features() -> None:
    assert [each.tag for each in built().iterfind("features/*")] == ["acpi", "apic"]
    small = LibvirtOptions(tb_cache_mib=32)
    assert text(built(options=small), "features/tcg/tb-cache") == "32"
    assert built(options=small, virt_type="kvm").find("features/tcg") is None
    assert attributes(built(wanted=hardware(pmu=False)), "features/pmu") == [{"state": "off"}]
    hidden = hardware(hide_hypervisor=True)
    assert attributes(built(wanted=hidden, virt_type="kvm"), "features/kvm/hidden") == [{"state": "on"}]


def test_windows_gets_local_time_and_its_enlightenments() -> None:
    root = built(wanted=hardware(windows=True, hide_hypervisor=True), virt_type="kvm")
    assert attributes(root, "clock") == [{"offset": "localtime"}]
    assert root.find("clock/timer[@name='hypervclock']") is not None
    assert root.find("features/hyperv/relaxed") is not None
    assert root.find("features/hyperv/vendor_id") is not None
    linux = built(virt_type="kvm")
    assert attributes(linux, "clock") == [{"offset": "utc"}]
    assert linux.find("features/hyperv") is None


def test_root_disk_and_config_drive() -> None:
    root = built(files=(ROOT, CONFIG))
    disk, drive = root.findall("devices/disk")
    assert dict(disk.attrib) == {"type": "file", "device": "disk"}
    assert attributes(disk, "driver") == [
        {"name": "qemu", "type": "qcow2", "cache": "none", "discard": "unmap"}
    ]
    assert attributes(disk, "source") == [{"file": "/i/u/disk"}]
    assert attributes(disk, "target") == [{"dev": "vda", "bus": "virtio"}]
    assert attributes(disk, "boot") == [{"order": "1"}]
    assert disk.find("readonly") is None
    assert dict(drive.attrib) == {"type": "file", "device": "cdrom"}
    assert attributes(drive, "driver") == [{"name": "qemu", "type": "raw"}]
    assert attributes(drive, "target") == [{"dev": "hda", "bus": "ide"}]
    assert drive.find("readonly") is not None
    assert drive.find("boot") is None
    assert root.find("devices/controller[@type='scsi']") is None


def test_scsi_disks_share_one_controller_of_the_wanted_model() -> None:
    root = built(
        wanted=hardware(machine=Q35, disk_bus="scsi", cdrom_bus="scsi", scsi_model="lsilogic"),
        files=(ROOT, CONFIG),
    )
    assert [each["dev"] for each in attributes(root, "devices/disk/target")] == ["sda", "sdb"]
    assert attributes(root, "devices/controller[@type='scsi']") == [
        {"type": "scsi", "index": "0", "model": "lsilogic"}
    ]


def test_the_flavor_may_slow_down_the_disks() -> None:
    specs = {"quota:disk_read_bytes_sec": "1000", "quota:disk_total_iops_sec": "50", "quota:disk_x": "1"}
    spec = guest(None, flavor={"extra_specs": specs})
    disk, drive = built(spec, files=(ROOT, CONFIG)).findall("devices/disk")
    assert {each.tag: each.text for each in disk.iterfind("iotune/*")} == {
        "read_bytes_sec": "1000",
        "total_iops_sec": "50",
    }
    assert drive.find("iotune") is None


def test_names_are_counted_by_their_prefix() -> None:
    swap = DiskFile(path=Path("/i/u/disk.swap"), format="raw")
    root = built(wanted=hardware(disk_bus="sata", cdrom_bus="scsi"), files=(ROOT, swap, CONFIG))
    assert attributes(root, "devices/disk/target") == [
        {"dev": "sda", "bus": "sata"},
        {"dev": "sdb", "bus": "sata"},
        {"dev": "sdc", "bus": "scsi"},
    ]


@pytest.mark.parametrize(("bus", "room"), [("ide", 4), ("scsi", 7)])
def test_a_bus_that_is_full(bus: str, room: int) -> None:
    files = [msgspec.structs.replace(ROOT, path=Path(f"/i/u/{n}")) for n in range(room)]
    built(wanted=hardware(disk_bus=bus), files=files)
    with pytest.raises(Failed, match=f"no room for another disk on the bus {bus}: it has {room} places"):
        built(wanted=hardware(disk_bus=bus), files=[*files, ROOT])


def test_q35_has_free_ports_and_pc_needs_none() -> None:
    models = [
        each.get("model") for each in built(wanted=hardware(machine=Q35)).iterfind("devices/controller")
    ]
    assert models[0] == "pcie-root"  # libvirt wants it before the ports
    assert models.count("pcie-root-port") == 16
    more = built(wanted=hardware(machine=Q35), options=LibvirtOptions(pcie_ports=28))
    assert len(more.findall("devices/controller[@model='pcie-root-port']")) == 28
    assert built().find("devices/controller[@type='pci']") is None


def test_console_goes_to_a_file_in_the_guests_own_directory() -> None:
    root = built()
    assert attributes(root, "devices/serial") == [{"type": "pty"}]
    assert attributes(root, "devices/serial/log") == [{"file": "/i/u/console.log", "append": "on"}]
    assert attributes(root, "devices/console/target") == [{"type": "serial", "port": "0"}]
    three = built(wanted=hardware(serial_ports=3))
    assert attributes(three, "devices/serial/target") == [{"port": str(n)} for n in range(3)]
    assert len(three.findall("devices/serial/log")) == 1


def test_screen_keyboard_and_mouse() -> None:
    root = built(options=LibvirtOptions(vnc_listen="10.1.1.1"))
    graphics = attributes(root, "devices/graphics")
    assert graphics == [{"type": "vnc", "port": "-1", "autoport": "yes", "listen": "10.1.1.1"}]
    assert attributes(root, "devices/graphics/listen") == [{"type": "address", "address": "10.1.1.1"}]
    assert attributes(root, "devices/input") == [{"type": "tablet", "bus": "usb"}]
    assert attributes(root, "devices/controller[@type='usb']")[0]["model"] == "qemu-xhci"
    assert attributes(root, "devices/video/model") == [{"type": "vga"}]
    ram = built(wanted=hardware(video_model="qxl", video_ram_mib=32))
    assert attributes(ram, "devices/video/model") == [{"type": "qxl", "vram": "32768"}]

    blind = built(options=LibvirtOptions(vnc=False), wanted=hardware(video_model="none"))
    assert blind.find("devices/graphics") is None
    assert blind.find("devices/input") is None
    assert attributes(blind, "devices/controller[@type='usb']")[0]["model"] == "none"
    mouse = built(wanted=hardware(pointer="ps2mouse"))
    assert mouse.find("devices/input") is None


def test_small_devices() -> None:
    root = built()
    assert text(root, "devices/rng/backend") == "/dev/urandom"
    assert root.find("devices/rng/rate") is None
    assert attributes(root, "devices/memballoon/stats") == [{"period": "10"}]
    assert root.find("devices/watchdog") is None
    assert root.find("devices/channel") is None
    rich = built(
        wanted=hardware(rng_rate=(512, 50), watchdog="reset", agent=True),
        options=LibvirtOptions(balloon_period=0),
    )
    assert attributes(rich, "devices/rng/rate") == [{"bytes": "512", "period": "50"}]
    assert attributes(rich, "devices/watchdog") == [{"model": "i6300esb", "action": "reset"}]
    assert attributes(rich, "devices/channel/target") == [
        {"type": "virtio", "name": "org.qemu.guest_agent.0"}
    ]
    assert attributes(rich, "devices/memballoon") == [{"model": "virtio"}]
    assert rich.find("devices/memballoon/stats") is None
    assert built(wanted=hardware(rng=False)).find("devices/rng") is None
