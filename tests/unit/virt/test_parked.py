"""Guests' files that move while the guest is off: put aside, taken back, adopted, sent, and made larger."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from kilonova.errors import Failed, HostFault
from kilonova.rpc.messages import GuestSpec
from kilonova.threads import Threads
from kilonova.virt.libvirt.parked import ParkedFiles
from tests.unit.virt.sources import guest
from tests.unit.virt.test_disks import DATA, GIB, Host, info

UUIDS = ["", "../x", "0b6f3f0e-7d57-4b8b-9a43-1d1d2f0f8c1", "_base"]


class Parking(Host):
    """A host with files of guests, some of them put aside."""

    def __init__(self, directory: Path, threads: Threads) -> None:
        super().__init__(directory, threads)
        self.parked = ParkedFiles(self.files, threads)
        self.image = self.images.add(DATA)

    def guest(self) -> GuestSpec:
        return guest(self.image, flavor={"root_gb": 1})

    def here(self, spec: GuestSpec) -> dict[str, bytes]:
        return contents(self.files.of(spec.uuid))

    def aside(self, spec: GuestSpec) -> dict[str, bytes]:
        return contents(self.parked.of(spec.uuid))


def contents(directory: Path) -> dict[str, bytes]:
    """Of large files, which are nearly empty, the beginning."""
    if not directory.exists():
        return {}
    return {path.name: beginning(path) for path in directory.iterdir()}


def beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4 << 20)


def grown(spec: GuestSpec, **more: int) -> GuestSpec:
    return replace(spec, flavor=replace(spec.flavor, **more))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Parking]:
    threads = Threads("test-files", 2)
    yield Parking(tmp_path, threads)
    threads.close()


async def test_files_are_put_aside_and_taken_back(host: Parking) -> None:
    spec = host.guest()
    await host.prepare(spec)
    before = host.here(spec)
    for _ in range(2):  # and a repeat does no more
        await host.parked.park(spec.uuid)
        assert (host.here(spec), host.aside(spec)) == ({}, before)
    assert info(host.parked.of(spec.uuid) / "disk")["chain"] == ["disk", "disk.base"]
    for _ in range(2):
        await host.parked.unpark(spec.uuid)
        assert (host.here(spec), host.aside(spec)) == (before, {})


async def test_what_is_taken_back_replaces_what_has_come_since(host: Parking) -> None:
    spec = host.guest()
    await host.prepare(spec)
    await host.parked.park(spec.uuid)
    before = host.aside(spec)
    await host.parked.adopt(spec)
    (host.files.of(spec.uuid) / "disk").write_bytes(b"changed")
    await host.parked.unpark(spec.uuid)
    assert (host.here(spec), host.aside(spec)) == (before, {})


async def test_what_is_not_there_is_told_of(host: Parking) -> None:
    spec = host.guest()
    for verb in (host.parked.park, host.parked.unpark, host.parked.travelling):
        with pytest.raises(HostFault, match="no "):
            await verb(spec.uuid)
    with pytest.raises(HostFault, match="No files were put aside"):
        await host.parked.adopt(spec)
    await host.parked.drop(spec.uuid)


async def test_what_was_put_aside_before_is_not_lost(host: Parking) -> None:
    spec = host.guest()
    await host.prepare(spec)
    await host.parked.park(spec.uuid)
    before = host.aside(spec)
    await host.prepare(spec)
    with pytest.raises(HostFault, match="in the way"):
        await host.parked.park(spec.uuid)
    assert host.aside(spec) == before
    await host.parked.drop(spec.uuid)
    assert host.aside(spec) == {} and host.here(spec) != {}


@pytest.mark.parametrize("uuid", UUIDS)
async def test_only_guests_have_files(host: Parking, uuid: str) -> None:
    for verb in (host.parked.park, host.parked.unpark, host.parked.drop, host.parked.travelling):
        with pytest.raises(Failed, match="no guest's uuid"):
            await verb(uuid)


async def test_room_is_where_no_files_of_the_guest_are(host: Parking) -> None:
    spec = host.guest()
    await host.parked.check_room(spec)
    await host.prepare(spec)
    with pytest.raises(HostFault, match="already"):
        await host.parked.check_room(spec)


# ---- adopting ----


async def test_adopted_files_are_copies_on_the_same_image(host: Parking) -> None:
    spec = replace(grown(host.guest(), ephemeral_gb=1, swap_mb=8), config_drive={"openstack/x": b"y"})
    await host.prepare(spec)
    console = host.files.of(spec.uuid) / "console.log"
    console.write_bytes(b"login: ")
    await host.parked.park(spec.uuid)
    for _ in range(2):
        await host.parked.adopt(spec)
    here, parked = host.files.of(spec.uuid), host.parked.of(spec.uuid)
    assert sorted(host.here(spec)) == [
        "console.log", "disk", "disk.base", "disk.config", "disk.eph0"
    ]  # fmt: skip
    assert (here / "disk.base").stat().st_ino == (parked / "disk.base").stat().st_ino
    for name in ("disk", "disk.config", "disk.eph0", "console.log"):
        assert (here / name).stat().st_ino != (parked / name).stat().st_ino
        assert beginning(here / name) == beginning(parked / name)
        assert (here / name).stat().st_size == (parked / name).stat().st_size
    assert (here / "disk.eph0").stat().st_blocks * 512 < 64 << 20  # sparse, as it was
    assert info(here / "disk")["chain"] == ["disk", "disk.base"]
    await host.parked.fit(spec)
    assert (here / "disk.swap").stat().st_size == 8 << 20


async def test_an_image_that_the_cache_has_forgotten_is_adopted_as_a_link(host: Parking) -> None:
    spec = host.guest()
    await host.prepare(spec)
    (cached,) = (host.directory / "_base").iterdir()
    cached.unlink()
    await host.parked.park(spec.uuid)
    await host.parked.adopt(spec)
    here, parked = host.files.of(spec.uuid), host.parked.of(spec.uuid)
    assert (here / "disk.base").stat().st_ino == (parked / "disk.base").stat().st_ino


async def test_a_draft_of_an_adoption_that_was_cut_is_made_anew(host: Parking) -> None:
    spec = host.guest()
    await host.prepare(spec)
    before = host.here(spec)
    await host.parked.park(spec.uuid)
    await host.files.receive(spec)
    (host.files.of(spec.uuid) / "disk.new").write_bytes(b"half")
    await host.parked.adopt(spec)
    assert host.here(spec) == before


# ---- receiving ----


async def test_what_comes_finds_the_image_if_it_is_here(host: Parking) -> None:
    spec = host.guest()
    assert await host.files.receive(spec) == host.files.of(spec.uuid)
    assert host.here(spec) == {}
    await host.prepare(spec)
    await host.files.discard(spec.uuid)
    for _ in range(2):
        await host.files.receive(spec)
        assert host.here(spec) == {"disk.base": DATA}
    (cached,) = (host.directory / "_base").iterdir()
    assert (host.files.of(spec.uuid) / "disk.base").stat().st_ino == cached.stat().st_ino
    await host.files.discard(spec.uuid)
    await host.files.receive(replace(spec, flat_root=True))  # which has no base
    assert host.here(spec) == {}


async def test_what_has_come_so_far_is_kept(host: Parking) -> None:
    spec = host.guest()
    await host.files.receive(spec)
    (host.files.of(spec.uuid) / "disk.part").write_bytes(b"half")
    await host.files.receive(spec)
    assert host.here(spec)["disk.part"] == b"half"


async def test_only_what_a_guest_needs_elsewhere_travels(host: Parking) -> None:
    spec = grown(host.guest(), ephemeral_gb=1, swap_mb=8)
    await host.prepare(spec)
    (host.files.of(spec.uuid) / "other").write_bytes(b"x")
    await host.parked.park(spec.uuid)
    paths = await host.parked.travelling(spec.uuid)
    assert [path.name for path in paths] == ["disk.base", "disk", "disk.eph0"]
    assert {path.parent for path in paths} == {host.parked.of(spec.uuid)}


# ---- other sizes ----


async def test_disks_grow_with_the_flavor(host: Parking) -> None:
    spec = grown(host.guest(), root_gb=1, ephemeral_gb=1, swap_mb=8)
    await host.prepare(spec)
    here = host.files.of(spec.uuid)
    more = grown(spec, root_gb=3, ephemeral_gb=2, swap_mb=16)
    for _ in range(2):
        await host.parked.fit(more)
        assert info(here / "disk")["virtual-size"] == 3 * GIB
        assert (here / "disk.eph0").stat().st_size == 2 * GIB
        assert (here / "disk.swap").stat().st_size == 16 << 20
    found = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "TYPE", here / "disk.eph0"], capture_output=True
    )
    assert found.stdout.strip() in (b"ext4", b"")


async def test_disks_that_a_flavor_adds_are_made_and_swap_goes(host: Parking) -> None:
    spec = grown(host.guest(), root_gb=1, swap_mb=8)
    await host.prepare(spec)
    here = host.files.of(spec.uuid)
    await host.parked.fit(grown(spec, ephemeral_gb=1, swap_mb=0))
    assert not (here / "disk.swap").exists()
    assert (here / "disk.eph0").stat().st_size == GIB


@pytest.mark.parametrize("less", [{"root_gb": 1}, {"ephemeral_gb": 1}, {"ephemeral_gb": 0}])
async def test_no_disk_shrinks(host: Parking, less: dict[str, int]) -> None:
    spec = grown(host.guest(), root_gb=2, ephemeral_gb=2)
    await host.prepare(spec)
    before = host.here(spec)
    with pytest.raises(Failed, match="cannot be made smaller"):
        await host.parked.fit(grown(spec, **less))
    assert host.here(spec) == before


async def test_a_disk_whose_flavor_does_not_say_how_large_it_is_stays(host: Parking) -> None:
    spec = grown(host.guest(), root_gb=2)
    await host.prepare(spec)
    await host.parked.fit(grown(spec, root_gb=0))
    assert info(host.files.of(spec.uuid) / "disk")["virtual-size"] == 2 * GIB
