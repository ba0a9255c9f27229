"""What the libvirt driver is told: the part of the settings that it needs, checked."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING, NoReturn

import msgspec

from kilonova.errors import Failed
from kilonova.model.cpus import parse_cpus
from kilonova.virt.libvirt.host_topology import CpuSets, NetworkCells
from kilonova.virt.libvirt.live_options import LiveOptions, live_options_from

if TYPE_CHECKING:
    from kilonova.settings import Settings


class LibvirtOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds."""

    host_ip: str = "127.0.0.1"
    connection_uri: str = "qemu:///system"
    virt_type: str = "auto"  # auto, kvm, qemu
    cpu_mode: str | None = None  # host-model, host-passthrough, maximum, custom, none
    cpu_models: tuple[str, ...] = ()
    machine_type: str = "pc"
    tb_cache_mib: int | None = None
    soft_reboot_timeout: float = 120.0
    stopped_delay: float = 15.0
    detach_attempts: int = 8
    detach_timeout: float = 20.0
    pcie_ports: int = 0  # 0: as many as xml.domain has by itself
    config_drive_format: str = "iso9660"  # or vfat
    vnc: bool = True
    vnc_listen: str = "127.0.0.1"
    balloon_period: int = 10
    realtime_priority: int = 1
    cpus: CpuSets = CpuSets()
    reserved_pages: dict[tuple[int, int], int] = {}  # (cell, KiB) -> pages
    networks: NetworkCells = NetworkCells()
    device_specs: tuple[str, ...] = ()  # JSON
    pci_in_placement: bool = False
    live: LiveOptions = LiveOptions()


def options_from(settings: Settings) -> LibvirtOptions:
    """The options of this host's driver.  Raises Failed for those that make no sense."""
    number, text, listed = settings.number, settings.text, settings.listed
    cache = settings.options["libvirt"]["tb_cache_size"]
    return LibvirtOptions(
        host_ip=text("my_ip"),
        connection_uri=text("connection_uri", "libvirt"),
        virt_type=text("virt_type", "libvirt"),
        cpu_mode=text("cpu_mode", "libvirt") or None,
        cpu_models=tuple(str(model) for model in listed("cpu_models", "libvirt")),
        machine_type=_machine_type(text("hw_machine_type", "libvirt")),
        tb_cache_mib=cache if isinstance(cache, int) else None,
        soft_reboot_timeout=float(number("wait_soft_reboot_seconds", "libvirt")),
        detach_attempts=number("device_detach_attempts", "libvirt"),
        detach_timeout=float(number("device_detach_timeout", "libvirt")),
        pcie_ports=number("num_pcie_ports", "libvirt"),
        stopped_delay=float(number("stopped_event_delay", "libvirt")),
        config_drive_format=text("config_drive_format"),
        vnc=settings.flag("enabled", "vnc"),
        vnc_listen=text("server_listen", "vnc"),
        realtime_priority=number("realtime_scheduler_priority", "libvirt"),
        cpus=CpuSets(
            shared=_cpus(text("cpu_shared_set", "compute"), "cpu_shared_set"),
            dedicated=_cpus(text("cpu_dedicated_set", "compute"), "cpu_dedicated_set"),
        ),
        reserved_pages=reserved_pages(listed("reserved_huge_pages")),
        networks=NetworkCells(
            physical={
                str(name): _cells(listed("numa_nodes", f"neutron_physnet_{name}"))
                for name in listed("physnets", "neutron")
            },
            tunnels=_cells(listed("numa_nodes", "neutron_tunnel")),
        ),
        device_specs=tuple(str(each) for each in listed("device_spec", "pci")),
        pci_in_placement=settings.flag("report_in_placement", "pci"),
        live=live_options_from(settings),
    )


def _machine_type(text: str) -> str:
    """Nova writes ``x86_64=q35``, for several architectures; the type alone is enough here."""
    for entry in text.replace(" ", "").split(","):
        arch, equals, machine = entry.rpartition("=")
        if not equals or arch == platform.machine():
            return machine
    return "pc"


def _cpus(text: str, name: str) -> frozenset[int] | None:
    if not text.strip():
        return None
    try:
        found = parse_cpus(text)
    except ValueError as error:
        raise Failed(f"[compute]{name} = {text}: {error}.") from error
    if not found:
        raise Failed(f"[compute]{name} = {text}: no CPU is left.")
    return found


def _cells(numbers: list[object]) -> frozenset[int]:
    return frozenset(int(str(number)) for number in numbers)


def reserved_pages(entries: list[object]) -> dict[tuple[int, int], int]:
    """``node:0,size:2048,count:64`` as oslo.config has read it; sizes are in KiB, or with their unit.

    Raises Failed.
    """
    found = {}
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"node", "size", "count"}:
            _wrong_pages(entry, "it has to have node, size and count")
        size = _SIZE.fullmatch(entry["size"].strip())
        if size is None or not entry["node"].isdecimal() or not entry["count"].isdecimal():
            _wrong_pages(entry, "node and count are numbers, size is in KiB or like 1GB")
        key = (int(entry["node"]), int(size[1]) * _UNITS[(size[2] or "k").lower()])
        if key in found:
            _wrong_pages(entry, "these pages are reserved twice")
        found[key] = int(entry["count"])
    return found


def _wrong_pages(entry: object, what: str) -> NoReturn:
    shown = ",".join(f"{key}:{value}" for key, value in entry.items()) if isinstance(entry, dict) else entry
    raise Failed(f"[DEFAULT]reserved_huge_pages = {shown}: {what}.")


_SIZE = re.compile(r"(\d{1,9})([kmgKMG])?(?:i?[bB])?", re.ASCII)
_UNITS = {"k": 1, "m": 1 << 10, "g": 1 << 20}
