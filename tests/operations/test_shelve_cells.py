"""Shelved servers of several cells."""

from __future__ import annotations

import pytest

from kilonova.db import instances
from kilonova.errors import Conflict
from kilonova.operations import delete, offload, shelve, unshelve
from kilonova.testing.embedded import audits, member
from tests.operations.second_cell import Two, two

__all__ = ["two"]


@pytest.mark.capability("MG-SHV-5")
async def test_a_server_that_is_shelved_comes_back_in_its_cell(two: Two) -> None:
    """Its image, ports and claim are in the top database, the rest in the cell's."""
    (server,) = await two.boot()
    await two.settled(two.second, server.uuid)
    two.driver.disks.write(server.uuid, b"written in a cell")
    used = await two.used()
    await shelve.submit(two.second, member(two.whole), server.uuid)
    away = await two.settled(two.second, server.uuid)
    assert (away.vm_state, away.host) == ("shelved_offloaded", None)
    assert two.driver.guest_file.everything() == {}
    assert await two.used() == used
    with pytest.raises(Conflict):
        await offload.submit(two.second, member(two.whole), server.uuid)
    await unshelve.submit(two.second, member(two.whole), server.uuid)
    back = await two.settled(two.second, server.uuid)
    assert (back.vm_state, back.host, back.fault) == ("active", "far", None)
    assert two.driver.disks.content(server.uuid) == b"written in a cell"
    # The other cell's host is none for it.
    await shelve.submit(two.second, member(two.whole), server.uuid)
    await two.settled(two.second, server.uuid)
    await unshelve.submit(two.second, member(two.whole), server.uuid, host="h1")
    still = await two.settled(two.second, server.uuid)
    assert (still.vm_state, still.task_state, still.host) == ("shelved_offloaded", None, None)
    await delete.submit(two.second, member(two.whole), server.uuid)
    await two.settled(two.second, server.uuid)
    assert await audits(two.whole) == []


async def test_shelved_servers_are_looked_for_in_all_cells(two: Two) -> None:
    options = two.whole.settings.options["DEFAULT"]
    options["shelved_offload_time"] = 100
    far, near = (await two.boot())[0].uuid, (await two.boot(host="h1"))[0].uuid
    for cloud, uuid in ((two.second, far), (two.first, near)):
        await two.settled(cloud, uuid)
        await shelve.submit(cloud, member(two.whole), uuid)
        found = await two.settled(cloud, uuid)
        assert found.vm_state == "shelved"
        said = {**found.system_metadata, "shelved_at": "2020-01-01T00:00:00.000000"}
        await cloud.db.write(
            lambda tx, uuid=uuid, said=said: instances.update(  # type: ignore[misc]
                tx, uuid, expect_task=None, system_metadata=said
            )
        )
    await offload.offload_all_aged(two.first)
    for cloud, uuid in ((two.second, far), (two.first, near)):
        assert (await two.settled(cloud, uuid)).vm_state == "shelved_offloaded"
