"""Each kind of hardware that image and flavor may ask for is accepted by libvirt and QEMU, and the guest's
program runs on it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.model.port import Vif
from kilonova.virt.libvirt import kvm_probe
from kilonova.virt.libvirt.capabilities import kvm_fault
from kilonova.virt.libvirt.disks import DiskFile
from kilonova.virt.libvirt.xml.domain import Blueprint, Cpu, domain_xml
from tests.real import tiny_guest
from tests.real.guests import eventually
from tests.real.libvirt_host import RUNNING, Host, opened, port, tap
from tests.unit.virt.machines import Q35, hardware
from tests.unit.virt.sources import guest

pytestmark = pytest.mark.real

DRIVE = {"openstack/latest/meta_data.json": b"{}"}


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with opened(tmp_path / "instances") as made:
        yield made


@pytest.mark.parametrize(
    ("properties", "flavor"),
    [
        ({}, {}),
        ({"hw_machine_type": "q35"}, {"vcpus": 2}),
        ({"hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi"}, {"swap_mb": 1, "ephemeral_gb": 1}),
        ({"hw_disk_bus": "scsi", "hw_machine_type": "q35"}, {}),
        ({"hw_disk_bus": "sata", "hw_machine_type": "q35", "hw_cdrom_bus": "sata"}, {}),
        ({"hw_disk_bus": "ide"}, {"swap_mb": 1}),
        ({"hw_disk_bus": "usb"}, {}),
        ({"hw_video_model": "cirrus", "hw_watchdog_action": "reset", "hw_qemu_guest_agent": "yes"}, {}),
        (
            {"hw_video_model": "qxl", "hw_video_ram": "32", "hw_pointer_model": "ps2mouse"},
            {"extra_specs": {"hw_video:ram_max_mb": "64"}},
        ),
        ({"hw_video_model": "virtio", "hw_serial_port_count": "4", "hw_boot_menu": "false"}, {}),
        ({"os_type": "windows", "hw_pmu": "false", "img_hide_hypervisor_id": "true"}, {}),
        (
            {"hw_cpu_sockets": "1", "hw_cpu_threads": "2"},
            {
                "vcpus": 4,
                "extra_specs": {
                    "hw_rng:rate_bytes": "512",
                    "quota:disk_read_iops_sec": "1000",
                    "quota:disk_total_bytes_sec": "100000000",
                },
            },
        ),
        ({}, {"extra_specs": {"hw_rng:allowed": "false"}}),
    ],
)
async def test_wishes(host: Host, properties: dict[str, str], flavor: dict[str, Any]) -> None:
    spec = await host.running(properties=properties, flavor=flavor, config_drive=DRIVE)
    assert await host.driver.power_state(spec.uuid) == RUNNING


@pytest.mark.parametrize(
    "options",
    [
        {"vnc": False, "tb_cache_mib": None, "balloon_period": 0},
        {"cpu_mode": "none"},
        {"cpu_mode": "host-model"},
        {"cpu_mode": "custom", "cpu_models": ("no-such-model", "Nehalem")},
        {"config_drive_format": "vfat", "machine_type": "q35"},
        {"virt_type": "auto"},
    ],
)
async def test_settings(tmp_path: Path, options: dict[str, Any]) -> None:
    async with opened(tmp_path / "instances", **options) as host:
        spec = await host.running(config_drive=DRIVE)
        assert await host.driver.power_state(spec.uuid) == RUNNING


async def test_an_iso_boots_as_a_cdrom(host: Host, tmp_path: Path) -> None:
    """El Torito without emulation: the boot sector is loaded as it is."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "boot.img").write_bytes(tiny_guest.image()[:2048])
    subprocess.run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-o", "boot.iso", "-b", "boot.img", "-no-emul-boot", "tree"],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    image = host.images.add((tmp_path / "boot.iso").read_bytes(), disk_format="iso")
    spec = host.tiny(flavor={"root_gb": 1})
    spec = type(spec)(**{**{f: getattr(spec, f) for f in spec.__struct_fields__}, "image": image})
    await host.driver.prepare(spec, host.images)
    await host.driver.start(spec, paused=False)
    await host.says(spec, tiny_guest.UP)


async def test_the_screen_is_served_on_the_wanted_address(tmp_path: Path) -> None:
    async with opened(tmp_path / "instances", vnc_listen="127.0.0.1") as host:
        spec = await host.running()
        graphics = ET.fromstring(await host.domain_xml(spec)).find("devices/graphics")
        assert graphics is not None and graphics.get("listen") == "127.0.0.1"
        with socket.create_connection(("127.0.0.1", int(graphics.get("port", "0"))), 30) as screen:
            assert screen.recv(12).startswith(b"RFB 003.")


# ---- network interfaces ----


@pytest.mark.capability("OVS-3", "OVS-12")
@pytest.mark.parametrize(
    ("model", "details", "options", "vcpus"),
    [
        ("virtio", {"datapath_type": "netdev"}, (), 1),
        ("virtio", {"datapath_type": "system"}, (), 1),
        ("virtio", {"datapath_type": "netdev", "multiqueue": True}, ("multi_queue",), 1),
        ("virtio", {"datapath_type": "system", "multiqueue": True}, ("multi_queue",), 4),
        ("e1000", {"datapath_type": "netdev"}, (), 1),
        ("rtl8139", {}, (), 1),
    ],
)
async def test_taps_that_os_vif_made_are_opened_and_left(
    host: Host, model: str, details: dict[str, Any], options: tuple[str, ...], vcpus: int
) -> None:
    vif = port(details=details)
    with tap(vif, *options) as name:
        spec = await host.running(
            properties={"hw_vif_model": model},
            vifs=(vif,),
            flavor={"vcpus": vcpus},
        )
        interface = ET.fromstring(await host.domain_xml(spec)).find("devices/interface")
        assert interface is not None and interface.get("type") == "ethernet"
        assert [each.tag for each in interface if each.tag in ("source", "virtualport")] == []
        assert carrier(name) == "1"
        await host.driver.power_off(spec.uuid)
        assert carrier(name) == "0"  # the tap is there still, for the next start


def carrier(name: str) -> str:
    return Path(f"/sys/class/net/{name}/carrier").read_text().strip()


@contextlib.contextmanager
def bridge(name: str) -> Any:
    subprocess.run(
        ["ovs-vsctl", "--may-exist", "add-br", name, "--", "set", "bridge", name, "datapath_type=netdev"],
        check=True,
    )
    try:
        yield
    finally:
        subprocess.run(["ovs-vsctl", "del-br", name], check=True)


def ports(name: str) -> list[str]:
    shown = subprocess.run(["ovs-vsctl", "list-ports", name], check=True, capture_output=True, text=True)
    return shown.stdout.split()


@pytest.mark.capability("OVS-4")
async def test_a_port_that_is_left_to_libvirt_is_on_the_bridge_while_the_guest_runs(host: Host) -> None:
    vif: Vif = port(bridge="br-left", delegate_create=False)
    with bridge("br-left"):
        spec = await host.running(vifs=(vif,))
        assert ports("br-left") == [vif.devname]
        ids = subprocess.run(
            ["ovs-vsctl", "get", "Interface", vif.devname, "external_ids:iface-id"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert ids.stdout.strip().strip('"') == vif.port_id
        await host.driver.power_off(spec.uuid)
        await eventually(lambda: ports("br-left") == [])


# ---- KVM ----


async def test_the_probes_guest_is_a_right_one(tmp_path: Path) -> None:
    """On a processor without doubt, QEMU's own: a KVM that does not give the answer is at fault itself."""
    sector = bytes.fromhex("fa31c08ed8ea00100000")  # cli; ds = 0; jmp 0:0x1000
    (tmp_path / "boot").write_bytes(sector.ljust(510, b"\0") + b"\x55\xaa")
    (tmp_path / "code").write_bytes(kvm_probe.CODE)
    answer = tmp_path / "answer"
    qemu = subprocess.Popen(
        [
            "qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults",
            "-drive", f"file={tmp_path}/boot,format=raw",
            "-device", f"loader,file={tmp_path}/code,addr={kvm_probe.CODE_AT},force-raw=on",
            "-chardev", f"file,id=answer,path={answer}",
            "-device", f"isa-debugcon,iobase={kvm_probe.PORT},chardev=answer",
        ]
    )  # fmt: skip
    try:
        await eventually(lambda: answer.exists() and answer.stat().st_size > 0, 60)
    finally:
        qemu.kill()
        qemu.wait()
    assert answer.read_bytes() == bytes([kvm_probe.ANSWER])


async def test_kvm_is_chosen_exactly_if_the_probe_is_content(tmp_path: Path) -> None:
    async with opened(tmp_path / "instances", virt_type="auto") as host:
        fault = await kvm_fault()
        print(f"KVM on this machine: {fault or 'works'}")
        assert host.driver.virt_type == ("qemu" if fault else "kvm")


# ---- what cannot be started here is at least right ----


@pytest.mark.parametrize(
    "wanted",
    [
        {"windows": True, "hide_hypervisor": True, "pmu": False},
        {"uefi": True, "machine": Q35, "cdrom_bus": "sata"},
        {"uefi": True, "secure_boot": True, "machine": Q35, "cdrom_bus": "scsi"},
        {"machine": Q35, "disk_bus": "scsi", "cdrom_bus": "scsi", "boot_menu": True, "serial_ports": 3},
        {"watchdog": "reset", "agent": True, "rng_rate": (512, 1000), "video_model": "qxl"},
    ],
)
@pytest.mark.parametrize("cpu", [Cpu(), Cpu(mode="host-model"), Cpu(mode="host-passthrough")])
async def test_libvirts_schema_allows_it(host: Host, wanted: dict[str, Any], cpu: Cpu) -> None:
    specs = {
        "quota:vif_inbound_average": "10",
        "quota:vif_outbound_peak": "5",
        "quota:disk_read_iops_sec": "9",
    }
    ports = (port(), port(delegate_create=False), port(details={"ovs_hybrid_plug": True}))
    plan = Blueprint(
        guest=guest(None, vifs=ports, flavor={"extra_specs": specs}, name="<&>"),
        hardware=hardware(**wanted),
        files=[
            DiskFile(path=Path("/i/disk"), format="qcow2", boot=True),
            DiskFile(path=Path("/i/disk.config"), format="raw", kind="cdrom", readonly=True),
        ],
        console=Path("/i/console.log"),
        virt_type="kvm",
        cpu=cpu,
        cache="none",
        compute_id="c",
        started_at=1,
    )
    libvirt = host.driver._connection.libvirt
    text = domain_xml(plan, host.options)

    def define(link: Any) -> None:
        if "type='kvm'" not in link.getCapabilities():
            pytest.skip("libvirt knows no KVM on this host")
        link.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()

    await host.driver._connection.call(define)


async def test_a_guest_takes_its_new_name_when_it_is_started_again(host: Host) -> None:
    """The operator's template of names has changed in between."""
    spec = await host.running(domain="instance-00000001")
    assert "<name>instance-00000001</name>" in await host.domain_xml(spec)
    await host.driver.power_off(spec.uuid)
    renamed = msgspec.structs.replace(spec, domain=f"lab-{spec.uuid}")
    await host.driver.start(renamed, paused=True)
    assert f"<name>lab-{spec.uuid}</name>" in await host.domain_xml(spec)
    assert list(await host.driver.guests()) == [spec.uuid]
