"""What the libvirt driver is told: the part of the settings that it needs, checked."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from kilonova.settings import Settings


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the host may be given out, and what is kept back."""

    cpu: float = 4.0
    ram: float = 1.0
    disk: float = 1.0
    reserved_cpus: int = 0
    reserved_memory_mb: int = 512
    reserved_disk_mb: int = 0


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
    config_drive_format: str = "iso9660"  # or vfat
    vnc: bool = True
    vnc_listen: str = "127.0.0.1"
    balloon_period: int = 10
    ratios: Ratios = Ratios()


def options_from(settings: Settings) -> LibvirtOptions:
    """The options of this host's driver."""
    number, text = settings.number, settings.text
    cache = settings.options["libvirt"]["tb_cache_size"]
    models = settings.options["libvirt"]["cpu_models"]
    assert isinstance(models, list)
    return LibvirtOptions(
        host_ip=text("my_ip"),
        connection_uri=text("connection_uri", "libvirt"),
        virt_type=text("virt_type", "libvirt"),
        cpu_mode=text("cpu_mode", "libvirt") or None,
        cpu_models=tuple(str(model) for model in models),
        machine_type=_machine_type(text("hw_machine_type", "libvirt")),
        tb_cache_mib=cache if isinstance(cache, int) else None,
        soft_reboot_timeout=float(number("wait_soft_reboot_seconds", "libvirt")),
        config_drive_format=text("config_drive_format"),
        vnc=settings.flag("enabled", "vnc"),
        vnc_listen=text("server_listen", "vnc"),
        ratios=Ratios(
            cpu=settings.real("cpu_allocation_ratio"),
            ram=settings.real("ram_allocation_ratio"),
            disk=settings.real("disk_allocation_ratio"),
            reserved_cpus=number("reserved_host_cpus"),
            reserved_memory_mb=number("reserved_host_memory_mb"),
            reserved_disk_mb=number("reserved_host_disk_mb"),
        ),
    )


def _machine_type(text: str) -> str:
    """Nova writes ``x86_64=q35``, for several architectures; the type alone is enough here."""
    for entry in text.replace(" ", "").split(","):
        arch, equals, machine = entry.rpartition("=")
        if not equals or arch == platform.machine():
            return machine
    return "pc"
