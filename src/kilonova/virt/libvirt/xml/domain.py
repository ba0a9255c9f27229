"""The whole domain."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import msgspec

import kilonova
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt.disks import DiskFile
from kilonova.virt.libvirt.hardware import Hardware
from kilonova.virt.libvirt.options import LibvirtOptions
from kilonova.virt.libvirt.placement import Placement
from kilonova.virt.libvirt.topology import Topology
from kilonova.virt.libvirt.volumes import VolumeFile
from kilonova.virt.libvirt.xml import devices
from kilonova.virt.libvirt.xml.disk import disks, scsi_controller
from kilonova.virt.libvirt.xml.element import element, on, yes
from kilonova.virt.libvirt.xml.interface import interface
from kilonova.virt.libvirt.xml.metadata import metadata
from kilonova.virt.libvirt.xml.placement import (
    cputune,
    guest_cells,
    hostdev,
    memory_backing,
    numatune,
    vcpu,
)

PCIE_PORTS = 16  # devices that a q35 machine takes, those added later included


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """``model`` only with mode custom; mode None: whatever QEMU's default is."""

    mode: str | None = None
    model: str | None = None


class Blueprint(msgspec.Struct, frozen=True, kw_only=True):
    """All that a domain is made of.

    ``compute_id`` is the uuid by which our guests are told from those of others; ``started_at`` in
    microseconds.
    """

    guest: GuestSpec
    hardware: Hardware
    files: Sequence[DiskFile]
    console: Path
    virt_type: str  # kvm or qemu
    cpu: Cpu
    cache: str  # QEMU's cache mode of disks
    compute_id: str
    started_at: int
    placement: Placement = Placement()
    volumes: Sequence[VolumeFile] = ()


def domain_xml(plan: Blueprint, options: LibvirtOptions) -> str:
    """Raises Failed or HostFault for what cannot be built."""
    guest, hardware = plan.guest, plan.hardware
    domain = element(
        "domain",
        {"type": plan.virt_type},
        element("name", text=guest.domain or guest.uuid),
        element("uuid", text=guest.uuid),
        metadata(guest, plan.compute_id, plan.started_at),
        element("memory", {"unit": "MiB"}, text=guest.flavor.memory_mb),
        memory_backing(plan.placement),
        vcpu(guest.flavor.vcpus, plan.placement),
        cputune(plan.placement, options.realtime_priority, guest.flavor.extra_specs),
        numatune(plan.placement),
        _sysinfo(guest),
        _os(hardware),
        _features(plan, options),
        _cpu(plan.cpu, hardware.topology, guest_cells(plan.placement)),
        _clock(plan),
        element("on_poweroff", text="destroy"),
        element("on_reboot", text="restart"),
        element("on_crash", text="destroy"),
        _devices(plan, options),
    )
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def _sysinfo(guest: GuestSpec) -> ET.Element:
    """What cloud-init looks at to know that it is in OpenStack: the product's name."""
    entries = {
        "manufacturer": "Kilonova",
        "product": "OpenStack Compute",
        "version": kilonova.__version__,
        "serial": guest.uuid,
        "uuid": guest.uuid,
        "family": "Virtual Machine",
    }
    system = element("system", None, *(element("entry", {"name": k}, text=v) for k, v in entries.items()))
    return element("sysinfo", {"type": "smbios"}, system)


def _os(hardware: Hardware) -> ET.Element:
    secure = element(
        "firmware",
        None,
        element("feature", {"enabled": yes(hardware.secure_boot), "name": "secure-boot"}),
    )
    machine = hardware.machine
    return element(
        "os",
        {"firmware": "efi" if hardware.uefi else None},
        element("type", {"arch": machine.arch, "machine": machine.name}, text="hvm"),
        secure if hardware.uefi else None,
        element("bootmenu", {"enable": "yes"}) if hardware.boot_menu else None,
        element("smbios", {"mode": "sysinfo"}),
    )


def _features(plan: Blueprint, options: LibvirtOptions) -> ET.Element:
    hardware, kvm = plan.hardware, plan.virt_type == "kvm"
    cache = None
    if options.tb_cache_mib and not kvm:
        cache = element("tcg", None, element("tb-cache", {"unit": "MiB"}, text=options.tb_cache_mib))
    hidden = element("kvm", None, element("hidden", {"state": "on"}))
    return element(
        "features",
        None,
        element("acpi"),
        element("apic"),
        _hyperv(hardware) if kvm and hardware.windows else None,
        hidden if kvm and hardware.hide_hypervisor else None,
        None if hardware.pmu is None else element("pmu", {"state": on(hardware.pmu)}),
        element("smm", {"state": "on"}) if hardware.secure_boot else None,
        cache,
    )


def _hyperv(hardware: Hardware) -> ET.Element:
    """What Windows wants to see of its host, or it wastes time waiting for its own clock."""
    plain = ("relaxed", "vapic", "vpindex", "synic", "runtime")
    return element(
        "hyperv",
        {"mode": "custom"},
        *(element(name, {"state": "on"}) for name in plain),
        element("spinlocks", {"state": "on", "retries": 8191}),
        element("vendor_id", {"state": "on", "value": "1234567890ab"}) if hardware.hide_hypervisor else None,
    )


def _cpu(cpu: Cpu, topology: Topology, cells: ET.Element | None) -> ET.Element:
    shape = element("topology", msgspec.structs.asdict(topology))
    if cpu.mode is None:
        return element("cpu", None, shape, cells)
    if cpu.mode == "custom":
        model = element("model", {"fallback": "forbid"}, text=cpu.model)
        return element("cpu", {"mode": "custom", "match": "exact"}, model, shape, cells)
    return element("cpu", {"mode": cpu.mode}, shape, cells)


def _clock(plan: Blueprint) -> ET.Element:
    windows = plan.hardware.windows
    return element(
        "clock",
        {"offset": "localtime" if windows else "utc"},
        element("timer", {"name": "pit", "tickpolicy": "delay"}),
        element("timer", {"name": "rtc", "tickpolicy": "catchup"}),
        element("timer", {"name": "hpet", "present": "no"}),
        element("timer", {"name": "hypervclock", "present": "yes"})
        if windows and plan.virt_type == "kvm"
        else None,
    )


def _devices(plan: Blueprint, options: LibvirtOptions) -> ET.Element:
    guest, hardware = plan.guest, plan.hardware
    tablet = options.vnc and hardware.pointer == "usbtablet"
    return element(
        "devices",
        None,
        *disks(plan.files, hardware, plan.cache, guest.flavor.extra_specs, plan.volumes),
        scsi_controller(plan.files, hardware, plan.volumes),
        *devices.pcie((options.pcie_ports or PCIE_PORTS) if hardware.machine.is_q35 else 0),
        devices.usb(tablet or "usb" in (hardware.disk_bus, hardware.cdrom_bus)),
        *(
            interface(vif, hardware.vif_model, guest.flavor.vcpus, guest.flavor.extra_specs)
            for vif in guest.vifs
        ),
        *devices.console(plan.console, hardware.serial_ports),
        devices.agent_channel() if hardware.agent else None,
        element("input", {"type": "tablet", "bus": "usb"}) if tablet else None,
        devices.vnc(options.vnc_listen) if options.vnc else None,
        devices.video(hardware),
        *(hostdev(device) for device in guest.pci),
        devices.watchdog(hardware.watchdog),
        devices.balloon(options.balloon_period),
        devices.rng(hardware.rng_rate) if hardware.rng else None,
    )
