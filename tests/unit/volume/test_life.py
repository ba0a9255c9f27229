"""A volume from its making to its end, and what is counted of it."""

from __future__ import annotations

import asyncio
import os
import stat

import pytest

from kilonova.db import volume_ledger, volumes
from kilonova.errors import Conflict, Invalid, NotFound, OverQuota
from kilonova.services.volume.files import GIB
from kilonova.services.volume.records import NewVolume
from tests.unit.volume.conftest import ADMIN, ALICE, BOB, House


async def usage(house: House, project: str = "alice") -> dict[str, int]:
    assert await house.db.read(volume_ledger.audit) == []
    return await house.db.read(lambda tx: volume_ledger.usages(tx, project))


async def test_a_volume_is_a_sparse_file_that_only_we_can_read(house: House) -> None:
    volume = await house.made(size_gb=3, name="data")
    found = await house.service.check(ALICE, volume.id)
    assert (found.status, found.size_gb, found.name, found.servers) == ("available", 3, "data", ())
    assert (found.availability_zone, found.multiattach, found.bootable) == ("nova", False, False)
    assert house.files() == [volume.id]
    there = (house.directory / volume.id).stat()
    assert there.st_size == 3 * GIB and there.st_blocks * 512 < 1 << 20
    assert stat.S_IMODE(there.st_mode) == 0o600
    assert await usage(house) == {"volumes": 1, "gigabytes": 3}


async def test_it_is_available_no_sooner_than_its_file_is_there(house: House) -> None:
    volume = await house.service.create(ALICE, NewVolume(size_gb=1))
    assert volume.status == "creating"
    while (await house.service.check(ALICE, volume.id)).status == "creating":
        await asyncio.sleep(0)
    assert os.path.exists(house.directory / volume.id)


async def test_another_project_has_no_part_in_it(house: House) -> None:
    volume = await house.made()
    for work in (
        house.service.check(BOB, volume.id),
        house.service.reserve(BOB, volume.id, "server", "a1"),
        house.service.begin_detaching(BOB, volume.id),
        house.service.remove(BOB, volume.id),
        house.service.extend(BOB, volume.id, 2),
        house.service.create(BOB, NewVolume(source_volume=volume.id)),
    ):
        with pytest.raises(NotFound, match=volume.id):
            await work
    assert (await house.service.check(ADMIN, volume.id)).status == "available"


async def test_deleting_leaves_nothing(house: House) -> None:
    volume = await house.made(size_gb=2)
    await house.service.remove(ALICE, volume.id)
    await house.service.idle()
    with pytest.raises(NotFound):
        await house.service.check(ALICE, volume.id)
    assert house.files() == []
    assert await usage(house) == {"volumes": 0, "gigabytes": 0}
    await house.service.delete(volume.id)
    await house.service.delete("11111111-1111-4111-8111-111111111111")


async def test_it_grows_and_never_shrinks(house: House) -> None:
    volume = await house.made(size_gb=2)
    with (house.directory / volume.id).open("r+b") as file:
        file.seek(2 * GIB - 4)
        file.write(b"last")
    for size in (1, 2):
        with pytest.raises(Invalid, match="greater than current"):
            await house.service.extend(ALICE, volume.id, size)
    await house.service.extend(ALICE, volume.id, 5)
    with pytest.raises(Conflict, match="extending"):
        await house.service.reserve(ALICE, volume.id, "server", "a1")
    await house.service.idle()
    assert (await house.service.check(ALICE, volume.id)).size_gb == 5
    with (house.directory / volume.id).open("rb") as file:
        file.seek(2 * GIB - 4)
        assert file.read(8) == b"last\0\0\0\0"
    assert (house.directory / volume.id).stat().st_size == 5 * GIB
    assert await usage(house) == {"volumes": 1, "gigabytes": 5}


async def test_quotas_hold_also_for_those_who_race(house: House) -> None:
    house.quotas.update(volumes=3, gigabytes=10)
    makings = [house.service.create(ALICE, NewVolume(size_gb=1)) for _ in range(8)]
    results = await asyncio.gather(*makings, return_exceptions=True)
    refused = [each for each in results if isinstance(each, BaseException)]
    assert len(refused) == 5 and all(isinstance(each, OverQuota) for each in refused)
    assert "allowed (3) exceeded" in str(refused[0])
    await house.service.idle()
    assert await usage(house) == {"volumes": 3, "gigabytes": 3}
    made = [each for each in results if isinstance(each, volumes.StoredVolume)]
    with pytest.raises(OverQuota, match=r"Requested 8G, quota is 10G and 3G has been consumed"):
        await house.service.extend(ALICE, made[0].id, 9)
    await house.service.extend(ALICE, made[0].id, 8)
    await house.service.idle()
    with pytest.raises(OverQuota):
        await house.service.extend(ALICE, made[0].id, 9)
    assert await usage(house) == {"volumes": 3, "gigabytes": 10}


async def test_one_volume_has_a_largest_size(house: House) -> None:
    house.quotas["per_volume_gigabytes"] = 4
    with pytest.raises(OverQuota, match="5G is larger than maximum allowed limit 4G"):
        await house.service.create(ALICE, NewVolume(size_gb=5))
    volume = await house.made(size_gb=4)
    with pytest.raises(OverQuota):
        await house.service.extend(ALICE, volume.id, 5)
    assert await usage(house) == {"volumes": 1, "gigabytes": 4}


async def test_one_without_a_directory_says_what_to_set(house: House) -> None:
    from kilonova.errors import HostFault
    from kilonova.services.volume.builtin import BuiltinVolumes
    from tests.unit.volume.conftest import new_uuid, virtual_size

    volume = await house.made()
    other = BuiltinVolumes(house.db, house.clock, new_uuid, None, house.images, virtual_size)
    await other.recover()
    await other.reserve(ALICE, volume.id, "server", "a1")
    for work in (
        other.create(ALICE, NewVolume(size_gb=1)),
        other.extend(ALICE, volume.id, 2),
        other.connect("a1", "host", None),
    ):
        with pytest.raises(HostFault, match=r"\[volume\]directory"):
            await work
    await other.release("a1")
    await other.remove(ALICE, volume.id)
    await other.close()
    await house.service.recover()
    await house.service.idle()
    assert house.files() == [], "who has the directory ends what others began"
