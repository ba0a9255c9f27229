"""What image and flavor ask for, and what a guest gets."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.errors import Failed, HostFault
from kilonova.virt.libvirt.capabilities import Machine
from kilonova.virt.libvirt.hardware import Hardware, choose, machine_type
from kilonova.virt.libvirt.topology import Topology
from tests.unit.virt.machines import PC, Q35, machine
from tests.unit.virt.sources import flavor


def chosen(
    properties: dict[str, str] | None = None,
    specs: dict[str, str] | None = None,
    on: Machine = PC,
    **more: Any,
) -> Hardware:
    return choose(properties or {}, flavor(extra_specs=specs or {}, **more), on, vnc=True)


def test_without_wishes() -> None:
    got = chosen()
    assert got == Hardware(machine=PC, topology=Topology())
    assert (got.disk_bus, got.cdrom_bus, got.vif_model, got.video_model) == ("virtio", "ide", "virtio", "vga")
    assert got.rng and not got.agent and not got.uefi and got.watchdog is None
    assert chosen(on=Q35).cdrom_bus == "scsi"  # there is no IDE, and cloud kernels have no AHCI
    assert choose({}, flavor(), PC, vnc=False).video_model == "none"


@pytest.mark.parametrize(
    ("properties", "specs", "field", "value"),
    [
        ({"hw_disk_bus": "scsi"}, {}, "disk_bus", "scsi"),
        ({"hw_cdrom_bus": "sata"}, {}, "cdrom_bus", "sata"),
        ({"hw_scsi_model": "lsilogic"}, {}, "scsi_model", "lsilogic"),
        ({"hw_vif_model": "e1000"}, {}, "vif_model", "e1000"),
        ({"hw_video_model": "cirrus"}, {}, "video_model", "cirrus"),
        ({"hw_video_ram": "16"}, {"hw_video:ram_max_mb": "64"}, "video_ram_mib", 16),
        ({"hw_watchdog_action": "reset"}, {}, "watchdog", "reset"),
        ({"hw_watchdog_action": "reset"}, {"hw:watchdog_action": "poweroff"}, "watchdog", "poweroff"),
        ({"hw_watchdog_action": "reset"}, {"hw:watchdog_action": "disabled"}, "watchdog", None),
        ({"hw_qemu_guest_agent": "yes"}, {}, "agent", True),
        ({"hw_qemu_guest_agent": "False"}, {}, "agent", False),
        ({"hw_pointer_model": "ps2mouse"}, {}, "pointer", "ps2mouse"),
        ({"hw_firmware_type": "uefi"}, {}, "uefi", True),
        ({"hw_firmware_type": "uefi", "os_secure_boot": "required"}, {}, "secure_boot", True),
        ({"hw_firmware_type": "uefi", "os_secure_boot": "optional"}, {}, "secure_boot", False),
        ({"os_type": "windows"}, {}, "windows", True),
        ({"img_hide_hypervisor_id": "true"}, {}, "hide_hypervisor", True),
        ({}, {"hw:hide_hypervisor_id": "true"}, "hide_hypervisor", True),
        ({"hw_pmu": "off"}, {}, "pmu", False),
        ({"hw_boot_menu": "true"}, {}, "boot_menu", True),
        ({"hw_serial_port_count": "2"}, {"hw:serial_port_count": "3"}, "serial_ports", 3),
        ({}, {"hw_rng:allowed": "False"}, "rng", False),
        ({"hw_rng_model": "virtio"}, {"hw_rng:allowed": "True"}, "rng", True),
        ({}, {"hw_rng:rate_bytes": "512"}, "rng_rate", (512, 1000)),
        ({}, {"hw_rng:rate_bytes": "512", "hw_rng:rate_period": "50"}, "rng_rate", (512, 50)),
    ],
)
def test_each_wish(properties: dict[str, str], specs: dict[str, str], field: str, value: object) -> None:
    assert getattr(chosen(properties, specs), field) == value


def test_topology_of_flavor_before_image() -> None:
    image = {"hw_cpu_sockets": "1", "hw_cpu_threads": "2"}
    assert chosen(image, vcpus=4).topology == Topology(sockets=1, cores=2, threads=2)
    got = chosen(image, {"hw:cpu_sockets": "2"}, vcpus=4).topology
    assert got == Topology(sockets=2, cores=1, threads=2)
    for name in ("hw:cpu_max_sockets", "hw:max_cpu_sockets"):
        assert chosen({}, {name: "1"}, vcpus=4).topology == Topology(sockets=1, cores=4, threads=1)


@pytest.mark.parametrize(
    ("properties", "specs", "words"),
    [
        ({"hw_disk_bus": "floppy"}, {}, "hw_disk_bus is 'floppy'.*one of virtio"),
        ({"hw_vif_model": "token-ring"}, {}, "hw_vif_model"),
        ({"hw_video_model": "8k"}, {}, "hw_video_model"),
        ({"hw_scsi_model": "x"}, {}, "hw_scsi_model"),
        ({"hw_rng_model": "dice"}, {}, "hw_rng_model"),
        ({"hw_watchdog_action": "bark"}, {}, "hw_watchdog_action"),
        ({"hw_qemu_guest_agent": "perhaps"}, {}, "true or false"),
        ({"hw_cpu_sockets": "0"}, {}, "hw_cpu_sockets is '0'"),
        ({"hw_cpu_cores": "½"}, {}, "hw_cpu_cores"),
        ({"hw_firmware_type": "openboot"}, {}, "hw_firmware_type"),
        ({"os_secure_boot": "required"}, {}, "needs hw_firmware_type = uefi"),
        ({"hw_video_ram": "64"}, {}, "64 MiB of video memory, and the flavor allows 0"),
        ({"hw_video_ram": "much"}, {}, "hw_video_ram"),
        ({"hw_serial_port_count": "5"}, {}, "a PC has 4"),
        ({}, {"hw_rng:allowed": "sometimes"}, "hw_rng:allowed"),
        ({}, {"hw_rng:rate_bytes": "-1"}, "hw_rng:rate_bytes"),
        ({}, {"hw:cpu_max_sockets": "1", "hw:cpu_max_cores": "1", "hw:cpu_max_threads": "1"}, "do not fit"),
    ],
)
def test_wishes_that_make_no_sense_fail_everywhere(
    properties: dict[str, str], specs: dict[str, str], words: str
) -> None:
    with pytest.raises(Failed, match=words):
        chosen(properties, specs, vcpus=2)


def test_ide_on_q35_is_refused_before_libvirt_does() -> None:
    with pytest.raises(Failed, match="no IDE on the machine type q35"):
        chosen({"hw_disk_bus": "ide"}, on=Q35)


@pytest.mark.parametrize(
    ("properties", "specs", "words"),
    [
        ({}, {"hw:mem_encryption": "true"}, "encrypted memory"),
        ({"hw_tpm_version": "2.0"}, {}, "a TPM"),
        ({}, {"accel:device_profile": "fpga"}, "an accelerator"),
        ({"hw_viommu_model": "intel"}, {}, "an IOMMU"),
    ],
)
def test_what_this_driver_cannot_do_is_said_and_not_left_out(
    properties: dict[str, str], specs: dict[str, str], words: str
) -> None:
    with pytest.raises(HostFault, match=words):
        chosen(properties, specs)


@pytest.mark.parametrize(
    "specs",
    [{"hw:cpu_policy": "shared"}, {"hw:mem_page_size": "small"}, {"hw:mem_encryption": "False"}],
)
def test_what_asks_for_nothing_is_fine(specs: dict[str, str]) -> None:
    assert chosen({}, specs) == chosen()


def test_what_this_hosts_qemu_lacks_is_the_hosts_fault() -> None:
    poor = machine(disk_buses=frozenset({"ide"}), video_models=frozenset({"vga"}), firmware=frozenset())
    with pytest.raises(HostFault, match="disk bus 'virtio' for pc-i440fx"):
        chosen(on=poor)
    ide = {"hw_disk_bus": "ide"}
    with pytest.raises(HostFault, match="video model 'qxl'"):
        chosen({**ide, "hw_video_model": "qxl"}, on=poor)
    with pytest.raises(HostFault, match="firmware 'efi'"):
        chosen({**ide, "hw_firmware_type": "uefi"}, on=poor)
    with pytest.raises(HostFault, match=r"has 300 processors, and pc-i440fx-.* takes 255"):
        chosen(vcpus=300)


def test_machine_type_and_architecture() -> None:
    assert machine_type({}, "x86_64", "pc") == "pc"
    assert machine_type({"hw_machine_type": "q35"}, "x86_64", "pc") == "q35"
    for arch in ("x86_64", "amd64", "AMD64"):
        assert machine_type({"hw_architecture": arch}, "x86_64", "pc") == "pc"
    with pytest.raises(HostFault, match="for aarch64, and this host has x86_64"):
        machine_type({"hw_architecture": "aarch64"}, "x86_64", "pc")
