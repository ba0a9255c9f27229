"""Volumes of servers that go to another cell, and come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.errors import HostFault
from kilonova.model.states import Vm
from kilonova.operations import attach_volume, delete, detach_volume
from kilonova.operations.attach_volume import Wish
from kilonova.testing.embedded import member
from tests.operations.two_cells import Between, between
from tests.operations.with_volumes import Had, had, new_volume

AWAY = {"h1": "far", "far": "h1"}


@pytest.fixture
async def cells(tmp_path: Path) -> AsyncIterator[Between]:
    async with between(tmp_path) as made:
        yield made


async def volume_of(cells: Between, uuid: str) -> str:
    (mine,) = (await cells.server(uuid)).volumes
    return mine.volume_id


@pytest.mark.capability("MG-XC-5", "MG-XC-8")
@pytest.mark.parametrize("host", ["h1", "far"])
async def test_they_go_along_and_stay(cells: Between, host: str) -> None:
    uuid = await cells.boot_with_volume(host)
    assert (await cells.resized(uuid)).host == AWAY[host]
    await cells.assert_has_volume(uuid, AWAY[host])
    assert (await cells.confirmed(uuid)).vm_state == Vm.ACTIVE
    await cells.assert_has_volume(uuid, AWAY[host])
    await cells.assert_sound()


@pytest.mark.capability("MG-XC-9")
@pytest.mark.parametrize("host", ["h1", "far"])
async def test_what_came_meanwhile_comes_back_with_it_and_what_went_does_not(
    cells: Between, host: str
) -> None:
    uuid = await cells.boot_with_volume(host)
    whole, context = cells.two.whole, member(cells.two.whole)
    first, second = await volume_of(cells, uuid), await new_volume(whole)
    await cells.resized(uuid)
    home = await cells.home(uuid)
    await attach_volume.submit(home, context, uuid, Wish(volume_id=second))
    await detach_volume.submit(home, context, uuid, first)
    await cells.settled(uuid)
    found = await cells.reverted(uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, host), found.fault
    assert await volume_of(cells, uuid) == second
    await cells.assert_has_volume(uuid, host)
    assert await had(whole, first) == Had("available", ())
    await cells.assert_sound()


@pytest.mark.capability("MG-XC-3")
@pytest.mark.parametrize("host", ["h1", "far"])
@pytest.mark.parametrize("verb", ["check_volumes", "start"])
async def test_what_fails_at_the_other_end_leaves_them_where_they_are(
    cells: Between, host: str, verb: str
) -> None:
    uuid = await cells.boot_with_volume(host)
    before = (await cells.server(uuid)).volumes
    cells.drivers[AWAY[host]].faults.add(verb, HostFault("no"))
    found = await cells.resized(uuid)
    assert (found.vm_state, found.host, found.volumes) == (Vm.ACTIVE, host, before)
    await cells.assert_has_volume(uuid, host)
    await cells.assert_sound()


@pytest.mark.parametrize("host", ["h1", "far"])
async def test_one_that_waits_in_the_other_cell_is_deleted(cells: Between, host: str) -> None:
    uuid = await cells.boot_with_volume(host)
    volume = await volume_of(cells, uuid)
    await cells.resized(uuid)
    await delete.submit(await cells.home(uuid), member(cells.two.whole), uuid)
    assert (await cells.settled(uuid)).vm_state == Vm.DELETED
    assert await had(cells.two.whole, volume) == Had("available", ())
    await cells.assert_sound()
