"""The smaller devices."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from kilonova.virt.libvirt.hardware import Hardware
from kilonova.virt.libvirt.xml.element import element


def pcie(ports: int) -> list[ET.Element]:
    """Free places for devices: a q35 machine has none of itself.  The root has to be named before them."""
    if not ports:
        return []
    root = element("controller", {"type": "pci", "index": 0, "model": "pcie-root"})
    port = {"type": "pci", "model": "pcie-root-port"}
    return [root, *(element("controller", port) for _ in range(ports))]


def usb(wanted: bool) -> ET.Element:
    """xHCI does not wake the host a thousand times a second, as libvirt's default does."""
    return element("controller", {"type": "usb", "index": 0, "model": "qemu-xhci" if wanted else "none"})


def console(log: Path, ports: int) -> list[ET.Element]:
    """Serial ports; what comes out of the first is kept by virtlogd, over restarts of the guest too."""
    kept = element("log", {"file": str(log), "append": "on"})
    return [
        *(
            element("serial", {"type": "pty"}, None if port else kept, element("target", {"port": port}))
            for port in range(ports)
        ),
        element("console", {"type": "pty"}, element("target", {"type": "serial", "port": 0})),
    ]


def agent_channel() -> ET.Element:
    return element(
        "channel",
        {"type": "unix"},
        element("target", {"type": "virtio", "name": "org.qemu.guest_agent.0"}),
    )


def vnc(listen: str) -> ET.Element:
    return element(
        "graphics",
        {"type": "vnc", "port": -1, "autoport": "yes", "listen": listen},
        element("listen", {"type": "address", "address": listen}),
    )


def video(hardware: Hardware) -> ET.Element:
    ram = None
    if hardware.video_ram_mib and hardware.video_model not in ("none", "virtio"):
        ram = hardware.video_ram_mib * 1024
    return element("video", None, element("model", {"type": hardware.video_model, "vram": ram}))


def watchdog(action: str | None) -> ET.Element | None:
    return None if action is None else element("watchdog", {"model": "i6300esb", "action": action})


def balloon(period: int) -> ET.Element:
    """``period``: seconds between the guest's reports of its memory; 0 for none."""
    stats = element("stats", {"period": period}) if period > 0 else None
    return element("memballoon", {"model": "virtio"}, stats)


def rng(rate: tuple[int, int] | None) -> ET.Element:
    """Random numbers of the host; ``rate`` is bytes in a period of milliseconds."""
    limit = element("rate", {"bytes": rate[0], "period": rate[1]}) if rate else None
    return element(
        "rng", {"model": "virtio"}, limit, element("backend", {"model": "random"}, text="/dev/urandom")
    )
