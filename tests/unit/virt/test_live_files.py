"""Files in a live migration."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.clock import SECOND
from kilonova.errors import Failed, HostFault, Invalid
from kilonova.model.pci import PciDevice
from kilonova.rpc.moves import ArrivalFacts, LiveWish
from kilonova.virt.libvirt import live_files
from kilonova.virt.libvirt.disks import CONFIG, CONSOLE, DiskFile
from kilonova.virt.libvirt.live import check_devices_stay, check_space, decide, delegates
from kilonova.virt.libvirt.live_files import MARK, Sizes
from tests.unit.virt.sources import guest
from tests.unit.virt.test_moved_xml import vif

NOW = 1_800_000_000 * SECOND


@pytest.mark.capability("MG-LM-7")
def test_probes_are_new_seen_and_forgotten_ones_go(tmp_path: Path) -> None:
    first = live_files.put_probe(tmp_path, NOW)
    os.utime(tmp_path / first, (1_800_000_000, 1_800_000_000))
    assert live_files.probe_path(tmp_path, first).exists()
    second = live_files.put_probe(tmp_path, NOW + 3599 * SECOND)
    os.utime(tmp_path / second, (1_800_003_599, 1_800_003_599))
    assert first != second and (tmp_path / first).exists()
    live_files.put_probe(tmp_path, NOW + 3601 * SECOND)
    assert not (tmp_path / first).exists() and (tmp_path / second).exists()


@pytest.mark.capability("MG-LM-7")
@given(
    st.text().filter(lambda name: not re.fullmatch(r"\.probe-[0-9a-f]{32}", name))
    | st.sampled_from(["..", "../x", ".probe-", "/etc/passwd"])
    | st.sampled_from([f".probe-{'a' * 32}{end}" for end in ("/..", "a", "\n")])
)
def test_no_other_file_is_looked_at_or_removed(name: str) -> None:
    with pytest.raises(Invalid, match="is no file with which"):
        live_files.probe_path(Path("/"), name)


@pytest.mark.capability("MG-LM-8")
def test_block_or_shared() -> None:
    here = Path("/i")
    assert decide(LiveWish(), shared=False, directory=here)
    assert not decide(LiveWish(), shared=True, directory=here)
    assert decide(LiveWish(block=True), shared=False, directory=here)
    assert not decide(LiveWish(block=False), shared=True, directory=here)
    with pytest.raises(HostFault, match="/i is not on local storage"):
        decide(LiveWish(block=True), shared=True, directory=here)
    with pytest.raises(HostFault, match="/i is not on shared storage"):
        decide(LiveWish(block=False), shared=False, directory=here)


@pytest.mark.capability("MG-LM-8")
def test_disks_have_to_fit() -> None:
    sizes = Sizes(virtual={"disk": 60, "disk.swap": 40}, actual={"disk": 6, "disk.swap": 4})
    for free, over_commit, fits in (
        (100, False, True),
        (99, False, False),
        (10, True, True),
        (9, True, False),
    ):
        facts = ArrivalFacts(host="h", probe="p", disk_available=free)
        wish = LiveWish(disk_over_commit=over_commit)
        if fits:
            check_space(sizes, wish, facts)
        else:
            with pytest.raises(HostFault, match="The disk of h is too small"):
                check_space(sizes, wish, facts)


@pytest.mark.capability("MG-LM-4")
def test_a_guest_with_devices_of_its_host_stays() -> None:
    check_devices_stay(guest(None))
    device = PciDevice(address="0000:81:00.1", vendor_id="8086", product_id="10ed")
    with pytest.raises(HostFault, match=r"devices of its host \(0000:81:00\.1\)"):
        check_devices_stay(guest(None, pci=(device,)))


@pytest.mark.capability("OVS-13")
def test_ports_that_os_vif_can_make_are_named() -> None:
    """Plain ones, wherever they are now: with hybrid plug there is a Linux bridge, others have no port."""
    ports = (
        vif(1),
        vif(2, delegate_create=False, vif_type="unbound"),
        vif(3, details={"ovs_hybrid_plug": True}),
        vif(4, vnic_type="direct"),
    )
    assert delegates(guest(None, vifs=ports)) == (vif(1).port_id, vif(2).port_id)
    assert delegates(guest(None)) == ()


def test_sizes_are_the_guests_and_the_hosts(tmp_path: Path) -> None:
    raw = tmp_path / "disk.eph0"
    raw.touch()
    os.truncate(raw, 1 << 20)
    files = [
        DiskFile(path=raw, format="raw"),
        DiskFile(path=tmp_path / CONFIG, format="raw", kind="cdrom", readonly=True),
    ]
    assert live_files.sizes(files) == Sizes(virtual={"disk.eph0": 1 << 20}, actual={"disk.eph0": 0})
    with pytest.raises(HostFault, match="is damaged"):
        live_files.sizes([DiskFile(path=raw, format="qcow2")])


# ---- small files ----


def test_what_libvirt_does_not_send(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    (source / CONFIG).write_bytes(b"drive" * 1000)
    (source / CONSOLE).write_bytes(b"x" * 100_000 + b"end")
    drive = DiskFile(path=source / CONFIG, format="raw", kind="cdrom", readonly=True)
    packed = live_files.pack(source, [drive])
    live_files.unpack(target, packed)
    live_files.unpack(target, packed)
    assert (target / CONFIG).read_bytes() == b"drive" * 1000
    assert (target / CONSOLE).read_bytes() == (b"x" * 100_000 + b"end")[-(64 << 10) :]
    assert (target / CONFIG).stat().st_mode & 0o777 == 0o600
    vfat = DiskFile(path=source / CONFIG, format="raw")  # a disk like others
    assert live_files.pack(source, [vfat]).keys() == {CONSOLE}


def test_a_drive_that_is_too_large_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes(os.urandom(600 << 10))
    drive = DiskFile(path=tmp_path / CONFIG, format="raw", kind="cdrom", readonly=True)
    with pytest.raises(HostFault, match="too large to be sent along"):
        live_files.pack(tmp_path, [drive])


@pytest.mark.parametrize("name", ["disk", "../x", "/etc/passwd", ""])
def test_nothing_else_comes(tmp_path: Path, name: str) -> None:
    with pytest.raises(Failed, match="does not come with a guest"):
        live_files.unpack(tmp_path, {name: zlib.compress(b"x")})
    assert list(tmp_path.iterdir()) == []


def test_a_small_file_does_not_unfold_into_a_huge_one(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="is too large"):
        live_files.unpack(tmp_path, {CONSOLE: zlib.compress(b"\0" * (2 << 20))})
    assert list(tmp_path.iterdir()) == []


# ---- arriving ----


@pytest.mark.capability("MG-LM-12")
def test_a_directory_is_made_and_one_of_a_former_try_made_anew(tmp_path: Path) -> None:
    here = tmp_path / "guest"
    (tmp_path / ".guest.new").mkdir()  # of somebody who died here
    live_files.arrive(here)
    assert [each.name for each in here.iterdir()] == [MARK]
    (here / "disk").write_bytes(b"half")
    live_files.arrive(here)
    assert [each.name for each in here.iterdir()] == [MARK]
    assert [each.name for each in tmp_path.iterdir()] == ["guest"]


@pytest.mark.capability("MG-LM-12")
def test_another_directory_is_left_alone(tmp_path: Path) -> None:
    here = tmp_path / "guest"
    live_files.arrive(here)
    (here / "disk").write_bytes(b"whole")
    live_files.settled(here)
    live_files.settled(here)
    with pytest.raises(HostFault, match="left alone"):
        live_files.arrive(here)
    assert (here / "disk").read_bytes() == b"whole"
