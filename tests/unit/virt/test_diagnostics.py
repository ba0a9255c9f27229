"""libvirt's statistics, in the form of microversion 2.48."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.rpc.messages import CpuDiagnostics, DiskDiagnostics, NicDiagnostics
from kilonova.virt.libvirt.diagnostics import diagnostics

XML = """
<domain>
  <devices>
    <disk type='file' device='disk'><source file='/i/u/disk'/></disk>
    <disk type='file' device='cdrom'><source file='/i/u/disk.config'/></disk>
    <interface type='ethernet'><mac address='fa:16:3e:00:00:02'/><target dev='tap2'/></interface>
    <interface type='ethernet'><mac address='fa:16:3e:00:00:01'/><target dev='tap1'/></interface>
  </devices>
</domain>
"""
STATS: dict[str, Any] = {
    "state.state": 1,
    "balloon.maximum": 2 * 1024 * 1024,
    "balloon.available": 1_000_000,
    "balloon.unused": 400_000,
    "vcpu.current": 2,
    "vcpu.0.time": 11,
    "vcpu.1.time": 22,
    "net.count": 2,
    "net.0.name": "tap1",
    "net.0.rx.bytes": 1,
    "net.0.rx.pkts": 2,
    "net.0.rx.errs": 3,
    "net.0.rx.drop": 4,
    "net.0.tx.bytes": 5,
    "net.0.tx.pkts": 6,
    "net.0.tx.errs": 7,
    "net.0.tx.drop": 8,
    "net.1.name": "tap2",
    "block.count": 2,
    "block.0.rd.bytes": 9,
    "block.0.rd.reqs": 10,
    "block.0.wr.bytes": 11,
    "block.0.wr.reqs": 12,
}


def test_all_counters_are_in_their_places() -> None:
    found = diagnostics(XML, STATS, "qemu", started_at=5_000_000, now=65_999_999)
    assert (found.state, found.driver, found.hypervisor, found.hypervisor_os) == (
        "running",
        "libvirt",
        "qemu",
        "linux",
    )
    assert found.uptime == 60
    assert found.config_drive is True
    assert (found.memory_maximum, found.memory_used) == (2048, 585)
    assert found.cpus == (CpuDiagnostics(id=0, time=11), CpuDiagnostics(id=1, time=22))
    assert found.disks == (
        DiskDiagnostics(read_bytes=9, read_requests=10, write_bytes=11, write_requests=12),
        DiskDiagnostics(),
    )
    assert found.nics == (
        NicDiagnostics(
            mac_address="fa:16:3e:00:00:01",
            rx_octets=1,
            rx_packets=2,
            rx_errors=3,
            rx_drop=4,
            tx_octets=5,
            tx_packets=6,
            tx_errors=7,
            tx_drop=8,
        ),
        NicDiagnostics(mac_address="fa:16:3e:00:00:02"),
    )


def test_what_is_not_known_is_not_made_up() -> None:
    found = diagnostics("<domain/>", {"state.state": 3}, "kvm", started_at=0, now=9)
    assert (found.state, found.uptime, found.config_drive) == ("paused", None, False)
    assert (found.memory_maximum, found.memory_used) == (None, None)
    assert found.cpus == found.disks == found.nics == ()


@pytest.mark.capability("PS-1", "PS-2", "PS-3")
@pytest.mark.parametrize(
    ("state", "word"),
    [
        (0, "pending"),
        (1, "running"),
        (2, "running"),  # blocked
        (3, "paused"),
        (4, "running"),  # on its way down
        (5, "shutdown"),
        (6, "crashed"),
        (7, "suspended"),
        (99, "pending"),
    ],
)
def test_states(state: int, word: str) -> None:
    assert diagnostics("<domain/>", {"state.state": state}, "kvm", 0, 0).state == word
