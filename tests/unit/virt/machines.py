"""Machine types as libvirt would describe them."""

from __future__ import annotations

from typing import Any

from kilonova.virt.libvirt.capabilities import Machine
from kilonova.virt.libvirt.hardware import Hardware
from kilonova.virt.libvirt.topology import Topology


def machine(name: str = "pc-i440fx-7.2", **more: Any) -> Machine:
    fields: dict[str, Any] = {
        "name": name,
        "arch": "x86_64",
        "max_vcpus": 255,
        "cpu_modes": frozenset({"maximum", "host-model", "custom"}),
        "cpu_models": ("qemu64", "Nehalem"),
        "cpu": "",
        "disk_buses": frozenset({"virtio", "scsi", "sata", "ide", "usb", "fdc"}),
        "video_models": frozenset({"vga", "cirrus", "qxl", "virtio", "bochs", "none"}),
        "firmware": frozenset({"efi"}),
    }
    return Machine(**{**fields, **more})


PC = machine()
Q35 = machine("pc-q35-7.2")


def hardware(**more: Any) -> Hardware:
    return Hardware(**{"machine": PC, "topology": Topology(), **more})
