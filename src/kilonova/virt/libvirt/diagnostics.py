"""A guest's counters, out of libvirt's statistics."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

from kilonova.clock import SECOND
from kilonova.model.states import POWER_NAMES, Power
from kilonova.rpc.messages import CpuDiagnostics, Diagnostics, DiskDiagnostics, NicDiagnostics
from kilonova.virt.libvirt.disks import CONFIG
from kilonova.virt.libvirt.domains import POWER

Stats = Mapping[str, Any]


def wanted(libvirt: Any) -> int:
    """The groups of statistics that `diagnostics` reads."""
    names = ("STATE", "CPU_TOTAL", "BALLOON", "VCPU", "INTERFACE", "BLOCK")
    total = 0
    for name in names:
        total |= getattr(libvirt, f"VIR_DOMAIN_STATS_{name}")
    return total


def diagnostics(xml: str, stats: Stats, virt_type: str, started_at: int, now: int) -> Diagnostics:
    """``started_at`` and ``now`` in microseconds; 0 for a start that is not known."""
    root = ET.fromstring(xml)  # libvirt's own words
    sources = [source.get("file", "") for source in root.iterfind("devices/disk/source")]
    state = POWER.get(stats.get("state.state", 0), Power.NOSTATE)
    return Diagnostics(
        state=POWER_NAMES[state],
        driver="libvirt",
        hypervisor=virt_type,
        hypervisor_os="linux",
        uptime=max(0, now - started_at) // SECOND if started_at else None,
        config_drive=any(source.endswith(f"/{CONFIG}") for source in sources),
        memory_maximum=_mib(stats.get("balloon.maximum")),
        memory_used=_used(stats),
        cpus=tuple(
            CpuDiagnostics(id=number, time=stats.get(f"vcpu.{number}.time"))
            for number in range(stats.get("vcpu.current", 0))
        ),
        disks=tuple(_disk(stats, number) for number in range(stats.get("block.count", 0))),
        nics=_nics(root, stats),
    )


def _mib(kib: int | None) -> int | None:
    return None if kib is None else kib // 1024


def _used(stats: Stats) -> int | None:
    """What the guest itself says, through its balloon; None until it has."""
    available, unused = stats.get("balloon.available"), stats.get("balloon.unused")
    return None if available is None or unused is None else _mib(available - unused)


def _disk(stats: Stats, number: int) -> DiskDiagnostics:
    at = f"block.{number}."
    return DiskDiagnostics(
        read_bytes=stats.get(at + "rd.bytes"),
        read_requests=stats.get(at + "rd.reqs"),
        write_bytes=stats.get(at + "wr.bytes"),
        write_requests=stats.get(at + "wr.reqs"),
        errors_count=stats.get(at + "errors"),
    )


def _nics(root: ET.Element, stats: Stats) -> tuple[NicDiagnostics, ...]:
    macs = {}
    for interface in root.iterfind("devices/interface"):
        mac, target = interface.find("mac"), interface.find("target")
        if mac is not None and target is not None:
            macs[target.get("dev", "")] = mac.get("address", "")
    found = []
    for number in range(stats.get("net.count", 0)):
        at = f"net.{number}."
        counters = {
            f"{ours}_{name}": stats.get(f"{at}{ours}.{theirs}")
            for ours in ("rx", "tx")
            for name, theirs in (
                ("octets", "bytes"),
                ("packets", "pkts"),
                ("errors", "errs"),
                ("drop", "drop"),
            )
        }
        found.append(NicDiagnostics(mac_address=macs.get(stats.get(at + "name", ""), ""), **counters))
    return tuple(found)
